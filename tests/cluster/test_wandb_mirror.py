"""W&B gets each line of a metrics log once, and a failure of W&B is one warning that does not stop the work."""

import importlib.util
import json
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from cluster import wandb_mirror
from cluster.session import connect
from cluster.storage import Storage
from cluster.tracking import Tracker
from cluster.wandb_client import UnsentLines, check_reachable, read_history
from cluster.wandb_mirror import mirror_to_wandb, wandb_mode

_spec = importlib.util.spec_from_file_location("wandb_server", Path(__file__).parents[1] / "wandb_server.py")
assert _spec is not None and _spec.loader is not None
_wandb_server = importlib.util.module_from_spec(_spec)
sys.modules["wandb_server"] = _wandb_server
_spec.loader.exec_module(_wandb_server)
serving = _wandb_server.serving

KEY = "0123456789abcdef" * 2 + "01234567"


def tracker(storage: Storage, name: str = "pretrain") -> Tracker:
    return Tracker(storage=storage, run_id="run-1", name=name, group="tests", config={"steps": 4})


def attempt(storage: Storage, steps: range, *, resume_at: int | None = None, killed: bool = False) -> None:
    """Run one attempt of a stage, which logs the steps and may be killed at the end."""
    one = tracker(storage)
    with mirror_to_wandb(one):
        if resume_at is not None:
            one.resume(resume_at)
        for step in steps:
            one.log(step, {"train/loss": 10.0 - step})
        one.close()
        if killed:
            raise RuntimeError("killed")


def offline_steps(storage: Storage) -> list[float]:
    """Return the steps in the only offline run of an output, in order."""
    (file,) = Path(storage.local()).glob("wandb/offline-run-*/run-run-1.wandb")
    return [values["step"] for values in read_history(file)]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setattr(wandb_mirror, "_FINISH_LIMIT_S", 100.0)  # the machine may be busy
    monkeypatch.setattr(wandb_mirror, "_START_LIMIT_S", 100.0)
    monkeypatch.setattr(wandb_mirror, "_START_LIMIT_AFTER_FAILURE_S", 100.0)


@pytest.mark.parametrize(
    ("environment_of", "mode"),
    [
        ({}, "offline"),
        ({"WANDB_API_KEY": "key"}, "online"),
        ({"WANDB_API_KEY": "key", "WANDB_MODE": "offline"}, "offline"),
        ({"WANDB_MODE": "disabled"}, "disabled"),
        ({"WANDB_API_KEY": "key", "WANDB_MODE": "dryrun"}, "offline"),
        ({"WANDB_API_KEY": "key", "WANDB_MODE": " Offline"}, "offline"),
        ({"WANDB_MODE": "run"}, "online"),
        ({"NETRC": "machine api.wandb.ai login user password key"}, "online"),
        ({"NETRC": "machine wandb.example.org login user password key"}, "offline"),
        ({"NETRC": "not a netrc file"}, "offline"),
    ],
)
def test_wandb_is_online_only_with_a_key(
    environment_of: dict[str, str], mode: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("HOME", str(tmp_path))
    if login := environment_of.get("NETRC"):
        (tmp_path / ".netrc").write_text(login)
        (tmp_path / ".netrc").chmod(0o600)
    for name, value in environment_of.items():
        monkeypatch.setenv(name, value)
    assert wandb_mode() == mode


def test_an_unknown_wandb_mode_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WANDB_MODE", "onlin")
    monkeypatch.setattr(wandb_mirror, "start_module", lambda *a, **k: pytest.fail("a client was started"))
    with pytest.raises(ValueError, match="WANDB_MODE: 'onlin' must be one of online, "):
        attempt(Storage(str(tmp_path)), range(1))


def lines_of(steps: range, keys: str = "a") -> list[str]:
    return [json.dumps({"step": step, "key": keys}) for step in steps]


def test_a_log_that_grows_and_is_shortened_is_sent_once():
    unsent = UnsentLines(-1.0)
    first = lines_of(range(10, 200, 10))
    assert unsent.pop_new(first[:5]) == first[:5] and unsent.pop_new(first) == first[5:] and unsent.pop_new(first) == []
    both = [*first, json.dumps({"step": 190, "validation": 1})]  # a second line of the same step
    assert unsent.pop_new(both) == both[-1:]
    # A resume at step 100 with a shorter log interval. It is noticed before or after the log is longer than it was.
    again = lines_of(range(10, 101, 10)) + lines_of(range(101, 230), "b")
    assert unsent.pop_new(again[:10]) == []
    assert [json.loads(line)["step"] for line in unsent.pop_new(again)] == list(range(191, 230))
    late = UnsentLines(190.0)
    assert late.pop_new(first) == [] and len(late.pop_new(again)) == 39


def test_work_continues_with_one_warning_if_the_client_cannot_be_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def start_module(*_: object, **__: object) -> None:
        raise BlockingIOError("Resource temporarily unavailable")

    monkeypatch.setattr(wandb_mirror, "start_module", start_module)
    wandb_mirror._client.stop()
    with caplog.at_level(logging.WARNING):
        attempt(Storage(str(tmp_path)), range(1, 5))
    failed, offline = (record.message for record in caplog.records)
    assert "W&B failed (its client cannot be started" in failed and "no offline run for W&B was written" in offline


def test_a_signal_while_the_last_metrics_are_sent_writes_an_offline_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    written: list[float] = []

    def interrupted(self: object, limit_s: float) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(wandb_mirror._Mirror, "finish", interrupted)
    monkeypatch.setattr(wandb_mirror._Client, "begin", lambda self, request: wandb_mirror._PendingRequest(None))
    monkeypatch.setattr(wandb_mirror, "_write_offline", lambda tracker, limit_s: written.append(limit_s))
    with pytest.raises(KeyboardInterrupt):
        attempt(Storage(str(tmp_path)), range(1, 5))
    assert written == [wandb_mirror._FINISH_LIMIT_AFTER_SIGNAL_S]


@pytest.mark.slow
def test_an_offline_run_contains_the_steps_of_all_attempts_but_not_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("WANDB_MODE", "offline")
    storage = Storage(str(tmp_path))
    with pytest.raises(RuntimeError, match="killed"):
        attempt(storage, range(1, 5), killed=True)
    assert offline_steps(storage) == [1, 2, 3, 4]
    attempt(storage, range(3, 7), resume_at=2)
    assert offline_steps(storage) == [1, 2, 3, 4, 5, 6]
    assert not any(KEY.encode() in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


@pytest.mark.slow
def test_an_online_run_that_was_killed_and_resumed_has_each_step_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    with serving() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        wandb_mirror._client.stop()
        storage = Storage(str(tmp_path))
        with pytest.raises(RuntimeError, match="killed"):
            attempt(storage, range(1, 5), killed=True)
        wandb_mirror._client.stop()
        attempt(storage, range(3, 7), resume_at=2)
        assert server.steps("run-1") == [1, 2, 3, 4, 5, 6]
    assert not storage.glob("wandb/*"), "no offline run is written if W&B has all lines"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with four blocks."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(place)]).returncode:
        pytest.skip("may not mount")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def closed_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault", ["unreachable", "silent", "unauthorized", "crashing", "temporary disk full", "W&B's disk full"]
)
def test_a_failure_of_wandb_is_one_warning_and_the_offline_run_can_be_synced(
    fault: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    request: pytest.FixtureRequest,
):
    with serving(fault if fault in ("unauthorized", "crashing") else "good") as server, socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()  # a client that connects gets no answer
        urls = {"unreachable": closed_port(), "silent": f"http://127.0.0.1:{deaf.getsockname()[1]}"}
        monkeypatch.setenv("WANDB_BASE_URL", urls.get(fault, server.url))
        if fault.endswith("disk full"):
            variable = "WANDB_DIR" if fault.startswith("W&B") else "TMPDIR"
            monkeypatch.setenv(variable, str(request.getfixturevalue("small_disk")))
        if fault == "silent":
            monkeypatch.setattr(wandb_mirror, "_START_LIMIT_AFTER_FAILURE_S", 3.0)
            monkeypatch.setattr(wandb_mirror._client, "has_failed", True)
        wandb_mirror._client.stop()
        storage = Storage(str(tmp_path / "out"))
        with caplog.at_level(logging.WARNING):
            attempt(storage, range(1, 5))
        (warning,) = [record.message for record in caplog.records]
        assert "W&B failed" in warning and f"wandb sync {storage.url}/wandb/offline-run-*" in warning
        assert offline_steps(storage) == [1, 2, 3, 4]
    wandb_mirror._client.stop()
    assert synced(storage) == [1, 2, 3, 4]


def synced(storage: Storage) -> list[float]:
    """Return the steps that a server has after `wandb sync` of the offline run."""
    with serving() as server:
        runs = [str(path) for path in Path(storage.root).glob("wandb/offline-run-*")]
        environment = {**os.environ, "WANDB_BASE_URL": server.url}
        command = [str(Path(sys.executable).with_name("wandb")), "sync", *runs]
        subprocess.run(command, env=environment, check=True, capture_output=True, timeout=200)
        return server.steps("run-1")


def test_an_unreachable_server_is_an_error_at_once(monkeypatch: pytest.MonkeyPatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    closed = closed_port()
    with pytest.raises(OSError, match=rf"{closed} cannot be reached: .*refused"):
        check_reachable(closed)
    with pytest.raises(OSError, match="https://no-such-host.invalid cannot be reached"):
        check_reachable("https://no-such-host.invalid")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    check_reachable(closed)  # with a proxy the server is not checked
    with serving() as server:
        monkeypatch.delenv("http_proxy")
        check_reachable(server.url)


@pytest.mark.slow
def test_an_offline_run_is_written_to_an_output_on_object_storage(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("WANDB_MODE", "offline")
    wandb_mirror._client.stop()  # the running client has another environment
    storage = Storage(f"{s3}/pretrain-1")
    attempt(storage, range(1, 5))
    wandb_mirror._client.stop()
    for name in storage.glob("wandb/offline-run-*/*.wandb"):
        target = tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(storage.read_bytes(name))
    assert offline_steps(Storage(str(tmp_path))) == [1, 2, 3, 4]
    assert synced(Storage(str(tmp_path))) == [1, 2, 3, 4]


@pytest.mark.slow
def test_every_node_of_a_joined_cluster_is_sampled_even_if_it_joins_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(wandb_mirror, "_NODES_INTERVAL_S", 0.5)
    monkeypatch.setattr(wandb_mirror, "_FINISH_LIMIT_AFTER_SIGNAL_S", 60.0)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 100_000_000})
    with serving() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        wandb_mirror._client.stop()
        one = tracker(Storage(str(tmp_path / "out")))
        scratch = tmp_path / "scratch"
        try:
            environment = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY, "WANDB_DIR": str(scratch)}
            with connect(cluster.address, environment=environment), mirror_to_wandb(one):
                cluster.add_node(num_cpus=1, object_store_memory=100_000_000)
                one.log(1, {"train/loss": 1.0})
                deadline = time.monotonic() + 120
                while len(server.labels("run-1")) < 2 and time.monotonic() < deadline:
                    time.sleep(0.5)
                one.close()
        finally:
            cluster.shutdown()
        assert len(server.labels("run-1")) == 2 and "driver" in server.labels("run-1")
        assert server.steps("run-1") == [1]
        assert list(scratch.iterdir()) == []


@pytest.mark.slow
def test_an_offline_run_of_many_blocks_can_be_read_and_a_cut_file_is_detected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("WANDB_MODE", "offline")
    storage = Storage(str(tmp_path))
    attempt(storage, range(1500))
    assert offline_steps(storage) == list(range(1500))
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    file.write_bytes(file.read_bytes()[:40_000])
    assert 0 < len(read_history(file)) < 1500
