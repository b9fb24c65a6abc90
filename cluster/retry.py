"""Requests to a store are tried again when they fail for a reason that may pass."""

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
"""Bytes of an object that are read ahead at once, and of a part of a multipart upload (10,000 parts are 78 GiB)."""


# Every S3 file system of the process is made with these settings, including those inside chained URLs and those that
# pyarrow or a reader makes; the user's own fsspec configuration takes precedence. Listings are not cached, because
# another process may have written since. A request is sent up to five times, up to 8 s apart; one attempt that gets no
# answer takes 25 s.
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

_PASSING_ERRORS = (errno.EIO, errno.EREMOTEIO, errno.EBUSY, errno.EAGAIN, errno.EPIPE)
"""Error numbers that may be gone at the next attempt. s3fs gives EREMOTEIO for 500, EBUSY for 503 and 409."""

RETRY_WAITS_S = (0.5, 1.0, 2.0)


def with_retries(call: Callable[..., T], *arguments: Any, **options: Any) -> T:
    """The result of `call`, tried up to four times in all while its error is one that may pass.

    For reads, listings, and writes that may be made twice. botocore's own attempts handle most errors; this handles
    those that remain, such as a body that breaks off. Transport errors of other libraries are re-raised as OSError.
    """
    for wait_s in (*RETRY_WAITS_S, None):
        try:
            return call(*arguments, **options)
        except Exception as error:
            if wait_s is None or not _may_pass(error):
                if isinstance(error, OSError) or not _is_transport_error(error):
                    raise
                raise OSError(errno.EIO, f"{type(error).__name__}: {error}") from error
            logger.warning("storage: %s; trying again in %.1f s", error, wait_s)
            time.sleep(wait_s)
    raise AssertionError("the last attempt returns or raises")


def _may_pass(error: Exception) -> bool:
    if _is_transport_error(error):
        return not type(error).__module__.startswith("botocore")  # s3fs has already tried these again
    return isinstance(error, ConnectionError | TimeoutError) or (
        isinstance(error, OSError) and error.errno in _PASSING_ERRORS
    )


def _is_transport_error(error: Exception) -> bool:
    """Whether an error comes from a library below the file system, which has error classes of its own."""
    return type(error).__module__.partition(".")[0] in ("aiohttp", "botocore", "urllib3")
