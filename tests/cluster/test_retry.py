"""A request is tried again when its error may pass, and only then."""

import errno
from typing import Any

import aiohttp
import pytest

import cluster.retry
import cluster.storage
from cluster.storage import Storage


class Failing:
    """A call that raises these errors one after another, and then answers."""

    def __init__(self, *errors: Exception) -> None:
        self.errors, self.calls = list(errors), 0

    def __call__(self, *_: Any, **__: Any) -> str:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "answer"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster.retry, "RETRY_WAITS_S", (0.0, 0.0, 0.0))


@pytest.mark.usefixtures("impatient")
def test_what_may_pass_is_tried_four_times_and_what_will_not_once():
    passing = [OSError(errno.EREMOTEIO, "500"), OSError(errno.EBUSY, "503"), aiohttp.ClientPayloadError("broken off")]
    call = Failing(*passing)
    assert cluster.retry.with_retries(call) == "answer" and call.calls == 4
    with pytest.raises(OSError, match="500"):
        cluster.retry.with_retries(Failing(*[OSError(errno.EREMOTEIO, "500")] * 4))
    with pytest.raises(OSError, match="ClientPayloadError: broken off"):
        cluster.retry.with_retries(Failing(*[aiohttp.ClientPayloadError("broken off")] * 4))
    for final in (FileNotFoundError(), PermissionError(), OSError(errno.EINVAL, "no"), KeyError()):
        call = Failing(final)
        with pytest.raises(type(final)):
            cluster.retry.with_retries(call)
        assert call.calls == 1


@pytest.mark.usefixtures("impatient")
def test_a_store_that_does_not_say_is_not_taken_for_a_no(storage: Storage, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(storage.fs, "info", Failing(*[OSError(errno.EREMOTEIO, "500")] * 4))
    with pytest.raises(OSError, match="500"):
        storage.exists("a")
