"""Waits until the Ray cluster has the free resources that a stage needs.

Resources may be missing because nodes are still starting or because other work uses them. Each request is a Ray
placement group, so Ray's scheduler decides when the request fits, and an autoscaler starts nodes for it. A bundle is
the resources of one worker, such as `{"CPU": 4, "GPU": 1}`. One node must have all of a bundle.

A wait has a limit, which depends on what is missing. For nodes that have not joined yet it is the limit that
`capacity_wait_limit` sets, or 0 in a local cluster. For resources that exist but are in use it is at least
`_MIN_BUSY_WAIT_S`.

In all functions `field` is the name of the config field, or of the work, that needs the resources. Messages begin with
this name.
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
from cluster.progress import format_duration, show_activity
from cluster.session import cluster_resources, is_local_cluster, max_cluster_resources
from cluster.shared_paths import check_new_nodes

_UNREPORTED_WAIT_S = 2.0
"""A wait is reported only after this time, because Ray needs a moment even when the resources are free."""
_MIN_BUSY_WAIT_S = 120.0
"""The shortest limit of a wait for resources that exist but are in use. It is not 0, because work that has just
finished may still be releasing the resources."""

if TYPE_CHECKING:
    from ray.util.placement_group import PlacementGroup

log = logging.getLogger(__name__)


@dataclass
class _StageCapacity:
    """The waits of one stage and the resources that it was granted."""

    limit_s: float = 0.0
    """The longest wait for nodes that have not joined yet."""
    granted: dict[str, Sequence[Mapping[str, float]]] = dataclasses.field(default_factory=dict)
    """The bundles that were granted so far. The keys are the `field` arguments of the requests. The cluster may lose
    the bundles again when a node dies."""
    num_waits: int = 0
    """The number of threads that are waiting for resources now."""


_outside_of_stages = _current_stage = _StageCapacity()


@contextmanager
def capacity_wait_limit(limit_s: float) -> Iterator[None]:
    """Let requests within the block wait up to `limit_s` for nodes to join (`execution.wait_s` of a stage)."""
    global _current_stage
    previous_stage, _current_stage = _current_stage, _StageCapacity(limit_s)
    try:
        yield
    finally:
        _current_stage = previous_stage


def is_waiting_for_capacity() -> bool:
    """Whether a thread of this process is waiting for resources now."""
    return _current_stage.num_waits > 0


def missing_capacity() -> str:
    """Describe the resources that this stage was granted and the cluster has lost. Empty if nothing was lost."""
    shortages = {field: _describe_shortage(bundles) for field, bundles in _current_stage.granted.items()}
    return "; ".join(f"{field}: {shortage}" for field, shortage in shortages.items() if shortage)


def wait_for_capacity(bundles: Sequence[Mapping[str, float]], field: str) -> None:
    """Return as soon as the cluster has all bundles free at the same time. Does not keep them reserved.

    Empty bundles need no resources and are ignored. Raises ValueError in the same cases as `reserve_capacity`.
    """
    # Ray is imported inside functions so that `raymill plan` does not import it.
    from ray.util.placement_group import remove_placement_group

    nonempty_bundles = [bundle for bundle in bundles if bundle]
    if nonempty_bundles:
        remove_placement_group(reserve_capacity(nonempty_bundles, field))


def reserve_capacity(bundles: Sequence[Mapping[str, float]], field: str) -> PlacementGroup:
    """Reserve the bundles and return their placement group. Waits until the bundles are free, and reports the wait.

    Raises ValueError when the bundles can never fit, when they do not fit within the limit, or when a node that
    joined during the wait cannot access the paths that the run needs.
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
    """Raises ValueError when waiting cannot help, because the cluster can never have the bundles.

    A cluster that this command started never grows. Any other cluster grows at most to its autoscaler's limits.
    """
    limits = max_cluster_resources()
    if limits is not None:
        check_fits(sum_resources(bundles), limits, field)
    if is_local_cluster() and (shortage := _describe_shortage(bundles)):
        raise ValueError(f"{field}: does not fit: {shortage}; lower the resources of each worker")


def wait_for_placement_group(group: PlacementGroup, bundles: Sequence[Mapping[str, float]], field: str) -> None:
    """Wait until a placement group has its resources, and report the wait. `bundles` are the bundles of the group.

    The group may be new, or may have lost resources because a node died. Raises ValueError when the group does not get
    its resources within the limit, or when a new node cannot access the paths that the run needs.
    """
    stage = _current_stage
    stage.num_waits += 1
    try:
        _wait(group, bundles, field)
    finally:
        stage.num_waits -= 1
    if stage is not _outside_of_stages:  # Outside of a stage, nothing would ever remove an entry from `granted`.
        stage.granted[field] = bundles
    check_new_nodes()


def _wait(group: PlacementGroup, bundles: Sequence[Mapping[str, float]], field: str) -> None:
    new_node_limit_s = 0.0 if is_local_cluster() else _current_stage.limit_s
    start_s = time.monotonic()
    message = ""
    with show_activity(lambda: message or f"{field}: reserving resources"):
        # `wait` cuts a fraction of a second to 0, so a shorter timeout would flood Ray's head node with requests.
        while not group.wait(timeout_seconds=1):
            waited_s = time.monotonic() - start_s
            shortage = _describe_shortage(bundles)
            limit_s = new_node_limit_s if shortage else max(new_node_limit_s, _MIN_BUSY_WAIT_S)
            reason = shortage or _describe_busy_resources(bundles)
            if waited_s > limit_s:
                raise ValueError(
                    f"{field}: does not fit: {reason}, after a wait of {waited_s:.0f} s; add nodes, lower the number "
                    "of workers or the resources of each worker, or raise execution.wait_s"
                )
            if waited_s > _UNREPORTED_WAIT_S:
                previous_message = message
                message = f"{field}: waiting for resources, at most {format_duration(limit_s)}: {reason}"
                if message != previous_message:
                    log.info("%s", message)
    if message:
        log.info("%s: has its resources after %s", field, format_duration(time.monotonic() - start_s))


def _describe_shortage(bundles: Sequence[Mapping[str, float]]) -> str:
    """Describe what the present nodes lack even when no work runs on them: `needs 8 GPUs, the cluster has 4`.

    Returns an empty text when the bundles would fit on idle nodes. To find out, each bundle is placed on the first node
    that has room for it, the largest bundle first.
    """
    import ray

    nodes = [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]
    total = sum_resources(nodes)
    for name, amount in sum_resources(bundles).items():
        if amount > total.get(name, 0.0) + 1e-9:
            return f"needs {format_amount(name, amount)}, the cluster has {total.get(name, 0.0):g}"
    free_on_nodes = [dict(node) for node in nodes]
    for bundle in sorted(bundles, key=lambda bundle: (-bundle.get("GPU", 0.0), -bundle.get("CPU", 0.0))):
        fitting = (node for node in free_on_nodes if all(node.get(name, 0.0) + 1e-9 >= bundle[name] for name in bundle))
        node = next(fitting, None)
        if node is None:
            worker = " and ".join(format_amount(name, amount) for name, amount in bundle.items())
            return (
                f"a worker needs {worker} on one node, but none of the cluster's {len(nodes)} nodes has that much left "
                f"for it (workers in all: {len(bundles)})"
            )
        for name, amount in bundle.items():
            node[name] -= amount
    return ""


def _describe_busy_resources(bundles: Sequence[Mapping[str, float]]) -> str:
    """Describe which resources other work uses: `needs 2 CPUs, of the cluster's 4 only 1 is free`.

    Resources of which enough are free are left out. If this is true of all resources, the message says that they are
    free on the wrong nodes.
    """
    import ray

    total, free = cluster_resources(), ray.available_resources()
    needed = sum_resources(bundles)
    sentences = [
        f"needs {format_amount(name, amount)}, of the cluster's {total.get(name, 0.0):g} only {free.get(name, 0.0):g} "
        f"{'is' if free.get(name, 0.0) == 1 else 'are'} free"
        for name, amount in needed.items()
        if amount > free.get(name, 0.0) + 1e-9
    ]
    if sentences:
        return " and ".join(sentences)
    amounts = " and ".join(format_amount(name, amount) for name, amount in needed.items())
    return f"needs {amounts}; enough are free in all, but not yet on one node for each worker"
