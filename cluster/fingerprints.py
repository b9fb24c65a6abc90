"""Computes fingerprints of files: texts that identify a file's content.

The fingerprint of a remote file is its ETag, if the object store or web server provides one under this name. The
fingerprint of any other file is the SHA-256 digest of its bytes. For local files a cache keeps the digest, so that a
file is read once and not by every command. A cached digest is used as long as the file system reports no change: the
device, the inode, the size and the times of the last change of content and of metadata (to the nanosecond) are all the
same.
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
"""Smaller files are not cached, because reading them is as fast as the cache."""
_MIN_AGE_S = 2.0
"""Files that changed more recently are not cached. Some file systems record times in whole seconds, so that a second
change could go unnoticed."""
_MIN_PROGRESS_BYTES = 256 << 20
"""Progress is shown if at least this many bytes of local files must be read, because reading them takes a second or
more."""
_NUM_THREADS = min(4, os.cpu_count() or 1)

_cache = UserCache("fingerprints")


def fingerprint(url: str) -> str:
    """The fingerprint of one file: the ETag if the file is remote and has one, else the SHA-256 digest."""
    return _fingerprint(url, _ignore)


def fingerprints(urls: Sequence[str], label: str) -> list[str]:
    """The fingerprint of each URL, in the order of the URLs.

    If local files of `_MIN_PROGRESS_BYTES` or more in all must be read, the files are read in parallel, and a progress
    display shows `label`. Only files that `_bytes_to_read` counts are counted.
    """
    sizes = [_bytes_to_read(url) for url in urls]
    total = sum(sizes)
    if total < _MIN_PROGRESS_BYTES:
        return [fingerprint(url) for url in urls]
    num_read, lock = 0, threading.Lock()
    with Progress(f"{label}: reading files to identify them", total / 1e6, "MB") as progress:

        def report_read(num_bytes: int) -> None:
            nonlocal num_read
            with lock:
                num_read += num_bytes
                progress.update(num_read / 1e6)

        with ThreadPoolExecutor(_NUM_THREADS) as pool:  # Threads run in parallel here, because hashing frees the GIL.
            return list(pool.map(_fingerprint, urls, [report_read if size else _ignore for size in sizes]))


def _ignore(num_bytes: int) -> None:
    """A `report_read` for files that do not count in the progress."""


def _fingerprint(url: str, report_read: Callable[[int], None]) -> str:
    """The fingerprint of one file. `report_read` is called with the number of bytes of each block that is read."""
    key = _cache_key(url)
    cached = _cache.get(key) if key else None
    if cached is not None:
        return cached
    fs, path = fsspec.core.url_to_fs(url)
    etag = with_retries(fs.info, path).get("ETag")
    if etag:
        return f"etag:{str(etag).strip(chr(34))}"
    digest = with_retries(_sha256, fs, path, report_read)
    if key and _cache_key(url) == key:  # A different key means that the file changed while it was read.
        _cache.put(key, digest)
    return digest


def _sha256(fs: fsspec.AbstractFileSystem, path: str, report_read: Callable[[int], None]) -> str:
    digest = hashlib.sha256()
    with fs.open(path, "rb") as file:
        while block := cast(bytes, file.read(_BLOCK_BYTES)):
            digest.update(block)
            report_read(len(block))
    return f"sha256:{digest.hexdigest()}"


def _bytes_to_read(url: str) -> int:
    """The size of a local file whose fingerprint could be cached but is not. 0 for other URLs and archive members.

    Small and recently changed files are not cached, so the result for them is 0 too.
    """
    key = _cache_key(url)
    path = local_path(url)
    return os.stat(path).st_size if path and key and "::" not in url and _cache.get(key) is None else 0


def _cache_key(url: str) -> str:
    """The cache key of the present content of a local file or of a member of a local archive.

    For a member, size and times are those of the whole archive. Returns an empty key for a URL that is not local, and
    for a file that is missing, small or recently changed.
    """
    path = local_path(url)
    if not path:
        return ""
    try:
        status = os.stat(path)
    except OSError:
        return ""
    changed_ns = max(status.st_mtime_ns, status.st_ctime_ns)
    if status.st_size < _MIN_CACHED_BYTES or time.time_ns() - changed_ns < _MIN_AGE_S * 1e9:
        return ""
    member = url.rpartition("::")[0]
    times = f"{status.st_mtime_ns}:{status.st_ctime_ns}"
    return f"{status.st_dev}:{status.st_ino}:{status.st_size}:{times}:{member}"
