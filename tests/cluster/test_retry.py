"""Requests are repeated after transient errors, and only then."""

import errno
from typing import Any

import aiohttp
import botocore.exceptions
import pytest

import cluster.retry
import cluster.storage
from cluster.storage import Storage


class Failing:
    """A function that raises the given errors, one in each call, and then returns a value."""

    def __init__(self, *errors: Exception) -> None:
        self.errors, self.calls = list(errors), 0

    def __call__(self, *_: Any, **__: Any) -> str:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "answer"


@pytest.fixture
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster.retry, "RETRY_WAITS_S", (0.0, 0.0, 0.0))


@pytest.mark.usefixtures("no_waits")
def test_transient_errors_are_retried_three_times_and_other_errors_never():
    transient_errors = [
        OSError(errno.EREMOTEIO, "500"),
        OSError(errno.EBUSY, "503"),
        aiohttp.ClientPayloadError("broken off"),
    ]
    call = Failing(*transient_errors)
    assert cluster.retry.with_retries(call) == "answer" and call.calls == 4
    with pytest.raises(OSError, match="500"):
        cluster.retry.with_retries(Failing(*[OSError(errno.EREMOTEIO, "500")] * 4))
    with pytest.raises(OSError, match="ClientPayloadError: broken off"):
        cluster.retry.with_retries(Failing(*[aiohttp.ClientPayloadError("broken off")] * 4))
    for error in (FileNotFoundError(), PermissionError(), OSError(errno.EINVAL, "no"), KeyError()):
        call = Failing(error)
        with pytest.raises(type(error)):
            cluster.retry.with_retries(call)
        assert call.calls == 1


def test_missing_credentials_have_a_remedy():
    call = Failing(botocore.exceptions.NoCredentialsError())
    with pytest.raises(OSError, match="Unable to locate credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
        cluster.retry.with_retries(call)
    assert call.calls == 1


@pytest.mark.usefixtures("no_waits")
def test_exists_raises_when_the_store_does_not_answer(storage: Storage, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(storage.fs, "info", Failing(*[OSError(errno.EREMOTEIO, "500")] * 4))
    with pytest.raises(OSError, match="500"):
        storage.exists("a")
