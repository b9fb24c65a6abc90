"""Identities of files by their content, remembered so that a file is read once and not once a command.

What is remembered of a local file holds as long as the file system says that nothing was written to it: same device,
inode, size, and times of the last change of content and of status to the nanosecond.
"""

import hashlib
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import cast

import fsspec

from cluster.paths import local_path
from cluster.progress import Progress
from cluster.retry import with_retries
from cluster.user_cache import UserCache

_BLOCK_BYTES = 1 << 22
_LEAST_BYTES = 64 << 10
"""A smaller file is read as fast as it is looked up."""
_SETTLED_S = 2.0
"""Age from which a file's times tell writes apart: some file systems keep them to the second."""
_SAID_BYTES = 256 << 20
"""So much to read takes a second or more, and progress is shown."""
_THREADS = min(4, os.cpu_count() or 1)

_cache = UserCache("fingerprints")


def fingerprint(url: str) -> str:
    """Identity of one file's content: its sha256, or the ETag where an object store already keeps one."""
    return _fingerprint(url, lambda num_bytes: None)


def fingerprints(urls: Sequence[str], label: str) -> list[str]:
    """`fingerprint` of each, several at once, with progress where there is much to read that is not remembered."""
    total = sum(size for url in urls if (size := _bytes_to_read(url)))
    if total < _SAID_BYTES:
        return [fingerprint(url) for url in urls]
    read, lock = 0, threading.Lock()
    with Progress(f"{label}: reading its files once for their identity", total / 1e6, "MB") as progress:

        def count(num_bytes: int) -> None:
            nonlocal read
            with lock:
                read += num_bytes
                progress.update(read / 1e6)

        with ThreadPoolExecutor(_THREADS) as pool:  # hashing leaves the interpreter free
            return list(pool.map(lambda url: _fingerprint(url, count), urls))


def _fingerprint(url: str, count: Callable[[int], None]) -> str:
    key = _version(url)
    known = _cache.get(key) if key else None
    if known is not None:
        return known
    fs, path = fsspec.core.url_to_fs(url)
    etag = with_retries(fs.info, path).get("ETag")
    if etag:
        return f"etag:{str(etag).strip(chr(34))}"
    content = with_retries(_sha256, fs, path, count if key else lambda num_bytes: None)
    if key and _version(url) == key:  # else it was written to meanwhile
        _cache.put(key, content)
    return content


def _sha256(fs: fsspec.AbstractFileSystem, path: str, count: Callable[[int], None]) -> str:
    digest = hashlib.sha256()
    with fs.open(path, "rb") as file:
        while block := cast(bytes, file.read(_BLOCK_BYTES)):
            digest.update(block)
            count(len(block))
    return f"sha256:{digest.hexdigest()}"


def _bytes_to_read(url: str) -> int:
    """The size of a local file whose content is not remembered; 0 for any other."""
    key = _version(url)
    path = local_path(url)
    return os.stat(path).st_size if path and key and "::" not in url and _cache.get(key) is None else 0


def _version(url: str) -> str:
    """What names the present content of a local file, or of a member of a local archive; empty where nothing does."""
    path = local_path(url)
    if not path:
        return ""
    try:
        status = os.stat(path)
    except OSError:
        return ""
    changed_ns = max(status.st_mtime_ns, status.st_ctime_ns)
    if status.st_size < _LEAST_BYTES or time.time_ns() - changed_ns < _SETTLED_S * 1e9:
        return ""
    member = url.rpartition("::")[0]
    times = f"{status.st_mtime_ns}:{status.st_ctime_ns}"
    return f"{status.st_dev}:{status.st_ino}:{status.st_size}:{times}:{member}"
