"""A stage waits for the nodes that it needs, reports what it waits for, and fails if they do not join in time."""

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
def test_a_local_cluster_never_grows_so_a_shortage_fails_at_once() -> None:
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
    """A cluster whose head has no CPUs. This process has joined it, and tests add nodes."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 100_000_000})
    try:
        with connect(cluster.address):
            yield cluster
    finally:
        cluster.shutdown()


@pytest.mark.slow
def test_the_wait_fails_at_its_limit_if_no_node_joins(head: Cluster) -> None:
    started = time.monotonic()
    with capacity_wait_limit(5), pytest.raises(ValueError) as caught:
        wait_for_capacity([{"GPU": 1.0, "CPU": 1.0}] * 8, "pretrain: execution.placement")
    assert 5 <= time.monotonic() - started < 60
    assert "pretrain: execution.placement: does not fit: needs 8 GPUs, the cluster has 0, after a wait of" in str(
        caught.value
    )


def test_a_node_that_joined_during_the_wait_must_see_the_paths_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    removed: list[str] = []

    def reject_new_node() -> None:
        raise ValueError("source: a.txt does not exist on node 10.0.0.2")

    # Imported by its full name, because in `ray.util` a function of the same name hides the module.
    ray_placement_group = importlib.import_module("ray.util.placement_group")
    monkeypatch.setattr(ray_placement_group, "placement_group", lambda bundles, strategy: "group")
    monkeypatch.setattr(ray_placement_group, "remove_placement_group", removed.append)
    monkeypatch.setattr(capacity, "check_can_fit", lambda bundles, field: None)
    monkeypatch.setattr(capacity, "_wait", lambda group, bundles, field: None)
    monkeypatch.setattr(capacity, "check_new_nodes", reject_new_node)
    with pytest.raises(ValueError, match="does not exist on node 10.0.0.2"):
        reserve_capacity([{"CPU": 1.0}], "execution")
    assert removed == ["group"]


@pytest.mark.slow
def test_a_stage_waits_for_a_node_that_joins_later_and_reports_the_wait(
    head: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with capacity_wait_limit(120), ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(wait_for_capacity, Placement(workers=2).bundles, "sft: execution.placement")
        time.sleep(5.0)
        assert not waiting.done()
        head.add_node(num_cpus=2, object_store_memory=100_000_000)
        waiting.result()
    messages = [record.getMessage() for record in caplog.records if record.name == "cluster.capacity"]
    assert messages[0].endswith("waiting for resources, at most 2 min 0 s: needs 2 CPUs, the cluster has 0"), messages
    assert messages[-1].startswith("sft: execution.placement: has its resources after"), messages

    # A stage also waits for resources that other work uses, and the message says so.
    other_group = reserve_capacity([{"CPU": 2.0}], "others")
    release = threading.Timer(4.0, lambda: remove_placement_group(other_group))
    release.start()
    caplog.clear()
    wait_for_capacity([{"CPU": 1.0}], "evaluate: execution.scorers")
    release.join()
    assert "needs 1 CPU, of the cluster's 2 only 0 are free" in caplog.text

    # Three CPUs on one node do not fit, although the cluster has four in all.
    head.add_node(num_cpus=2, object_store_memory=100_000_000)
    with pytest.raises(ValueError, match=r"a worker needs 3 CPUs on one node, but none of the cluster's \d nodes"):
        wait_for_capacity([{"CPU": 3.0}], "rlhf: execution")


def test_the_message_names_only_the_resources_of_which_too_little_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity, "cluster_resources", lambda: {"CPU": 16.0, "GPU": 8.0})
    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": 1.0, "GPU": 8.0})
    message = capacity._describe_busy_resources([{"CPU": 2.0, "GPU": 1.0}] * 2)
    assert message == "needs 4 CPUs, of the cluster's 16 only 1 is free"
    monkeypatch.setattr(ray, "available_resources", lambda: {})
    message = capacity._describe_busy_resources([{"CPU": 2.0, "GPU": 1.0}])
    assert message == (
        "needs 2 CPUs, of the cluster's 16 only 0 are free and needs 1 GPU, of the cluster's 8 only 0 are free"
    )
    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": 4.0})  # two on each of two nodes
    message = capacity._describe_busy_resources([{"CPU": 3.0}])
    assert message == "needs 3 CPUs; enough are free in all, but not yet on one node for each worker"


def test_a_negative_wait_is_rejected() -> None:
    with pytest.raises(ValueError, match="execution.wait_s: -1 must not be negative"):
        Execution(wait_s=-1)


def test_resources_that_the_cluster_lost_after_granting_them_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
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
