"""Resolves `precision: auto`: to bfloat16 if the hardware multiplies bfloat16, otherwise to float32.

The resolved precision is recorded in the folder of the artifact, and a resumed run uses the recorded precision.
"""

import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from cluster.capacity import wait_for_capacity
from cluster.placement import Placement
from cluster.session import is_connected, is_local_cluster, options_on_node
from model.precision import (
    PLACEMENT_KEY,
    ComputePrecision,
    Precision,
    bfloat16_emulation_slowdown,
    gpu_multiplies_bfloat16,
)

Placements = Sequence[Mapping[str, Placement]]
"""The placements of a stage's worker groups, as `Stage.placements` returns them. One mapping (group name -> placement)
for each set of groups that run at the same time."""

log = logging.getLogger(__name__)


class PrecisionField(NamedTuple):
    """A `precision` field of a config and its value."""

    path: str
    """The path of the field in the config, such as `learning.precision`."""
    value: Precision
    group: str
    """The name of the worker group that computes in this precision."""


def resolve_precisions(
    config: Any, placements: Placements, recorded: Mapping[str, ComputePrecision]
) -> dict[str, ComputePrecision]:
    """Return the resolved precision of every `precision` field.

    The keys, also those of `recorded`, are paths of config fields, such as `learning.precision`. `recorded` contains
    the precisions that an earlier run of the job recorded, or nothing. `auto` is resolved to the precision in
    `recorded`, if there is one for the field. Otherwise `auto` is resolved to bfloat16 if the hardware multiplies
    bfloat16, and to float32 if not. The hardware that decides depends on the worker group of the field:

    - A group on GPUs: the GPU of this machine. If this machine has none, bfloat16 is assumed.
    - A group on CPUs: the processors of all nodes, if this process has joined a cluster that it did not start. This
      function then waits until the cluster has room for the workers of the group. Otherwise the processor of this
      machine.
    - A group without a placement: the GPU of this machine if it has one, otherwise its processor.
    """
    precisions: dict[str, ComputePrecision] = {}
    for path, value, group in _precision_fields(config):
        if value != "auto":
            precisions[path] = value
        elif path in recorded:
            precisions[path] = recorded[path]
        else:
            precisions[path] = "bfloat16" if _multiplies_bfloat16(path, group, placements) else "float32"
    return precisions


def with_precisions(config: Any, precisions: Mapping[str, ComputePrecision], prefix: str = "") -> Any:
    """Return a copy of the config in which every `precision` field has its resolved precision.

    The keys of `precisions` are paths of these fields in the complete config. `prefix` is the path of `config` in the
    complete config, ending in a dot, or empty for the complete config itself.
    """
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        path, value = f"{prefix}{field.name}", getattr(config, field.name)
        if path in precisions:
            changes[field.name] = precisions[path]
        elif dataclasses.is_dataclass(value):
            changes[field.name] = with_precisions(value, precisions, f"{path}.")
    return dataclasses.replace(config, **changes)


def warn_if_bfloat16_is_emulated(config: Any, placements: Placements) -> None:
    """Log a warning if the config sets bfloat16 and the processors of the workers only emulate bfloat16."""
    for path, value, group in _precision_fields(config):
        slowdown = _emulation_slowdown(path, group, placements) if value == "bfloat16" else None
        if slowdown is not None and slowdown > 1.0:
            log.warning(
                "%s: bfloat16 takes %.0f times as long as float32, because a processor of the workers only emulates "
                "it; set auto or float32",
                path,
                slowdown,
            )


def _multiplies_bfloat16(path: str, group: str, placements: Placements) -> bool:
    """Return whether the hardware that decides for a worker group multiplies bfloat16 (see `resolve_precisions`)."""
    return (
        gpu_multiplies_bfloat16()
        if _is_on_gpu(group, placements)
        else _emulation_slowdown(path, group, placements) is None
    )


def _is_on_gpu(group: str, placements: Placements) -> bool:
    """Return whether a worker group computes on GPUs. A group without a placement does so if this machine has a GPU."""
    placement = _find_placement(group, placements)
    if placement is not None:
        return placement.gpus_per_worker > 0
    import torch  # imported here, because most calls do not need it

    return torch.cuda.is_available()


def _find_placement(group: str, placements: Placements) -> Placement | None:
    """Return the placement of a worker group, or None if `placements` does not contain the group."""
    return next((concurrent_groups[group] for concurrent_groups in placements if group in concurrent_groups), None)


def _emulation_slowdown(path: str, group: str, placements: Placements) -> float | None:
    """Return the factor by which bfloat16 is slower than float32 on the processors of a worker group.

    If several processors emulate bfloat16, the largest factor is returned. Returns None if no processor emulates
    bfloat16. `path` is the path of the precision field, for messages while this function waits for nodes.
    """
    if _is_on_gpu(group, placements):
        return None
    placement = _find_placement(group, placements)
    if placement is None or not is_connected() or is_local_cluster():
        return bfloat16_emulation_slowdown()
    # Waits until the cluster has nodes for all workers, because a node that joins later may have a different processor.
    wait_for_capacity(placement.bundles, path)
    return max((slowdown for slowdown in _slowdowns_on_nodes() if slowdown is not None), default=None)


def _slowdowns_on_nodes() -> list[float | None]:
    """Return the result of `bfloat16_emulation_slowdown` on each node of the cluster that has CPUs."""
    import ray  # imported here, so that `raymill plan` does not import Ray

    measure = ray.remote(bfloat16_emulation_slowdown)
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    return ray.get([measure.options(**options_on_node(node, soft=True)).remote() for node in nodes])


def _precision_fields(config: Any, prefix: str = "") -> Iterator[PrecisionField]:
    """Yield every `precision` field of a config, including those of nested configs.

    `prefix` is the path of `config` in the complete config, ending in a dot, or empty for the complete config itself.
    """
    for field in dataclasses.fields(config):
        value, path = getattr(config, field.name), f"{prefix}{field.name}"
        if PLACEMENT_KEY in field.metadata:
            yield PrecisionField(path, value, field.metadata[PLACEMENT_KEY])
        elif dataclasses.is_dataclass(value):
            yield from _precision_fields(value, f"{path}.")
