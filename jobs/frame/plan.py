"""The plan of a pipeline: which stages are done, which stages would run, and the size of their work."""

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
    """The name of the config."""
    id: str
    """The id of the artifact."""
    state: str
    """`done`, `done (input changed: PATH)`, `resume` or `pending`. PATH is the config field of an input whose content
    has changed since the artifact was made. `resume` means that there are files of an interrupted run."""
    estimate: Mapping[str, float]
    """What `Stage.estimate` returned, such as tokens, FLOP and memory. Each key contains the unit of its value."""
    placement: str
    """The number of workers in each worker group, such as `generators×1 learners×2`. The groups are named after their
    fields under `execution`. The field of a stage such as `pretrain` is `placement`, so its plan shows `placement×2`.
    Empty for a stage without worker groups."""
    precision: str
    """The values of the stage's `precision` fields. The value `auto` is replaced by the precision that `auto` was
    resolved to in an earlier run of the job. If there was none, `auto` is replaced by the precision that it would be
    resolved to on this machine. Several precisions are separated by commas. Empty for a stage without such fields."""


def plan(pipeline: Pipeline) -> list[PlanRow]:
    """Return the plan of every stage. No job and no worker is started."""
    return [_plan_row(name, job, pipeline.store) for name, job in pipeline.jobs.items()]


def plan_table(rows: Sequence[PlanRow]) -> list[str]:
    """Format the rows as a table. Returns its lines, with a header as the first line, or no lines without rows."""
    if not rows:
        return []
    cells = [("stage", "artifact", "state", "workers", "precision", "estimate")]
    for row in rows:
        estimate = "  ".join(f"{name} {amount:,.4g}" for name, amount in row.estimate.items())
        cells.append((row.name, row.id, row.state, row.placement, row.precision, estimate))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(map(str.ljust, line, widths)).rstrip() for line in cells]


def _plan_row(name: str, job: Job, store: Storage) -> PlanRow:
    placements = job.stage.placements(job.config)
    warn_if_bfloat16_is_emulated(job.config, placements)
    precisions = resolve_precisions(job.config, placements, recorded_precisions(store / job.id))
    return PlanRow(
        name=name,
        id=job.id,
        state=_state(job, store),
        estimate=job.stage.estimate(with_precisions(job.config, precisions), job.planned),
        placement=" ".join(f"{name}×{group.workers}" for groups in placements for name, group in groups.items()),
        precision=", ".join(dict.fromkeys(precisions.values())),
    )


def _state(job: Job, store: Storage) -> str:
    """Return the value of `PlanRow.state` for a job."""
    artifact = open_artifact(store / job.id)
    if artifact is None:
        return "resume" if (store / job.id).exists() else "pending"
    for path, planned_input in job.planned.items():
        current = planned_input if isinstance(planned_input, Artifact) else open_artifact(store / planned_input.id)
        if current and current.digest != artifact.record.inputs[path].digest:
            return f"done (input changed: {path})"
    return "done"
