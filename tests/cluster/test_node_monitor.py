"""A node monitor reports deaths, stops and progress of real processes."""

from __future__ import annotations

import logging
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
def hang():
    open(sys.argv[1] + "/begun", "w").close()
    while True: time.sleep(0.1)
{before}
with heartbeat.monitored("rlhf", "generator", 2):
    {body}
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[str], subprocess.Popen[bytes]]]:
    """A function that starts a monitored program with a log as stderr, and waits until the program runs."""
    started: list[subprocess.Popen[bytes]] = []

    def start_program(body: str = "hang()", before: str = "") -> subprocess.Popen[bytes]:
        folder = tmp_path / "records"
        folder.mkdir(exist_ok=True)
        with (tmp_path / "log").open("wb") as log:
            program = PROGRAM.format(body=body, before=before)
            command = [sys.executable, "-X", "faulthandler", "-c", program, str(folder)]
            started.append(subprocess.Popen(command, stderr=log, cwd=ROOT))
        while body == "hang()" and not (folder / "begun").exists():
            time.sleep(0.05)
        return started[-1]

    yield start_program
    for process in started:
        process.kill()
        process.wait()


def write_record(folder: Path, process_info: ProcessInfo) -> None:
    """Write the record of a process that does not handle the stack signal."""
    ProcessRecord(process_info, log_death=False, log_offset=0, handles_stack_signal=False).write(
        folder / f"{process_info.pid}.json"
    )


def poll(node: NodeMonitor, until: Callable[[list[ProcessEvent]], bool], *, limit_s: float = 60) -> list[ProcessEvent]:
    """Poll the monitor until `until` accepts the list of events, and return the list."""
    seen: list[ProcessEvent] = []
    deadline = time.monotonic() + limit_s
    while not until(seen):
        assert time.monotonic() < deadline, seen
        seen += node.poll().events
        time.sleep(0.05)
    return seen


def test_a_killed_process_is_reported_with_its_name_and_log(start: Callable, tmp_path: Path) -> None:
    process, node = start(), NodeMonitor(tmp_path / "records")
    node.poll()
    process.kill()
    process.wait()
    (death,) = poll(node, bool)
    assert (death.kind, death.cause, death.is_cause_certain) == ("dead", "was killed by signal 9 (SIGKILL)", False)
    assert str(death.process).startswith("rlhf: generator 2 on node ") and death.process.pid == process.pid
    assert death.process.log == str(tmp_path / "log")


def test_a_crash_before_the_first_poll_is_reported_with_its_signal(start: Callable, tmp_path: Path) -> None:
    start("os.kill(os.getpid(), 11)").wait()
    (death,) = poll(NodeMonitor(tmp_path / "records"), bool)
    assert death.is_cause_certain and death.cause.startswith("was killed by signal 11 (SIGSEGV)")


def test_a_normal_end_and_an_exception_are_not_deaths(start: Callable, tmp_path: Path) -> None:
    ended, raised = start("pass"), start("raise RuntimeError('reported by its receiver')")
    ended.wait(), raised.wait()
    node = NodeMonitor(tmp_path / "records")
    first = node.poll()
    assert first.events == [] and node.poll().events == []
    assert [process_info.pid for process_info in first.new_processes] == [raised.pid]  # The process can still be named.


def test_a_message_for_the_driver_is_reported_once(start: Callable, tmp_path: Path) -> None:
    messages = "heartbeat.log_on_driver('first'); heartbeat.log_on_driver('second', level=20)"
    start(messages).wait()
    node = NodeMonitor(tmp_path / "records")
    assert node.poll().messages == [("first", logging.WARNING), ("second", logging.INFO)]
    assert node.poll().messages == []


def test_an_exception_of_an_actors_constructor_is_not_a_death(start: Callable, tmp_path: Path) -> None:
    program = "class Actor:\n    def __init__(self): raise RuntimeError('reported by Ray')"
    create = "heartbeat.monitored_class(Actor, 'rlhf', 'scorer', 0, log_death=True)()"
    start("pass", before=f"{program}\n{create}").wait()
    node = NodeMonitor(tmp_path / "records")
    first = node.poll()
    assert first.events == [] and [process_info.role for process_info in first.new_processes] == ["scorer"]


def test_a_stopped_process_is_reported_once_and_again_when_it_continues(
    start: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_monitor, "_MIN_STOP_S", 0.5)
    process, node = start(), NodeMonitor(tmp_path / "records")
    process.send_signal(signal.SIGSTOP)
    assert [event.kind for event in poll(node, bool)] == ["stopped"]
    time.sleep(0.7)
    assert node.poll().events == []
    process.send_signal(signal.SIGCONT)
    assert [event.kind for event in poll(node, bool)] == ["continued"]


def test_the_stack_of_a_hanging_process_names_its_function(start: Callable, tmp_path: Path) -> None:
    process, node = start(), NodeMonitor(tmp_path / "records")
    node.poll()
    ((process_info, stack),) = node.read_stacks()
    assert process_info.pid == process.pid and "in hang" in stack


def test_only_processes_that_handle_the_stack_signal_get_it(start: Callable, tmp_path: Path) -> None:
    # The folder may contain files of an earlier process with the same id.
    old = "Path(sys.argv[1], f'{os.getpid()}.stack').write_text('of another process')"
    process, node = start(before=old), NodeMonitor(tmp_path / "records")
    with subprocess.Popen(["sleep", "600"]) as other:  # It stands for a server that we did not write.
        write_record(tmp_path / "records", ProcessInfo(stage="serve", role="server", index=0, pid=other.pid))
        (tmp_path / "records" / f"{other.pid}.stack").write_text("of another process")
        node.poll()
        ((process_info, stack),) = node.read_stacks()
        assert process_info.pid == process.pid and "in hang" in stack
        assert process.poll() is None and other.poll() is None
        other.kill()


def test_a_later_task_of_the_same_process_is_reported_with_its_own_index(start: Callable, tmp_path: Path) -> None:
    wait = "while not Path(sys.argv[1], 'go').exists(): time.sleep(0.05)"
    later = "with heartbeat.monitored('rlhf', 'generator', 3):\n    hang()"
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


def test_an_ignored_exit_is_not_a_death(start: Callable, tmp_path: Path) -> None:
    process, node = start(), NodeMonitor(tmp_path / "records")
    node.ignore_exits("generator", 2)
    process.kill()
    process.wait()
    assert node.poll().events == []


def test_an_oom_kill_is_reported_with_limit_and_peak() -> None:
    group = MemoryGroup("/sys/fs/cgroup/pod/one", num_oom_kills=1, limit_bytes=2 << 30, peak_bytes=2 << 30)
    assert out_of_memory_cause(group, group, peak_bytes=1_500 << 20) == (
        "ran out of memory: the kernel killed it in control group /sys/fs/cgroup/pod/one (limit 2.00 GiB, its peak "
        "2.00 GiB); this process's peak was 1.46 GiB"
    )
    parent = MemoryGroup("/sys/fs/cgroup/pod", num_oom_kills=1, limit_bytes=8 << 30, peak_bytes=None)
    group = replace(group, limit_bytes=None)
    assert "/pod/one (limit 8.00 GiB of /sys/fs/cgroup/pod)" in out_of_memory_cause(group, parent, peak_bytes=0)
    assert "/pod/one (no limit but the machine's memory, the group's peak 2.00 GiB)" in out_of_memory_cause(
        group, None, peak_bytes=0
    )


def test_a_process_that_exceeds_the_limit_of_its_control_group_ran_out_of_memory(
    start: Callable, tmp_path: Path
) -> None:
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
        f"_ = [open('{group}/cgroup.procs', 'w').write(str(os.getpid())), time.sleep(2), os.urandom(1 << 28)]"
    )
    node = NodeMonitor(tmp_path / "records")
    (death,) = poll(node, bool)
    process.wait()
    group.rmdir()
    assert death.is_cause_certain and "ran out of memory" in death.cause and "(limit 64 MiB" in death.cause


def test_a_missing_log_is_no_error(tmp_path: Path) -> None:
    node = NodeMonitor(tmp_path)
    process_info = ProcessInfo(stage="serve", role="server", index=0, pid=2**22 + 1, log=str(tmp_path / "gone"))
    write_record(tmp_path, process_info)
    (death,) = poll(node, bool)
    assert death.log_tail == "" and death.process == process_info
