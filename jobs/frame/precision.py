"""What `precision: auto` becomes for a job, where its workers run; recorded in the artifact and kept over a resume."""

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

Groups = Sequence[Mapping[str, Placement]]
"""A stage's groups of workers by name (`Stage.placements`)."""

log = logging.getLogger(__name__)


class PrecisionField(NamedTuple):
    """A `precision` field of a config."""

    path: str
    """Where it is in the config: `learning.precision`."""
    value: Precision
    group: str
    """Name of the group of workers that computes in it."""


def resolve_precisions(
    config: Any, groups: Groups, recorded: Mapping[str, ComputePrecision]
) -> dict[str, ComputePrecision]:
    """The precision of every `precision` field by its path in the config, with `auto` replaced by what it becomes.

    In a Ray session this depends on the nodes that workers may run on, which are waited for; otherwise on this machine.
    `recorded` is what `auto` became in an earlier attempt at the same artifact, so that a resume computes alike.
    """
    precisions: dict[str, ComputePrecision] = {}
    for path, value, group in _precision_fields(config):
        if value != "auto":
            precisions[path] = value
        elif path in recorded:
            precisions[path] = recorded[path]
        else:
            precisions[path] = "bfloat16" if _multiplies_bfloat16(path, group, groups) else "float32"
    return precisions


def with_precisions(config: Any, precisions: Mapping[str, ComputePrecision], prefix: str = "") -> Any:
    """The config with every `precision` field replaced, so that none is `auto` any more."""
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        path, value = f"{prefix}{field.name}", getattr(config, field.name)
        if path in precisions:
            changes[field.name] = precisions[path]
        elif dataclasses.is_dataclass(value):
            changes[field.name] = with_precisions(value, precisions, f"{path}.")
    return dataclasses.replace(config, **changes)


def warn_if_bfloat16_is_emulated(config: Any, groups: Groups) -> None:
    """Log how slow an explicit bfloat16 will be where workers compute on processors that emulate it."""
    for path, value, group in _precision_fields(config):
        slowdown = _emulation(path, group, groups) if value == "bfloat16" else None
        if slowdown is not None and slowdown > 1.0:
            log.warning(
                "%s: bfloat16 takes %.0f times as long as float32 on a processor here, which only emulates it; "
                "take auto or float32",
                path,
                slowdown,
            )


def _multiplies_bfloat16(path: str, group: str, groups: Groups) -> bool:
    """Whether every device that a group's workers may compute on multiplies bfloat16 in hardware."""
    return gpu_multiplies_bfloat16() if _is_on_gpu(group, groups) else _emulation(path, group, groups) is None


def _is_on_gpu(group: str, groups: Groups) -> bool:
    placement = _placement(group, groups)
    if placement is not None:
        return placement.gpus_per_worker > 0
    import torch  # late: a plan rarely needs it

    return torch.cuda.is_available()


def _placement(group: str, groups: Groups) -> Placement | None:
    return next((together[group] for together in groups if group in together), None)


def _emulation(path: str, group: str, groups: Groups) -> float | None:
    """How many times longer than float32 bfloat16 takes on the slowest processor that emulates it for a group.

    None when no processor of the group emulates it.
    """
    if _is_on_gpu(group, groups):
        return None
    placement = _placement(group, groups)
    if placement is None or not is_connected() or is_local_cluster():
        return bfloat16_emulation_slowdown()
    wait_for_capacity(placement.bundles, path)  # for all workers: a node that joins later may have another processor
    return max((factor for factor in _emulation_on_nodes() if factor is not None), default=None)


def _emulation_on_nodes() -> list[float | None]:
    import ray  # late: a plan does not need it

    ask = ray.remote(bfloat16_emulation_slowdown)
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    return ray.get([ask.options(**options_on_node(node, soft=True)).remote() for node in nodes])


def _precision_fields(config: Any, prefix: str = "") -> Iterator[PrecisionField]:
    """Every precision field, nested configs included."""
    for field in dataclasses.fields(config):
        value, path = getattr(config, field.name), f"{prefix}{field.name}"
        if PLACEMENT_KEY in field.metadata:
            yield PrecisionField(path, value, field.metadata[PLACEMENT_KEY])
        elif dataclasses.is_dataclass(value):
            yield from _precision_fields(value, f"{path}.")
