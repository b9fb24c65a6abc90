"""Forecasts the time, memory and disk of a stage before the stage starts.

The cost model predicts time and memory from the stage's workload (`Stage.workload`) and from the calibration of this
machine. The forecast is more accurate if the store has an earlier run of the stage on the same kind of machine. The
cost model then predicts both the earlier run and the new run. The forecast time is the measured time of the earlier run
multiplied by the ratio of the predicted times (new to earlier). The forecast memory is the measured memory of the
earlier run plus the difference of the predicted memories (new minus earlier).
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
"""`Forecast.basis` of a finished stage."""

_MAX_SCALE = 8.0
"""An earlier run is used only if its predicted time and that of the new run differ by at most this factor."""


@dataclass(frozen=True)
class Forecast:
    """The time, memory and disk that a stage will need, or that a finished stage needed. None means unknown."""

    seconds: float | None
    memory_gib: float | None
    """Peak of the memory that all processes of the Ray session on this machine use together."""
    disk_gib: float | None
    """Size of the artifact."""
    basis: str
    """What the values are based on: MEASURED if the stage is finished, `like <id>` for a forecast from the earlier run
    that made the artifact `<id>`, `calibration` if only the calibration of this machine was used, or a reason why
    values are unknown. For an interrupted stage, a remark follows that the values are those of the complete stage."""


def forecast_jobs(jobs: Mapping[str, Job], store: Storage, *, address: str | None = None) -> dict[str, Forecast]:
    """Return the forecasts of the jobs. The keys are the names of the jobs, as in `jobs`.

    The forecast of a finished job contains the measured values. Unfinished jobs of stages without `Stage.workload` are
    left out. If the run will join a cluster (`address` or `RAY_ADDRESS`), only disk is forecast, because the speed of
    the cluster's machines is not known here.
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
            forecast = forecast_stage(job.stage.name, workload, machine, runs)
            if (store / job.id).exists():
                forecast = replace(forecast, basis=f"{forecast.basis}, for the complete stage; a part is done already")
            forecasts[name] = forecast
        elif workload:
            basis = "time and memory on a cluster are not forecast"
            forecasts[name] = Forecast(None, None, workload.disk_gib, basis)
    return forecasts


def _workload(job: Job, store: Storage) -> Workload | None:
    """Return the workload of a job, computed for the precision that an interrupted run of the job has recorded.

    Without such a run, it is computed for the precision that the job would use on this machine. Returns None if the
    job's stage has no function `workload`.
    """
    if job.stage.workload is None:
        return None
    recorded = recorded_precisions(store / job.id)
    precisions = resolve_precisions(job.config, job.stage.placements(job.config), recorded)
    return job.stage.workload(with_precisions(job.config, precisions), {**job.planned, **finished_inputs(job, store)})


def forecast_stage(stage: str, workload: Workload, machine: Machine, runs: Sequence[EarlierRun] = ()) -> Forecast:
    """Forecast a run of a stage from that earlier run whose predicted time is most similar to the new run's predicted
    time.

    If no earlier run is similar enough (see `_MAX_SCALE`), the forecast is the prediction of the cost model, which
    needs only the calibration `machine`. `stage` is the name of the stage. `runs` contains earlier runs of all stages;
    those of other stages are ignored.
    """
    if workload.on_gpu:
        return Forecast(None, None, workload.disk_gib, "time and memory on GPUs are not forecast")
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


def _distance(cost: Cost, other_cost: Cost) -> float:
    """Return how much the times of two costs differ, as the absolute natural logarithm of the ratio of the times."""
    return abs(math.log(cost.seconds / other_cost.seconds))


def measured_forecast(artifact: Artifact) -> Forecast:
    """Return the measured time, memory and disk of a finished stage, read from its record.

    The time is None if the run was resumed, because only the time of its last part was measured.
    """
    measured = artifact.record.measured
    seconds = None if measured.resumed else artifact.record.wall_s
    return Forecast(seconds, measured.peak_memory_gib, measured.disk_gib, MEASURED)
