"""The plan of a pipeline: what is done already, what would run, and with how much work."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cluster.storage import Storage
from jobs.frame.artifact import Artifact, open_artifact, recorded_precisions
from jobs.frame.job import Job
from jobs.frame.pipeline import Pipeline
from jobs.frame.precision import resolve_precisions, warn_if_bfloat16_is_emulated, with_precisions


@dataclass(frozen=True)
class PlanRow:
    """The plan of one stage."""

    name: str
    """Name of its config."""
    id: str
    state: str
    """`done`, `done (input changed: corpus)`, `resume` (an earlier attempt left files to resume from), or `pending`."""
    estimate: Mapping[str, float]
    """Tokens, FLOP, memory; each key ends in its unit."""
    placement: str
    """Number of processes of each group: `placement×2`, `generators×1 learners×2`."""
    precision: str
    """Precision of its matrix products. `auto` is shown as what it means on this machine, or meant to the attempt that
    began the artifact."""


def plan(pipeline: Pipeline) -> list[PlanRow]:
    """A row for every stage; nothing is started."""
    return [_plan_row(name, job, pipeline.store) for name, job in pipeline.jobs.items()]


def plan_table(rows: Sequence[PlanRow]) -> list[str]:
    """The rows as lines of text below a header."""
    if not rows:
        return []
    cells = [("stage", "artifact", "state", "workers", "precision", "estimate")]
    for row in rows:
        estimate = "  ".join(f"{name} {amount:,.4g}" for name, amount in row.estimate.items())
        cells.append((row.name, row.id, row.state, row.placement, row.precision, estimate))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(map(str.ljust, line, widths)).rstrip() for line in cells]


def _plan_row(name: str, job: Job, store: Storage) -> PlanRow:
    group_sets = job.stage.placements(job.config)
    warn_if_bfloat16_is_emulated(job.config, group_sets)
    precisions = resolve_precisions(job.config, group_sets, recorded_precisions(store / job.id))
    return PlanRow(
        name=name,
        id=job.id,
        state=_state(job, store),
        estimate=job.stage.estimate(with_precisions(job.config, precisions), job.planned),
        placement=" ".join(f"{name}×{group.workers}" for groups in group_sets for name, group in groups.items()),
        precision=", ".join(dict.fromkeys(precisions.values())),
    )


def _state(job: Job, store: Storage) -> str:
    artifact = open_artifact(store / job.id)
    if artifact is None:
        return "resume" if (store / job.id).exists() else "pending"
    for path, need in job.planned.items():
        current = need if isinstance(need, Artifact) else open_artifact(store / need.id)
        if current and current.digest != artifact.record.inputs[path].digest:
            return f"done (input changed: {path})"
    return "done"
