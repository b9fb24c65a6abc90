"""A failure of any process on any node is explained in one sentence."""

from __future__ import annotations

import os
import subprocess
import time
from typing import Any

import psutil
import pytest
import ray
from ray.cluster_utils import Cluster
from ray.exceptions import NodeDiedError, RayActorError, RayTaskError

from cluster import signals, stage_monitor
from cluster.cgroups import MemoryUse
from cluster.failures import explain
from cluster.heartbeat import monitored_class
from cluster.node_monitor import NodeMonitor
from cluster.process_info import ProcessInfo
from cluster.session import connect
from cluster.stage_monitor import StageMonitor
from cluster.worker_errors import WorkerError

NO_PID = 2**22 + 1
"""A process id that no process has, because it is larger than Linux allows."""


def test_two_processes_with_one_process_id_are_told_apart_by_their_nodes(
    fake_nodes: Any, monitor: StageMonitor
) -> None:
    first, second = fake_nodes.add_process("a", 1), fake_nodes.add_process("b", 2)
    text = f"ray::Generator.generate() (pid={NO_PID}, ip={first.ip}, actor_id=0f)\nKeyError: 4"
    error = RayTaskError("generate", text, KeyError(4), "ray::Generator", pid=NO_PID, ip=first.ip).as_instanceof_cause()
    assert explain(error).sentence.startswith("rlhf: generator 1 on node a ")
    report = f"The actor died unexpectedly before finishing this task.\n\tpid: {NO_PID}\n\tip: {second.ip}\n"
    sentence = explain(RayActorError(error_msg=report)).sentence
    assert sentence == f"rlhf: generator 2 on node b (pid {NO_PID}) was killed by signal 9 (SIGKILL)"
    assert monitor.pop_death(pid=NO_PID, ip=second.ip, timeout_s=0.0) is None
    assert monitor.pop_death(pid=NO_PID, ip=first.ip, timeout_s=0.0)


def test_an_exception_is_explained_with_the_process_that_raised_it(monitor: StageMonitor) -> None:
    process_info = ProcessInfo(stage="rlhf", role="task", index=4, node="a", pid=5)
    sentence = explain(WorkerError(KeyError("x"), "", process_info)).sentence
    assert sentence == "rlhf: task 4 on node a (pid 5) raised KeyError: 'x'"


def test_a_lost_node_is_reported_with_its_last_memory_use(
    fake_nodes: Any, monitor: StageMonitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(NodeMonitor, "_memory_use", lambda self: MemoryUse(used_bytes=8 * 1000**3, limit_bytes=8 << 30))
    monkeypatch.setattr(monitor, "pop_death", lambda **_: None)
    with subprocess.Popen(["sleep", "600"]) as process:
        process_info = fake_nodes.add_process("b", 1, pid=process.pid)
        monitor._poll()
        process.kill()
    report = f"\tpid: {process_info.pid}\n\tip: {process_info.ip}\nThe actor is temporarily unavailable: RpcError"
    assert "died for an unknown reason" in explain(RayActorError(error_msg=report)).sentence
    used = "was lost with its node; the last report of its node showed 7.45 GiB of 8.00 GiB of memory in use"
    for gone in (lambda: setattr(fake_nodes.nodes["b"], "is_gone", True), lambda: fake_nodes.names.clear()):
        gone()
        monitor._poll()
        monitor._remote_monitors.update_nodes()
        sentence = explain(RayActorError(error_msg=report), role="generator", index=1).sentence
        assert sentence == f"rlhf: generator 1 on node b (pid {process_info.pid}) {used}"
    report = (
        f"\tpid: {process_info.pid}\n\tip: {process_info.ip}\nThe actor died because its node has died. Node Id: 04d3"
    )
    assert (
        explain(RayActorError(error_msg=report)).sentence
        == f"rlhf: generator 1 on node b (pid {process_info.pid}) {used}"
    )
    report = (
        "Task failed because the node it was running on is dead or unavailable. "
        f"Node IP: {process_info.ip}, node ID: 04d3. This can happen if the node was preempted"
    )
    assert explain(NodeDiedError(report)).sentence == f"rlhf: a worker on node {process_info.ip} {used}"


@pytest.mark.slow
def test_a_death_and_the_loss_of_a_node_are_explained_in_a_real_cluster() -> None:
    class Generator:
        def pid(self) -> int:
            return os.getpid()

    def start() -> Any:
        actor: Any = ray.remote(monitored_class(Generator, "rlhf", "generator", 0)).options(resources={"there": 1.0})
        return actor.remote()

    def explanation(actor: Any) -> str:
        with pytest.raises(RayActorError) as caught:
            while ray.get(actor.pid.remote()):  # A process outlives its raylet for a moment.
                time.sleep(0.1)
        return explain(caught.value, role="generator", index=0).sentence

    def wait_until_monitored(pid: int) -> ProcessInfo:
        while (monitor := stage_monitor.current_monitor()) is None or (
            process_info := monitor.find_process(pid=pid)
        ) is None:
            time.sleep(0.1)
        return process_info

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 100_000_000})
    try:
        second_node = cluster.add_node(num_cpus=1, resources={"there": 1.0}, object_store_memory=100_000_000)
        with connect(cluster.address), stage_monitor.monitor_stage("rlhf"):
            actor: Any = start()
            pid: Any = ray.get(actor.pid.remote())
            process_info = wait_until_monitored(pid)
            assert process_info.ip == ray.util.get_node_ip_address()
            monitors = stage_monitor.current_monitor()._remote_monitors  # pyright: ignore[reportOptionalMemberAccess]
            (remote,) = monitors._remotes.values()
            remote.monitor.end()  # A new monitor is started, and it observes the death.
            while remote in monitors._remotes.values() or not monitors.poll():
                time.sleep(0.1)
            os.kill(pid, signals.signal.SIGKILL)
            assert explanation(actor).startswith(f"{process_info} was killed by signal 9 (SIGKILL)")
            actor = start()
            pid = ray.get(actor.pid.remote())
            process_info = wait_until_monitored(pid)
            (raylet,) = (info.process.pid for info in second_node.all_processes["raylet"])
            for process in (*psutil.Process(raylet).children(recursive=True), psutil.Process(raylet)):
                process.kill()
            assert explanation(actor).startswith(f"{process_info} was lost with its node")
    finally:
        cluster.shutdown()
