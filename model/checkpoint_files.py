"""Reader and writer of PyTorch's distributed checkpoint format on a given fsspec filesystem.

PyTorch's own reader and writer find the filesystem from a URL instead. This module is imported only when a checkpoint
is read or written, because its imports include DTensor and sympy and take two seconds. `raymill plan` does not need it.
"""

from fsspec import AbstractFileSystem
from torch.distributed.checkpoint._fsspec_filesystem import FileSystem, FsspecReader, FsspecWriter
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter


class CheckpointFiles(FileSystem):
    """PyTorch's adapter for fsspec filesystems. It uses the filesystem that it is given."""

    def __init__(self, fs: AbstractFileSystem) -> None:
        super().__init__()
        self.fs = fs


class CheckpointWriter(FsspecWriter):
    """Writes a checkpoint to the folder `path` of a filesystem."""

    def __init__(self, fs: AbstractFileSystem, path: str) -> None:
        # fsync is off. A checkpoint counts as complete only when its record is written, and fsync works only for local
        # files.
        FileSystemWriter.__init__(self, path, sync_files=False)
        self.fs = CheckpointFiles(fs)
        self.path = path


class CheckpointReader(FsspecReader):
    """Reads a checkpoint from the folder `path` of a filesystem."""

    def __init__(self, fs: AbstractFileSystem, path: str) -> None:
        FileSystemReader.__init__(self, path)
        self.fs = CheckpointFiles(fs)
        self.path = path
