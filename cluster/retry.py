"""Storage that fails for a moment: how its requests are tried again."""

import errno
import logging
import time
from collections.abc import Callable
from typing import Any, TypeVar

import fsspec
import fsspec.config

logger = logging.getLogger(__name__)
T = TypeVar("T")

BLOCK_BYTES = 8 << 20
"""Of an object store: what is read ahead at once, and the part of a multipart upload (10,000 of them make 78 GiB)."""


# Every S3 file system of the process is made with these, also the ones inside chained URLs and those that pyarrow or a
# reader makes; what a user's fsspec configuration says goes first. A listing is never answered from memory: another
# process may have written since. Five attempts to send a request, spaced by up to 8 s; of one that never answers 25.
fsspec.config.conf["s3"] = {
    "use_listings_cache": False,
    "default_block_size": BLOCK_BYTES,
    "config_kwargs": {
        "retries": {"mode": "standard", "total_max_attempts": 5},
        "connect_timeout": 5,
        "read_timeout": 20,
    },
    **fsspec.config.conf.get("s3", {}),
}

_PASSING = (errno.EIO, errno.EREMOTEIO, errno.EBUSY, errno.EAGAIN, errno.EPIPE)
"""Numbers of errors that may be gone at the next try. s3fs says EREMOTEIO for 500, EBUSY for 503 and 409."""

WAITS_S = (0.5, 1.0, 2.0)


def with_retries(call: Callable[..., T], *arguments: Any, **options: Any) -> T:
    """What the call returns, tried up to four times in all while its error is one that may pass.

    For reads, listings and writes that may be made twice. Most errors are gone before by botocore's own attempts; here
    are those it lets through, such as a body that breaks off. Raises OSError also for what is none by its class.
    """
    for wait_s in (*WAITS_S, None):
        try:
            return call(*arguments, **options)
        except Exception as error:
            if wait_s is None or not _may_pass(error):
                if isinstance(error, OSError) or not _is_of_transport(error):
                    raise
                raise OSError(errno.EIO, f"{type(error).__name__}: {error}") from error
            logger.warning("storage: %s; tried again in %.1f s", error, wait_s)
            time.sleep(wait_s)
    raise AssertionError("the last try returns or raises")


def _may_pass(error: Exception) -> bool:
    if _is_of_transport(error):
        return not type(error).__module__.startswith("botocore")  # of these s3fs has tried again what may pass
    return isinstance(error, ConnectionError | TimeoutError) or (isinstance(error, OSError) and error.errno in _PASSING)


def _is_of_transport(error: Exception) -> bool:
    """Whether it comes from a library below the file system, which has classes of errors of its own."""
    return type(error).__module__.partition(".")[0] in ("aiohttp", "botocore", "urllib3")
