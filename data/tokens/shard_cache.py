"""Verifies the files of shards, and of chats' samples, by checksum. Remote files are first copied to a local cache."""

import contextlib
import fcntl
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from cluster.storage import Storage


def local_file(
    folder: Storage,
    name: str,
    *,
    sha256: str,
    num_bytes: int,
    verified: set[str] | None = None,
    kind: str = "shard",
    remedy: str = "make the shards again, or copy the file again",
) -> Path:
    """Return the local path of a file in a folder, after verifying its size and checksum.

    A remote file is downloaded once into a cache, which all processes of the node share. If the cached copy has a wrong
    size, the file is downloaded again. `verified` is the set of the names of files whose checksum need not be verified
    again. When this function has verified a checksum, it adds the name to the set. If `verified` is None, the checksum
    is always verified. `kind` and `remedy` say in an error what the file is and what to do.

    Raises ValueError if the file is missing, or if its size or checksum is wrong.
    """
    path = Path(folder.path(name)) if folder.is_local else _cached_copy(folder, name, sha256, num_bytes)
    size = path.stat().st_size if path.exists() else None
    if size != num_bytes:
        problem = "is missing" if size is None else f"has {size:,} bytes instead of {num_bytes:,}"
        raise ValueError(f"{kind} {folder.url}/{name} {problem}; {remedy}")
    if verified is not None and name in verified:
        return path
    if _sha256(path) != sha256:
        if not folder.is_local:
            path.unlink()  # Removed so that the next attempt downloads the file again.
        raise ValueError(f"{kind} {folder.url}/{name} is corrupt: its checksum differs from the recorded one; {remedy}")
    if verified is not None:
        verified.add(name)
    return path


def _cached_copy(split: Storage, name: str, sha256: str, num_bytes: int) -> Path:
    """Return the path of the cached copy of a remote file. If it is not cached, one process of the node downloads it.

    If the remote file does not exist, the path does not exist either.
    """
    path = shard_cache() / sha256
    if _has_size(path, num_bytes):
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with _exclusive_lock(path.with_name(f"{sha256}.lock")):
        if not _has_size(path, num_bytes) and split.exists(name):
            split.copy(name, Storage(str(path.parent)), sha256)
    return path


def _has_size(path: Path, num_bytes: int) -> bool:
    return path.exists() and path.stat().st_size == num_bytes


@contextlib.contextmanager
def _exclusive_lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file. The operating system releases the lock if the process dies."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def shard_cache() -> Path:
    """Return the folder for copies of remote shard files. Each copy is named by its checksum."""
    return Path(tempfile.gettempdir()) / f"raymill-{os.getuid()}" / "shards"


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
