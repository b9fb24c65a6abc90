"""What a stage will take of this machine: seconds, memory and disk, told before it starts.

    Stage.work (quantities) × calibration (this machine's speed) ─▶ Forecast ◀─ an earlier run, if there is one

An earlier run of the same stage on a machine like this one knows what the model below does not, so where the store
holds one, its measured time is scaled by the work, and its measured memory is moved by the difference.
"""

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from cluster.machine import free_memory_bytes, num_cores, processor
from cluster.plain import from_plain
from cluster.progress import format_duration
from cluster.session import cluster_address
from cluster.storage import Storage
from jobs.frame.artifact import RECORD, Artifact, open_artifact, recorded_precisions
from jobs.frame.calibration import Machine, calibrate
from jobs.frame.precision import precisions_of, with_precisions
from jobs.frame.record import Hardware, to_record
from jobs.frame.stage import Job, inputs_of
from jobs.frame.work import Kind, Work

REFERENCE_PYTHON_S = 0.0193
"""`Machine.python_s` of the processor in whose seconds the constants below are: two cores of an AMD EPYC 7001.

They were tuned on whole demos on that one and on an EPYC of Zen 4, with AVX-512 and held to AVX2. `artifact.json` has a
run's peak memory and processor time; `benchmarks/forecast.py` prints both beside the forecast, for whoever tunes them.
"""

SESSION_GIB = 1.05
"""Ray's own processes and the driver."""
PROCESS_GIB: Mapping[Kind, float] = {"task": 0.2, "trainer": 0.57, "actor": 0.36, "engine": 0.55, "server": 2.95}
"""What a process of each kind takes before it holds anything of the stage's own."""
TRAIN_GROUP_GIB = 0.5
TRAIN_GROUP_CPU_S = 40.0
"""Ray Train's controller and helper actors, about nine processes, in all."""
START_CPU_S: Mapping[Kind, float] = {"task": 3.0, "trainer": 13.0, "actor": 9.0, "engine": 35.0, "server": 72.0}
"""Processor seconds until a process of each kind is ready: imports, process group, engine warm-up."""
RL_START_CPU_S = 50.0
"""Until the actors of a graph are connected and its first weights are proved."""
START_WAIT_S: Mapping[Kind, float] = {"task": 2.0, "trainer": 6.0, "actor": 3.0, "engine": 3.0, "server": 4.0}
"""Seconds of waiting beside it: polls, handshakes, worker pools."""
STEP_S = 0.08
"""Of each optimizer step beside its FLOP: optimizer, synchronisation, batches."""
RL_STEP_S = 0.8
"""Of each step of an actor graph beside FLOP and generation: messages, scoring's tokens, weight sync and its check."""
ENGINE_STEP_S = 0.012
"""Of each forward pass of an engine beside its FLOP: scheduling and sampling, in Python."""
THREAD_EFFICIENCY = 0.75
"""Speed of each of several threads against one alone: memory and caches are shared."""
WIDE_EFFICIENCY = 0.8
"""Part of a large matrix product's speed that a wide model's training reaches."""
MEASURED = "measured"
_MAX_SCALE = 8.0
"""An earlier run tells of work up to so many times larger or smaller."""
_TOLERANCE = 1.25
"""Memory is forecast within 20 %, and disk from estimates: only what exceeds what is free by more is refused."""


@dataclass(frozen=True)
class Forecast:
    """What one stage will take, or has taken; None where nothing can be told."""

    seconds: float | None
    memory_gib: float | None
    """Peak over the session's processes on this machine."""
    disk_gib: float | None
    basis: str
    """MEASURED (it is done), `like <id>` (an earlier run), or `calibration`."""


@dataclass(frozen=True)
class Earlier:
    """A finished run of a stage on a machine like this one."""

    id: str
    stage: str
    seconds: float
    memory_gib: float
    work: Work


def predict(work: Work, machine: Machine) -> Forecast:
    """Time and memory of the work on a machine by its calibration alone."""
    if work.on_gpu:
        return Forecast(None, None, work.disk_gib, "not known on GPUs before a first run")
    slowness = machine.python_s / REFERENCE_PYTHON_S
    has_group = any(group.kind == "trainer" for group in work.processes)
    starts_s = sum(START_CPU_S[group.kind] * group.number for group in work.processes)
    starts_s += TRAIN_GROUP_CPU_S * has_group + RL_START_CPU_S * (work.rl_steps > 0)
    at_once = min(machine.cores, has_group + max(1, sum(group.number for group in work.processes)))
    waits_s = max((START_WAIT_S[group.kind] for group in work.processes), default=0.0)
    python_s = work.python_s / max(1, min(work.python_processes, machine.cores))
    serial_s = work.steps * STEP_S + work.rl_steps * RL_STEP_S + work.engine_steps * ENGINE_STEP_S
    seconds = waits_s + slowness * (starts_s / at_once + python_s + serial_s) + work.flop / flops(work, machine)
    memory = SESSION_GIB + work.driver_gib
    memory += sum((PROCESS_GIB[group.kind] + group.own_gib) * group.number for group in work.processes)
    memory += TRAIN_GROUP_GIB * has_group
    return Forecast(seconds, memory, work.disk_gib, "calibration")


def flops(work: Work, machine: Machine) -> float:
    """FLOP/s that a model of the work's width reaches with its threads."""
    narrow = machine.step_flops * min(1.0, math.sqrt(work.width / 256))
    wide = max(narrow, WIDE_EFFICIENCY * machine.product_flops)
    share = min(1.0, max(0.0, math.log2(work.width / 256) / 2))  # from width 256 to 1024
    one = narrow * (1 - share) + wide * share
    if work.precision == "bfloat16":
        one *= machine.bfloat16_speed
    threads = max(1, min(work.threads, machine.cores))
    return one * threads * (THREAD_EFFICIENCY if threads > 1 else 1.0)


def forecasts(jobs: Mapping[str, Job], store: Storage, *, address: str | None = None) -> dict[str, Forecast]:
    """A forecast of every stage that tells its work, by name: what was measured where its artifact is there.

    Of a cluster that is joined (`address` or `RAY_ADDRESS`) this machine tells nothing, so only disk is forecast there.
    """
    artifacts = {name: open_artifact(store / job.id) for name, job in jobs.items()}
    works = {name: work for name, job in jobs.items() if not artifacts[name] and (work := _work(job, store))}
    is_own = cluster_address(address) == "local"
    if works and is_own:
        machine, known = calibrate(), earlier_runs(store)
    result = {}
    for name, job in jobs.items():
        if artifact := artifacts[name]:
            result[name] = measured(artifact)
        elif (work := works.get(name)) and is_own:
            told = forecast(job.stage.name, work, machine, known)
            is_begun = (store / job.id).exists()
            result[name] = replace(told, basis=f"{told.basis}; all of it, some is done") if is_begun else told
        elif work:
            result[name] = Forecast(None, None, work.disk_gib, "a cluster's time and memory are not forecast")
    return result


def _work(job: Job, store: Storage) -> Work | None:
    """The job's work, in the precision that it would have on this machine; None of a stage that does not tell."""
    if job.stage.work is None:
        return None
    kept = recorded_precisions(store / job.id)
    precisions = precisions_of(job.config, job.stage.groups(job.config), kept)
    return job.stage.work(with_precisions(job.config, precisions), {**job.needs, **inputs_of(job, store)})


def forecast(stage: str, work: Work, machine: Machine, known: Sequence[Earlier] = ()) -> Forecast:
    """What a stage will take, from the earlier run that is nearest in its work or from the calibration."""
    model = predict(work, machine)
    runs = [(run, predict(run.work, machine)) for run in known if run.stage == stage]
    near = [(run, then) for run, then in runs if _distance(model, then) <= math.log(_MAX_SCALE)]
    if not near or model.seconds is None or model.memory_gib is None:
        return model
    run, then = min(near, key=lambda pair: _distance(model, pair[1]))
    assert then.seconds is not None and then.memory_gib is not None
    memory = max(run.memory_gib + model.memory_gib - then.memory_gib, 0.0)
    return Forecast(run.seconds * model.seconds / then.seconds, memory, model.disk_gib, f"like {run.id}")


def _distance(one: Forecast, other: Forecast) -> float:
    """How far apart two amounts of work are: the logarithm of the ratio of their times."""
    if one.seconds is None or other.seconds is None:
        return math.inf
    return abs(math.log(one.seconds / other.seconds))


def measured(artifact: Artifact) -> Forecast:
    """What a finished stage has taken, as its record says."""
    measured = artifact.record.measured
    seconds = None if measured.resumed else artifact.record.wall_s
    return Forecast(seconds, measured.peak_memory_gib, measured.disk_gib, MEASURED)


def earlier_runs(store: Storage) -> list[Earlier]:
    """The runs of a store that can tell of later ones: whole in one go, on a processor like this one's."""
    result: list[Earlier] = []
    here = Hardware(processor=processor(), cores=num_cores())
    for name in store.glob(f"*/{RECORD}") if store.exists() else []:
        record = to_record(store.read_json(name))
        measured = record.measured
        if measured.peak_memory_gib is None or measured.machine != here or measured.resumed:
            continue
        if set(measured.work or {}) == {field.name for field in fields(Work)}:
            work = from_plain(Work, measured.work)
            result.append(Earlier(record.id, record.stage, record.wall_s, measured.peak_memory_gib, work))
    return result


def shortages(
    pending: Mapping[str, Forecast],
    store: Storage,
    *,
    free_memory: int | None,
    free_disk: int | None,
    remedies: Mapping[str, str],
    written: Mapping[str, int],
) -> list[str]:
    """One message for each stage that this machine's memory, or the store's disk, clearly cannot hold.

    `free_memory` and `free_disk` are bytes; None where they are not known, as on a cluster or an object store.
    `remedies` are what lowers a stage's memory, `written` the bytes that an unfinished stage has in the store already.
    """
    result = []
    used_gib = 0.0
    for name, expected in pending.items():
        memory, disk = expected.memory_gib, max(0.0, (expected.disk_gib or 0.0) - written.get(name, 0) / 2**30)
        if memory is not None and free_memory is not None and memory > _TOLERANCE * free_memory / 2**30:
            result.append(
                f"{name}: needs about {memory:.1f} GiB of memory, this machine has {free_memory / 2**30:.1f} GiB free; "
                f"lower {remedies[name]}, free memory, or run it on a cluster (--address)"
            )
        used_gib += disk
        room_gib = math.inf if free_disk is None else _TOLERANCE * free_disk / 2**30
        if free_disk is not None and used_gib > room_gib >= used_gib - disk:
            result.append(
                f"{name}: needs about {disk:.2f} GiB of disk, {store.url} has "
                f"{max(0.0, free_disk / 2**30 - used_gib + disk):.2f} GiB left for it; free space, or give --store "
                "another location"
            )
    return result


def free_disk_bytes(store: Storage) -> int | None:
    """What can still be written to a store on a local disk; None for others."""
    if not store.is_local:
        return None
    path = Path(store.root)
    return shutil.disk_usage(next(folder for folder in (path, *path.parents) if folder.exists())).free


def own_free_memory(address: str | None) -> int | None:
    """Free bytes of this machine where the run will start a cluster of its own in it; None for one that is joined."""
    return free_memory_bytes() if cluster_address(address) == "local" else None


def table(expected: Mapping[str, Forecast]) -> list[str]:
    """The forecasts as lines of text, with a total of those that are still to be done."""
    if not expected:
        return []
    lines = [f"{'stage':<14} {'time':>12} {'memory':>10} {'disk':>10}  from"]
    lines += [f"{name:<14} {_cells(one)}  {one.basis}" for name, one in expected.items()]
    pending = [one for one in expected.values() if one.basis != MEASURED]
    if pending:
        total = Forecast(
            _total([one.seconds for one in pending], sum),
            _total([one.memory_gib for one in pending], max),
            _total([one.disk_gib for one in pending], sum),
            "",
        )
        lines.append(f"{'still to do':<14} {_cells(total)}")
    return lines


def _total(values: Sequence[float | None], together: Any) -> float | None:
    told = [value for value in values if value is not None]
    return together(told) if len(told) == len(values) else None


def _cells(one: Forecast) -> str:
    seconds = "?" if one.seconds is None else format_duration(one.seconds)
    memory = "?" if one.memory_gib is None else f"{one.memory_gib:.1f} GiB"
    disk = "?" if one.disk_gib is None else _size(one.disk_gib)
    return f"{seconds:>12} {memory:>10} {disk:>10}"


def _size(gib: float) -> str:
    return f"{gib:.1f} GiB" if gib >= 1 else f"{gib * 1024:.0f} MiB"
