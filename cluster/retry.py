"""Repeats requests to a store after transient errors."""

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
"""Size of a read-ahead block, and of a part of a multipart upload. S3 accepts 10,000 parts, so that an uploaded file
can have up to 78 GiB."""


# These settings apply to every S3 file system of this process, including those inside chained URLs and those that
# pyarrow or a reader creates. The user's fsspec configuration takes precedence. Listings are not cached, because other
# processes may have written new files. botocore sends a request up to five times, at most 8 s apart. An attempt without
# an answer fails after 25 s.
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

_TRANSIENT_ERRNOS = (errno.EIO, errno.EREMOTEIO, errno.EBUSY, errno.EAGAIN, errno.EPIPE)
"""Error numbers of transient errors. s3fs translates HTTP status 500 to EREMOTEIO, and 503 and 409 to EBUSY."""

RETRY_WAITS_S = (0.5, 1.0, 2.0)
"""Seconds to wait before the second, third and fourth attempt."""
_CREDENTIALS_ERRORS = ("NoCredentialsError", "PartialCredentialsError")
_CREDENTIALS_REMEDY = "; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the machine a role"


def with_retries(call: Callable[..., T], *arguments: Any, **options: Any) -> T:
    """Call `call(*arguments, **options)`, up to four times in all while it raises transient errors.

    Use it for reads, listings, and writes that may safely be repeated. botocore itself repeats most failed requests.
    This function handles the remaining errors, such as a response body that breaks off. An exception of an HTTP
    library (aiohttp, botocore, urllib3) that is not an OSError is raised as OSError.
    """
    for wait_s in (*RETRY_WAITS_S, None):
        try:
            return call(*arguments, **options)
        except Exception as error:
            if wait_s is None or not _is_transient(error):
                if isinstance(error, OSError) or not _is_transport_error(error):
                    raise
                remedy = _CREDENTIALS_REMEDY if type(error).__name__ in _CREDENTIALS_ERRORS else ""
                raise OSError(errno.EIO, f"{type(error).__name__}: {error}{remedy}") from error
            logger.warning("storage: request failed (%s); trying again in %.1f s", error, wait_s)
            time.sleep(wait_s)
    raise AssertionError("the last attempt returns or raises")


def _is_transient(error: Exception) -> bool:
    if _is_transport_error(error):
        return not type(error).__module__.startswith("botocore")  # botocore has already repeated these requests
    return isinstance(error, ConnectionError | TimeoutError) or (
        isinstance(error, OSError) and error.errno in _TRANSIENT_ERRNOS
    )


def _is_transport_error(error: Exception) -> bool:
    """Whether the class of an error belongs to an HTTP library that file systems use."""
    return type(error).__module__.partition(".")[0] in ("aiohttp", "botocore", "urllib3")
