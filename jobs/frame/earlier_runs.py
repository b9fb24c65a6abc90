"""Earlier runs in a store, from which later ones are forecast."""

from dataclasses import dataclass, fields

from cluster.machine import num_cores, processor_name
from cluster.plain import from_plain
from cluster.storage import Storage
from jobs.frame.artifact import RECORD
from jobs.frame.record import Hardware, to_record
from jobs.frame.workload import Workload


@dataclass(frozen=True)
class EarlierRun:
    """A run of a stage on a machine like this one, from its beginning to its end."""

    id: str
    """Id of the artifact that it made."""
    stage: str
    seconds: float
    memory_gib: float
    workload: Workload


def earlier_runs(store: Storage) -> list[EarlierRun]:
    """The runs of a store that were not resumed, on a processor like this one's and with the memory measured."""
    runs: list[EarlierRun] = []
    this_machine = Hardware(processor=processor_name(), cores=num_cores())
    for name in store.glob(f"*/{RECORD}") if store.exists() else []:
        record = to_record(store.read_json(name))
        measured = record.measured
        if measured.peak_memory_gib is None or measured.machine != this_machine or measured.resumed:
            continue
        if set(measured.workload or {}) == {
            field.name for field in fields(Workload)
        }:  # written by this version of Raymill
            workload = from_plain(Workload, measured.workload)
            runs.append(EarlierRun(record.id, record.stage, record.wall_s, measured.peak_memory_gib, workload))
    return runs
