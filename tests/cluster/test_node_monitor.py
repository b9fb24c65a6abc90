"""Deaths, stops and progress of real processes, monitored as those of a stage are."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cluster import node_monitor
from cluster.cgroups import MemoryGroup, cgroup_of
from cluster.heartbeat import ProcessRecord
from cluster.node_monitor import NodeMonitor, ProcessEvent, out_of_memory_cause
from cluster.process_info import ProcessInfo

ROOT = Path(__file__).parents[2]
PROGRAM = """
import os, sys, time
from pathlib import Path
from cluster import heartbeat
heartbeat.node_folder, heartbeat.node_ip = lambda: Path(sys.argv[1]), lambda: "192.0.2.1"
def stand():
    open(sys.argv[1] + "/begun", "w").close()
    while True: time.sleep(0.1)
{before}
with heartbeat.monitored("rlhf", "generator", 2):
    {body}
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[str], subprocess.Popen[bytes]]]:
    """Starts a monitored program whose stderr is a log, and returns when it has begun."""
    started: list[subprocess.Popen[bytes]] = []

    def begin(body: str = "stand()", before: str = "") -> subprocess.Popen[bytes]:
        folder = tmp_path / "records"
        folder.mkdir(exist_ok=True)
        with (tmp_path / "log").open("wb") as log:
            program = PROGRAM.format(body=body, before=before)
            command = [sys.executable, "-X", "faulthandler", "-c", program, str(folder)]
            started.append(subprocess.Popen(command, stderr=log, cwd=ROOT))
        while body == "stand()" and not (folder / "begun").exists():
            time.sleep(0.05)
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.wait()


def leave(folder: Path, place: ProcessInfo) -> None:
    """The file of a process that tells no stack."""
    ProcessRecord(place, log_death=False, log_offset=0, handles_stack_signal=False).write(folder / f"{place.pid}.json")


def poll(node: NodeMonitor, until: Callable[[list[ProcessEvent]], bool], *, limit_s: float = 60) -> list[ProcessEvent]:
    """The events that are reported until they are enough."""
    seen: list[ProcessEvent] = []
    deadline = time.monotonic() + limit_s
    while not until(seen):
        assert time.monotonic() < deadline, seen
        seen += node.poll().events
        time.sleep(0.05)
    return seen


def test_a_killed_process_is_seen_with_its_place_and_log(start: Callable, tmp_path: Path) -> None:
    process, node = start(), NodeMonitor(tmp_path / "records")
    node.poll()
    process.kill()
    process.wait()
    (death,) = poll(node, bool)
    assert (death.kind, death.cause, death.is_cause_certain) == ("dead", "was killed by signal 9 (SIGKILL)", False)
    assert str(death.process).startswith("rlhf: generator 2 on node ") and death.process.pid == process.pid
    assert death.process.log == str(tmp_path / "log")


def test_a_crash_is_reported_by_its_signal_though_it_was_never_seen_alive(start: Callable, tmp_path: Path) -> None:
    start("os.kill(os.getpid(), 11)").wait()
    (death,) = poll(NodeMonitor(tmp_path / "records"), bool)
    assert death.is_cause_certain and death.cause.startswith("was killed by signal 11 (SIGSEGV)")


def test_an_end_and_an_exception_are_no_deaths(start: Callable, tmp_path: Path) -> None:
    ended, raised = start("pass"), start("raise RuntimeError('its own way of being told')")
    ended.wait(), raised.wait()
    node = NodeMonitor(tmp_path / "records")
    first = node.poll()
    assert first.events == [] and node.poll().events == []
    assert [place.pid for place in first.new_processes] == [raised.pid]  # whose exception it was is still known


def test_a_stopped_process_is_reported_once_and_when_it_goes_on(
    start: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_monitor, "_MIN_STOP_S", 0.5)
    process, node = start(), NodeMonitor(tmp_path / "records")
    process.send_signal(signal.SIGSTOP)
    assert [one.kind for one in poll(node, bool)] == ["stopped"]
    time.sleep(0.7)
    assert node.poll().events == []
    process.send_signal(signal.SIGCONT)
    assert [one.kind for one in poll(node, bool)] == ["continued"]


def test_the_stack_of_a_process_that_stands_still_names_the_line(start: Callable, tmp_path: Path) -> None:
    process, node = start(), NodeMonitor(tmp_path / "records")
    node.poll()
    ((place, stack),) = node.read_stacks()
    assert place.pid == process.pid and "in stand" in stack


def test_a_process_is_asked_for_its_stack_only_where_that_is_not_its_end(start: Callable, tmp_path: Path) -> None:
    """Files of a process that had the same id before may lie there."""
    old = "Path(sys.argv[1], f'{os.getpid()}.stack').write_text('of another process')"
    process, node = start(before=old), NodeMonitor(tmp_path / "records")
    with subprocess.Popen(["sleep", "600"]) as other:  # as a server that we start and did not write
        leave(tmp_path / "records", ProcessInfo(stage="serve", role="server", index=0, pid=other.pid))
        (tmp_path / "records" / f"{other.pid}.stack").write_text("of another process")
        node.poll()
        ((place, stack),) = node.read_stacks()
        assert place.pid == process.pid and "in stand" in stack
        assert process.poll() is None and other.poll() is None
        other.kill()


def test_a_later_task_of_the_same_process_is_known_by_its_own_number(start: Callable, tmp_path: Path) -> None:
    wait = "while not Path(sys.argv[1], 'go').exists(): time.sleep(0.05)"
    later = "with heartbeat.monitored('rlhf', 'generator', 3):\n    stand()"
    process = start("pass", before=f"with heartbeat.monitored('rlhf', 'generator', 1):\n    {wait}\n{later}")
    node = NodeMonitor(tmp_path / "records")
    while not (first := node.poll()).running_processes:
        time.sleep(0.05)
    node.poll()
    (tmp_path / "records" / "go").touch()
    while not (tmp_path / "records" / "begun").exists():
        time.sleep(0.05)
    second = node.poll()
    seen = (*first.running_processes, *second.new_processes, *second.running_processes)
    assert [process.index for process in seen] == [1, 3, 3]
    assert second.has_progress
    process.kill()
    process.wait()
    (death,) = poll(node, bool)
    assert death.process.index == 3


def test_what_is_ended_on_purpose_is_no_death(start: Callable, tmp_path: Path) -> None:
    process, node = start(), NodeMonitor(tmp_path / "records")
    node.ignore_exits("generator", 2)
    process.kill()
    process.wait()
    assert node.poll().events == []


def test_a_kill_for_want_of_memory_is_reported_with_limit_and_peak() -> None:
    group = MemoryGroup("/sys/fs/cgroup/pod/one", num_oom_kills=1, limit_bytes=2 << 30, peak_bytes=2 << 30)
    assert out_of_memory_cause(group, group, peak_bytes=1_500 << 20) == (
        "ran out of memory: the kernel killed it in control group /sys/fs/cgroup/pod/one (limit 2.00 GiB, its peak "
        "2.00 GiB); this process's peak was 1.46 GiB"
    )
    above = MemoryGroup("/sys/fs/cgroup/pod", num_oom_kills=1, limit_bytes=8 << 30, peak_bytes=None)
    group = replace(group, limit_bytes=None)
    assert "/pod/one (limit 8.00 GiB of /sys/fs/cgroup/pod)" in out_of_memory_cause(group, above, peak_bytes=0)
    assert "/pod/one (no limit but the machine's memory, its peak 2.00 GiB)" in out_of_memory_cause(
        group, None, peak_bytes=0
    )


def test_a_process_killed_in_a_memory_control_group_ran_out_of_memory_cause(start: Callable, tmp_path: Path) -> None:
    own = cgroup_of(os.getpid())
    group = own / f"raymill-test-{os.getpid()}" if own else None
    try:
        assert group is not None
        group.mkdir()
    except (OSError, AssertionError):
        pytest.skip("this process may not make a memory control group")
    limit = "memory.limit_in_bytes" if (group / "memory.limit_in_bytes").exists() else "memory.max"
    (group / limit).write_text(str(64 << 20))
    process = start(
        f"stand_in = [open('{group}/cgroup.procs', 'w').write(str(os.getpid())), time.sleep(2), os.urandom(1 << 28)]"
    )
    node = NodeMonitor(tmp_path / "records")
    (death,) = poll(node, bool)
    process.wait()
    group.rmdir()
    assert death.is_cause_certain and "ran out of memory" in death.cause and "(limit 64 MiB" in death.cause


def test_a_damaged_log_path_does_no_harm(tmp_path: Path) -> None:
    node = NodeMonitor(tmp_path)
    place = ProcessInfo(stage="serve", role="server", index=0, pid=2**22 + 1, log=str(tmp_path / "gone"))
    leave(tmp_path, place)
    (death,) = poll(node, bool)
    assert death.log_tail == "" and death.process == place
