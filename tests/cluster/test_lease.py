"""A lease has one holder at a time. The lease of a dead process is taken over, that of a living one is waited for."""

import json
import socket
import threading
import time
from pathlib import Path

import pytest

from cluster.lease import LEASE_FILE, hold_lease
from cluster.storage import Storage


def write_lease(folder: Path, *, host: str, pid: int, age_s: float) -> None:
    (folder / LEASE_FILE).write_text(
        json.dumps({"holder": "other", "host": host, "pid": pid, "time": time.time() - age_s})
    )


@pytest.mark.parametrize(
    ("host", "pid", "age_s"),
    [
        pytest.param(socket.gethostname(), 2**22 + 1, 1.0, id="a dead process of this machine"),
        pytest.param("elsewhere", 1, 31.0, id="another machine, silent for 31 s"),
    ],
)
def test_the_lease_of_a_killed_process_is_taken_over_at_once(tmp_path: Path, host: str, pid: int, age_s: float):
    write_lease(tmp_path, host=host, pid=pid, age_s=age_s)
    started = time.monotonic()
    with hold_lease(Storage(str(tmp_path))) as require_held:
        require_held()
    assert time.monotonic() - started < 2.0
    assert not (tmp_path / LEASE_FILE).exists()


def test_the_lease_of_a_living_holder_is_waited_for(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO")
    write_lease(tmp_path, host="elsewhere", pid=1, age_s=0.0)
    is_held = threading.Event()

    def hold() -> None:
        with hold_lease(Storage(str(tmp_path))):
            is_held.set()

    thread = threading.Thread(target=hold, daemon=True)
    thread.start()
    assert not is_held.wait(0.3)
    assert "another run (pid 1 on elsewhere) is writing" in caplog.text
    (tmp_path / LEASE_FILE).unlink()
    assert is_held.wait(10)
    thread.join(10)


def test_a_holder_that_lost_its_lease_fails_and_keeps_the_new_lease(tmp_path: Path):
    with hold_lease(Storage(str(tmp_path))) as require_held:
        write_lease(tmp_path, host="elsewhere", pid=1, age_s=0.0)
        with pytest.raises(RuntimeError, match="another run has taken the lease over"):
            require_held()
    assert json.loads((tmp_path / LEASE_FILE).read_text())["holder"] == "other"
