"""Identities of files by their content, cached so that a file is read once rather than once per command.

The cached identity of a local file holds as long as the file system reports no write to it: same device, inode, size,
and times of the last change of content and of status, to the nanosecond.
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
_MIN_CACHED_BYTES = 64 << 10
"""A smaller file is read as fast as it is looked up in the cache."""
_SETTLED_S = 2.0
"""A file that changed more recently is not cached: some file systems keep times to the second only."""
_PROGRESS_BYTES = 256 << 20
"""From this much to read, which takes a second or more, progress is shown."""
_THREADS = min(4, os.cpu_count() or 1)

_cache = UserCache("fingerprints")


def fingerprint(url: str) -> str:
    """Identity of one file's content: its sha256, or the ETag where an object store already keeps one."""
    return _fingerprint(url, lambda num_bytes: None)


def fingerprints(urls: Sequence[str], label: str) -> list[str]:
    """`fingerprint` of each URL, several at once, with progress where there is much to read that is not cached."""
    total = sum(size for url in urls if (size := _bytes_to_read(url)))
    if total < _PROGRESS_BYTES:
        return [fingerprint(url) for url in urls]
    read, lock = 0, threading.Lock()
    with Progress(f"{label}: reading files to identify them", total / 1e6, "MB") as progress:

        def count(num_bytes: int) -> None:
            nonlocal read
            with lock:
                read += num_bytes
                progress.update(read / 1e6)

        with ThreadPoolExecutor(_THREADS) as pool:  # hashing leaves the interpreter free
            return list(pool.map(lambda url: _fingerprint(url, count), urls))


def _fingerprint(url: str, count: Callable[[int], None]) -> str:
    key = _cache_key(url)
    cached = _cache.get(key) if key else None
    if cached is not None:
        return cached
    fs, path = fsspec.core.url_to_fs(url)
    etag = with_retries(fs.info, path).get("ETag")
    if etag:
        return f"etag:{str(etag).strip(chr(34))}"
    content = with_retries(_sha256, fs, path, count if key else lambda num_bytes: None)
    if key and _cache_key(url) == key:  # otherwise it was written to meanwhile
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
    """The size of a local file whose identity is not cached; 0 for any other URL."""
    key = _cache_key(url)
    path = local_path(url)
    return os.stat(path).st_size if path and key and "::" not in url and _cache.get(key) is None else 0


def _cache_key(url: str) -> str:
    """The cache key of a local file's present content, or of a member of a local archive; empty where there is none."""
    path = local_path(url)
    if not path:
        return ""
    try:
        status = os.stat(path)
    except OSError:
        return ""
    changed_ns = max(status.st_mtime_ns, status.st_ctime_ns)
    if status.st_size < _MIN_CACHED_BYTES or time.time_ns() - changed_ns < _SETTLED_S * 1e9:
        return ""
    member = url.rpartition("::")[0]
    times = f"{status.st_mtime_ns}:{status.st_ctime_ns}"
    return f"{status.st_dev}:{status.st_ino}:{status.st_size}:{times}:{member}"
