"""Reads the earlier runs in a store. The forecasts of later runs are computed from them (`forecast.py`)."""

from dataclasses import dataclass, fields

from cluster.machine import num_cores, processor_name
from cluster.plain import from_plain
from cluster.storage import Storage
from jobs.frame.artifact import RECORD
from jobs.frame.record import Hardware, to_record
from jobs.frame.workload import Workload


@dataclass(frozen=True)
class EarlierRun:
    """An uninterrupted run of a stage on a machine with the same processor and number of cores as this machine."""

    id: str
    """The id of the artifact that the run made."""
    stage: str
    """The name of the stage."""
    seconds: float
    """Measured wall time of the run."""
    memory_gib: float
    """Highest measured memory of all processes together."""
    workload: Workload


def earlier_runs(store: Storage) -> list[EarlierRun]:
    """Return the earlier runs in a store that a forecast on this machine can use.

    Runs on a different machine, resumed runs, runs whose memory was not measured and runs without a recorded workload
    are left out.
    """
    runs: list[EarlierRun] = []
    this_machine = Hardware(processor=processor_name(), cores=num_cores())
    for name in store.glob(f"*/{RECORD}") if store.exists() else []:
        record = to_record(store.read_json(name))
        measured = record.measured
        if measured.peak_memory_gib is None or measured.machine != this_machine or measured.resumed:
            continue
        # The record is skipped if a version of Raymill whose class Workload has different fields wrote it.
        if set(measured.workload or {}) == {field.name for field in fields(Workload)}:
            workload = from_plain(Workload, measured.workload)
            runs.append(EarlierRun(record.id, record.stage, record.wall_s, measured.peak_memory_gib, workload))
    return runs
