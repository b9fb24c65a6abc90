"""Waiting until the cluster has the resources that a stage needs: nodes come up one by one, and other work ends.

The request is a placement group: Ray's own scheduler decides when it fits, and an autoscaler starts nodes for it.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cluster.placement import check_fits, format_amount, sum_resources
from cluster.progress import format_duration, working
from cluster.session import cluster_resources, is_local_cluster, max_cluster_resources
from cluster.shared_paths import check_new_nodes

_SILENT_WAIT_S = 2.0
"""How long a cluster with enough free resources may take to grant them; only a longer wait is reported."""
_BUSY_LIMIT_S = 120.0
"""How long to wait at least for resources that exist but are in use: what ran before may not be gone yet."""

if TYPE_CHECKING:
    from ray.util.placement_group import PlacementGroup

log = logging.getLogger(__name__)


@dataclass
class _StageWait:
    """How long the running stage waits for resources, and what it has been granted."""

    limit_s: float = 0.0
    granted: dict[str, Sequence[Mapping[str, float]]] = dataclasses.field(default_factory=dict)
    """Bundles that were granted so far, by the config field that asked; any may be lost again with a node."""
    num_waits: int = 0
    """How many waits are going on."""


_no_stage = _stage = _StageWait()


@contextmanager
def capacity_wait_limit(limit_s: float) -> Iterator[None]:
    """Within the block, requests wait up to `limit_s` for nodes still to come (a stage's `execution.wait_s`)."""
    global _stage
    before, _stage = _stage, _StageWait(limit_s)
    try:
        yield
    finally:
        _stage = before


def is_waiting_for_capacity() -> bool:
    """Whether this process is waiting for resources now."""
    return _stage.num_waits > 0


def missing_capacity() -> str:
    """Which of the resources that this stage was granted the cluster no longer has; empty when it has them all."""
    lacking = {field: _lacking(bundles) for field, bundles in _stage.granted.items()}
    return "; ".join(f"{field}: {what}" for field, what in lacking.items() if what)


def wait_for_capacity(bundles: Sequence[Mapping[str, float]], field: str) -> None:
    """Return once the cluster has `bundles` free, each of them on one node.

    `field` is the config field that asks. Raises ValueError when they can never fit, or did not within the limit.
    """
    from ray.util.placement_group import remove_placement_group  # late, as below: `plan` need not wait for Ray

    needed = [bundle for bundle in bundles if bundle]
    if needed:
        remove_placement_group(reserve_capacity(needed, field))


def reserve_capacity(bundles: Sequence[Mapping[str, float]], field: str) -> PlacementGroup:
    """A placement group that holds `bundles`, each on one node; waits for it, and says what it waits for.

    Raises ValueError when they can never fit, or did not within the limit, or when a node that has joined meanwhile
    does not see the paths that the run needs.
    """
    from ray.util.placement_group import placement_group, remove_placement_group

    check_can_fit(bundles, field)
    group = placement_group([dict(bundle) for bundle in bundles], strategy="PACK")
    try:
        wait_for_placement_group(group, bundles, field)
    except BaseException:
        remove_placement_group(group)
        raise
    return group


def check_can_fit(bundles: Sequence[Mapping[str, float]], field: str) -> None:
    """Raises ValueError for more than a cluster started here has, or than its autoscaler may ever add."""
    limits = max_cluster_resources()
    if limits is not None:
        check_fits(sum_resources(bundles), limits, field)
    if is_local_cluster() and (lacking := _lacking(bundles)):
        raise ValueError(f"{field}: does not fit: {lacking}; give each worker less")


def wait_for_placement_group(group: PlacementGroup, bundles: Sequence[Mapping[str, float]], field: str) -> None:
    """Return once a placement group has its resources: at first, or again after some were lost with a node.

    Raises ValueError when it does not get them within the limit, or a new node does not see the paths that the run
    needs.
    """
    stage = _stage
    stage.num_waits += 1
    try:
        _wait(group, bundles, field)
    finally:
        stage.num_waits -= 1
    if stage is not _no_stage:  # outside of a stage nothing would ever clear it
        stage.granted[field] = bundles
    check_new_nodes()


def _wait(group: PlacementGroup, bundles: Sequence[Mapping[str, float]], field: str) -> None:
    limit_s = 0.0 if is_local_cluster() else _stage.limit_s
    started = time.monotonic()
    message = ""
    with working(lambda: message or f"{field}: reserving resources"):
        while not group.wait(timeout_seconds=1):  # whole seconds: a fraction is cut to 0, and would flood the head
            waited_s = time.monotonic() - started
            lacking = _lacking(bundles)
            patience_s = limit_s if lacking else max(limit_s, _BUSY_LIMIT_S)
            why = lacking or _in_use(bundles)
            if waited_s > patience_s:
                raise ValueError(
                    f"{field}: does not fit: {why}, after a wait of {waited_s:.0f} s; add nodes, lower the number of "
                    "workers or the share of each, or raise execution.wait_s"
                )
            if waited_s > _SILENT_WAIT_S:
                before = message
                message = f"{field}: waiting for resources, at most {format_duration(patience_s)}: {why}"
                if message != before:
                    log.info("%s", message)
    if message:
        log.info("%s: has its resources after %s", field, format_duration(time.monotonic() - started))


def _lacking(bundles: Sequence[Mapping[str, float]]) -> str:
    """What the present nodes do not have, busy or not: `needs 8 GPUs, the cluster has 4`; empty where bundles fit."""
    import ray

    nodes = [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]
    total = sum_resources(nodes)
    for name, amount in sum_resources(bundles).items():
        if amount > total.get(name, 0.0) + 1e-9:
            return f"needs {format_amount(name, amount)}, the cluster has {total.get(name, 0.0):g}"
    free = [dict(node) for node in nodes]
    for bundle in sorted(bundles, key=lambda one: (-one.get("GPU", 0.0), -one.get("CPU", 0.0))):
        fitting = (node for node in free if all(node.get(name, 0.0) + 1e-9 >= bundle[name] for name in bundle))
        node = next(fitting, None)
        if node is None:
            each = " and ".join(format_amount(name, amount) for name, amount in bundle.items())
            return f"{len(bundles)} times at most {each}, each on one node, is more than the {len(nodes)} nodes hold"
        for name, amount in bundle.items():
            node[name] -= amount
    return ""


def _in_use(bundles: Sequence[Mapping[str, float]]) -> str:
    """What the nodes have but other work uses: `needs 2 CPUs, of the cluster's 4 only 1 is free`."""
    import ray

    total, free = cluster_resources(), ray.available_resources()
    parts = [
        f"needs {format_amount(name, amount)}, of the cluster's {total.get(name, 0.0):g} only {free.get(name, 0.0):g} "
        f"{'is' if free.get(name, 0.0) == 1 else 'are'} free"
        for name, amount in sum_resources(bundles).items()
    ]
    return " and ".join(parts)
