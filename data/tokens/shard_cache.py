"""Local copies of the shards of a remote store, checked against their digests."""

import contextlib
import fcntl
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from cluster.storage import Storage


def local_file(split: Storage, name: str, *, sha256: str, num_bytes: int, verified: set[str] | None = None) -> Path:
    """A file of a split on the local disk, verified by size and checksum. Raises ValueError when they differ.

    A remote file is fetched once into a cache by its checksum, which all processes of a node share; a copy of another
    size is fetched again. Names in `verified` are not verified again; the file's is added.
    """
    path = Path(split.path(name)) if split.is_local else _fetched(split, name, sha256, num_bytes)
    size = path.stat().st_size if path.exists() else None
    if size != num_bytes:
        state = "is missing" if size is None else f"has {size:,} bytes instead of {num_bytes:,}"
        raise ValueError(f"shard {split.url}/{name} {state}; make the shards again, or copy the file again")
    if verified is not None and name in verified:
        return path
    if _sha256(path) != sha256:
        if not split.is_local:
            path.unlink()  # so that the next attempt fetches it again
        raise ValueError(
            f"shard {split.url}/{name} is corrupt: its checksum differs from the manifest's; make it again"
        )
    if verified is not None:
        verified.add(name)
    return path


def _fetched(split: Storage, name: str, sha256: str, num_bytes: int) -> Path:
    """The cached copy of a remote file; one of a node's processes fetches it."""
    path = shard_cache() / sha256
    if _has_size(path, num_bytes):
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with _alone(path.with_name(f"{sha256}.lock")):
        if not _has_size(path, num_bytes):
            split.copy(name, Storage(str(path.parent)), sha256)
    return path


def _has_size(path: Path, num_bytes: int) -> bool:
    return path.exists() and path.stat().st_size == num_bytes


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold a file's lock, which is released when its process ends."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def shard_cache() -> Path:
    """The folder of copies of remote shards, named by their checksums."""
    return Path(tempfile.gettempdir()) / f"raymill-{os.getuid()}" / "shards"


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
