"""A stage waits for the nodes that it needs, says for what, and ends clearly when they do not come."""

import importlib
import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster
from ray.util.placement_group import remove_placement_group

from cluster import capacity
from cluster.capacity import (
    capacity_wait_limit,
    is_waiting_for_capacity,
    missing_capacity,
    reserve_capacity,
    wait_for_capacity,
    wait_for_placement_group,
)
from cluster.placement import Execution, Placement
from cluster.session import connect


@pytest.mark.slow
def test_in_a_cluster_that_the_command_started_nothing_is_waited_for() -> None:
    with connect("local", num_cpus=1), capacity_wait_limit(600):
        started = time.monotonic()
        for bundles in ([{"CPU": 1.0}] * 2, [{"GPU": 1.0}]):
            with pytest.raises(ValueError, match="does not fit: needs"):
                wait_for_capacity(bundles, "execution")
        wait_for_capacity([{"CPU": 0.5}] * 2, "execution")
        wait_for_capacity([{}], "execution")
        assert time.monotonic() - started < 30
        assert not ray.util.placement_group_table() or all(
            group["state"] == "REMOVED" for group in ray.util.placement_group_table().values()
        )


@pytest.fixture(scope="module")
def head() -> Iterator[Cluster]:
    """A cluster whose head has no CPUs, joined by this process; nodes can be added."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 100_000_000})
    try:
        with connect(cluster.address):
            yield cluster
    finally:
        cluster.shutdown()


@pytest.mark.slow
def test_a_node_that_never_comes_ends_the_wait_at_its_limit(head: Cluster) -> None:
    started = time.monotonic()
    with capacity_wait_limit(5), pytest.raises(ValueError) as caught:
        wait_for_capacity([{"GPU": 1.0, "CPU": 1.0}] * 8, "pretrain: execution.placement")
    assert 5 <= time.monotonic() - started < 60
    assert "pretrain: execution.placement: does not fit: needs 8 GPUs, the cluster has 0, after a wait of" in str(
        caught.value
    )


def test_a_node_that_came_during_the_wait_is_asked_and_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    removed: list[str] = []

    def refuse() -> None:
        raise ValueError("store: runs is not seen on node 10.0.0.2")

    rays = importlib.import_module("ray.util.placement_group")  # by name: a function of this name hides the module
    monkeypatch.setattr(rays, "placement_group", lambda bundles, strategy: "group")
    monkeypatch.setattr(rays, "remove_placement_group", removed.append)
    monkeypatch.setattr(capacity, "check_can_fit", lambda bundles, field: None)
    monkeypatch.setattr(capacity, "_wait", lambda group, bundles, field: None)
    monkeypatch.setattr(capacity, "check_new_nodes", refuse)
    with pytest.raises(ValueError, match="is not seen on node 10.0.0.2"):
        reserve_capacity([{"CPU": 1.0}], "execution")
    assert removed == ["group"]


@pytest.mark.slow
def test_a_stage_waits_for_a_node_that_comes_later_and_says_for_what(
    head: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with capacity_wait_limit(120), ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(wait_for_capacity, Placement(workers=2).bundles, "sft: execution.placement")
        time.sleep(5.0)
        assert not waiting.done()
        head.add_node(num_cpus=2, object_store_memory=100_000_000)
        waiting.result()
    said = [record.getMessage() for record in caplog.records if record.name == "cluster.capacity"]
    assert said[0].endswith("waiting for resources, at most 2 min 0 s: needs 2 CPUs, the cluster has 0"), said
    assert said[-1].startswith("sft: execution.placement: has its resources after"), said

    # What is there and taken is waited for too, and named as that.
    held = reserve_capacity([{"CPU": 2.0}], "others")
    release = threading.Timer(4.0, lambda: remove_placement_group(held))
    release.start()
    caplog.clear()
    wait_for_capacity([{"CPU": 1.0}], "evaluate: execution.scorers")
    release.join()
    assert "needs 1 CPU, of the cluster's 2 only 0 are free" in caplog.text

    # More on one node than any node has, though the cluster as a whole has as much.
    head.add_node(num_cpus=2, object_store_memory=100_000_000)
    with pytest.raises(ValueError, match=r"a worker needs 3 CPUs on one node, but none of the cluster's \d nodes"):
        wait_for_capacity([{"CPU": 3.0}], "rlhf: execution")


def test_a_negative_wait_is_refused() -> None:
    with pytest.raises(ValueError, match="execution.wait_s: -1 must not be negative"):
        Execution(wait_s=-1)


def test_what_a_stage_has_had_and_the_cluster_has_no_more_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [{"Alive": True, "Resources": {"CPU": 4.0}}, {"Alive": True, "Resources": {"CPU": 1.0}}]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    group: Any = SimpleNamespace(wait=lambda timeout_seconds: True)
    wait_for_placement_group(group, [{"CPU": 9.0}], "outside of a stage")
    assert missing_capacity() == ""
    with capacity_wait_limit(5):
        wait_for_placement_group(group, [{"CPU": 1.0}], "cleaning")
        wait_for_placement_group(group, [{"CPU": 2.0}] * 2, "execution (generators)")
        assert missing_capacity() == "" and not is_waiting_for_capacity()
        nodes[0]["Alive"] = False
        assert missing_capacity() == "execution (generators): needs 4 CPUs, the cluster has 1"
    assert missing_capacity() == ""
