"""PyTorch's distributed checkpoint format on an fsspec filesystem that is given.

In a file of its own, imported where a checkpoint is read or written: PyTorch's side brings DTensor and sympy and takes
two seconds, which a command that only plans need not wait for.
"""

from fsspec import AbstractFileSystem
from torch.distributed.checkpoint._fsspec_filesystem import FileSystem, FsspecReader, FsspecWriter
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter


class CheckpointFiles(FileSystem):
    """PyTorch's fsspec adapter, given a filesystem instead of finding one by URL."""

    def __init__(self, fs: AbstractFileSystem) -> None:
        super().__init__()
        self.fs = fs


class CheckpointWriter(FsspecWriter):
    def __init__(self, fs: AbstractFileSystem, path: str) -> None:
        # Without fsync: visibility comes from the record, and only local files have a descriptor to sync.
        FileSystemWriter.__init__(self, path, sync_files=False)
        self.fs = CheckpointFiles(fs)
        self.path = path


class CheckpointReader(FsspecReader):
    def __init__(self, fs: AbstractFileSystem, path: str) -> None:
        FileSystemReader.__init__(self, path)
        self.fs = CheckpointFiles(fs)
        self.path = path
