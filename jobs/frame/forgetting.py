"""Forgotten documents of a store: their list, and how an artifact loses them."""

import contextlib
from collections.abc import Callable
from dataclasses import replace

from cluster.lease import hold_lease
from cluster.plain import from_plain, to_plain
from cluster.storage import Storage
from cluster.tracking import Tracker
from jobs.frame.artifact import (
    BACKUP,
    RECORD,
    WORK,
    Artifact,
    content_digest,
    input_records,
    open_artifact,
    read_record,
    write_record,
)
from jobs.frame.stage import Context, Stage

FORGOTTEN = "forgotten.jsonl"
"""In a store: the ids of documents that its artifacts must not hold, one per line."""


def read_forgotten(store: Storage) -> frozenset[str]:
    """Ids of the documents that the artifacts of a store must not hold."""
    return frozenset(store.read_jsonl(FORGOTTEN)) if store.exists(FORGOTTEN) else frozenset()


def remove_forgotten_documents(stage: Stage, output: Storage, store: Storage) -> bool:
    """Remove the forgotten documents of `store` from an artifact of this stage, finished or left half-changed by a
    kill.

    Returns whether anything changed. Raises ValueError when an older version of the stage made the artifact.
    """
    changed = False
    with hold_lease(output) as require_lease:
        while _remove_once(stage, output, store, require_lease):
            changed = True  # look again: more documents may have been forgotten meanwhile
    return changed


def _remove_once(stage: Stage, output: Storage, store: Storage, require_lease: Callable[[], None]) -> bool:
    assert stage.forget is not None
    is_finished = output.exists(RECORD)
    record = read_record(output, RECORD if is_finished else BACKUP)
    if is_finished:
        output.remove(BACKUP)
    if not record.is_current:
        raise ValueError(
            f"{record.id} was made by version {record.stage_version} of {stage.name}, which cannot forget; "
            "remove it, or make it again"
        )
    inputs = {
        path: artifact
        for path, need in record.inputs.items()
        if (artifact := open_artifact(store / need.id) or open_artifact(need.url))
    }
    tracker = Tracker(storage=output, run_id=f"{record.id}-forget", name=record.name, group="forget")
    with contextlib.closing(tracker):
        context = Context(output=output, inputs=inputs, tracker=tracker, forgotten=read_forgotten(store))
        summary = stage.forget(from_plain(stage.config, record.config), context, Artifact(output, record))
    if summary is None:
        return False
    require_lease()
    changed_inputs = {**record.inputs, **input_records(inputs)}
    digest = content_digest(output)
    write_record(output, replace(record, summary=to_plain(summary), inputs=changed_inputs, digest=digest))
    output.remove(BACKUP)
    output.remove(WORK)
    return True
