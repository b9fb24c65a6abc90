"""Forecasts: the seconds, memory and disk that a stage will take, computed before it starts.

    Stage.work (quantities) × calibration (this machine's speed) ─▶ Forecast ◀─ an earlier run, if there is one

An earlier run of the same stage on a machine like this one knows what the cost model does not: its measured time is
scaled by the ratio of the work, and its measured memory is corrected by the difference.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from cluster.session import cluster_address
from cluster.storage import Storage
from jobs.frame.artifact import Artifact, open_artifact, recorded_precisions
from jobs.frame.calibration import Machine, calibrate
from jobs.frame.cost_model import Cost, predict
from jobs.frame.earlier_runs import EarlierRun, earlier_runs
from jobs.frame.job import Job, finished_inputs
from jobs.frame.precision import resolve_precisions, with_precisions
from jobs.frame.workload import Workload

MEASURED = "measured"
"""The basis of a finished stage's forecast."""

_MAX_SCALE = 8.0
"""An earlier run is used for work that takes up to this many times more or less time."""


@dataclass(frozen=True)
class Forecast:
    """What one stage will take, or took; None where it is not known."""

    seconds: float | None
    memory_gib: float | None
    """Peak over the session's processes on this machine."""
    disk_gib: float | None
    basis: str
    """What it is based on: MEASURED (the stage is done), `like <id>` (an earlier run), or `calibration`."""


def forecast_jobs(jobs: Mapping[str, Job], store: Storage, *, address: str | None = None) -> dict[str, Forecast]:
    """The forecast of every stage that declares its work, by name; for a finished stage what was measured.

    For a cluster that is joined (`address` or `RAY_ADDRESS`) only disk is forecast, because this machine's speed says
    nothing about the cluster's.
    """
    artifacts = {name: open_artifact(store / job.id) for name, job in jobs.items()}
    workloads = {
        name: workload for name, job in jobs.items() if not artifacts[name] and (workload := _workload(job, store))
    }
    is_local = cluster_address(address) == "local"
    if workloads and is_local:
        machine, runs = calibrate(), earlier_runs(store)
    forecasts = {}
    for name, job in jobs.items():
        if artifact := artifacts[name]:
            forecasts[name] = measured_forecast(artifact)
        elif (workload := workloads.get(name)) and is_local:
            whole = forecast_stage(job.stage.name, workload, machine, runs)
            is_begun = (store / job.id).exists()
            forecasts[name] = (
                replace(whole, basis=f"{whole.basis}, for the whole stage; a part is done") if is_begun else whole
            )
        elif workload:
            forecasts[name] = Forecast(None, None, workload.disk_gib, "a cluster's time and memory are not forecast")
    return forecasts


def _workload(job: Job, store: Storage) -> Workload | None:
    """The job's work, in the precision that it would have on this machine; None when its stage does not declare it."""
    if job.stage.workload is None:
        return None
    recorded = recorded_precisions(store / job.id)
    precisions = resolve_precisions(job.config, job.stage.placements(job.config), recorded)
    return job.stage.workload(with_precisions(job.config, precisions), {**job.planned, **finished_inputs(job, store)})


def forecast_stage(stage: str, workload: Workload, machine: Machine, runs: Sequence[EarlierRun] = ()) -> Forecast:
    """The forecast of a stage, from the earlier run whose work is nearest, or else from the calibration alone."""
    if workload.on_gpu:
        return Forecast(None, None, workload.disk_gib, "not known on GPUs before a first run")
    cost = predict(workload, machine)
    candidates = [
        (run, predict(run.workload, machine)) for run in runs if run.stage == stage and not run.workload.on_gpu
    ]
    similar = [(run, run_cost) for run, run_cost in candidates if _distance(cost, run_cost) <= math.log(_MAX_SCALE)]
    if not similar:
        return Forecast(*cost, workload.disk_gib, "calibration")
    run, run_cost = min(similar, key=lambda pair: _distance(cost, pair[1]))
    seconds = run.seconds * cost.seconds / run_cost.seconds
    memory_gib = max(run.memory_gib + cost.memory_gib - run_cost.memory_gib, 0.0)
    return Forecast(seconds, memory_gib, workload.disk_gib, f"like {run.id}")


def _distance(cost: Cost, other: Cost) -> float:
    """The logarithm of the ratio of two times: 0 for equal ones."""
    return abs(math.log(cost.seconds / other.seconds))


def measured_forecast(artifact: Artifact) -> Forecast:
    """What a finished stage took, from its record; the time of a resumed run is not known."""
    measured = artifact.record.measured
    seconds = None if measured.resumed else artifact.record.wall_s
    return Forecast(seconds, measured.peak_memory_gib, measured.disk_gib, MEASURED)
