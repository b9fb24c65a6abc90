"""Reader and writer of PyTorch's distributed checkpoint format on a given fsspec filesystem.

A separate file, imported only where a checkpoint is read or written: its imports from PyTorch include DTensor and sympy
and take two seconds, which a command that only plans need not wait for.
"""

from fsspec import AbstractFileSystem
from torch.distributed.checkpoint._fsspec_filesystem import FileSystem, FsspecReader, FsspecWriter
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter


class CheckpointFiles(FileSystem):
    """PyTorch's fsspec adapter with a given filesystem instead of one found by URL."""

    def __init__(self, fs: AbstractFileSystem) -> None:
        super().__init__()
        self.fs = fs


class CheckpointWriter(FsspecWriter):
    """Writes a checkpoint into the folder `path` of a filesystem."""

    def __init__(self, fs: AbstractFileSystem, path: str) -> None:
        # Without fsync: visibility comes from the record, and only local files have a descriptor to sync.
        FileSystemWriter.__init__(self, path, sync_files=False)
        self.fs = CheckpointFiles(fs)
        self.path = path


class CheckpointReader(FsspecReader):
    """Reads a checkpoint from the folder `path` of a filesystem."""

    def __init__(self, fs: AbstractFileSystem, path: str) -> None:
        FileSystemReader.__init__(self, path)
        self.fs = CheckpointFiles(fs)
        self.path = path
