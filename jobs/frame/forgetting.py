"""Removes forgotten documents from an artifact, and reads the list of a store's forgotten documents.

A forgotten document is a document whose id a user has passed to `raymill forget`.
"""

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
"""File in a store with the ids of forgotten documents, one per line. Artifacts of the store must not contain them."""


def read_forgotten(store: Storage) -> frozenset[str]:
    """Return the ids of the documents that the artifacts of a store must not contain."""
    return frozenset(store.read_jsonl(FORGOTTEN)) if store.exists(FORGOTTEN) else frozenset()


def remove_forgotten_documents(stage: Stage, output: Storage, store: Storage) -> bool:
    """Remove the forgotten documents of `store` from the artifact in `output`. Returns whether the artifact changed.

    `stage` is the stage that made the artifact. The artifact is finished, or it is only partly changed because an
    earlier removal was killed. Raises ValueError if a different version of the stage made the artifact.
    """
    changed = False
    with hold_lease(output) as require_lease:
        # Repeated until nothing changes, because the list of forgotten documents may grow while the artifact is
        # changed.
        while _remove_once(stage, output, store, require_lease):
            changed = True
    return changed


def _remove_once(stage: Stage, output: Storage, store: Storage, require_lease: Callable[[], None]) -> bool:
    """Call the stage's `forget` once and write the new record. Returns whether the artifact changed.

    `require_lease` raises an error if this process has lost the lease of the artifact's folder.
    """
    assert stage.forget is not None
    is_finished = output.exists(RECORD)
    record = read_record(output, RECORD if is_finished else BACKUP)
    if is_finished:
        output.remove(BACKUP)  # an earlier removal may have been killed between its last two steps
    if not record.is_current:
        raise ValueError(
            f"{record.id} was made by version {record.stage_version} of the stage {stage.name}, but this version of "
            f"Raymill can change only artifacts of version {stage.version}; delete the artifact, and run the stage "
            "again if you need it without the documents"
        )
    inputs = {
        path: artifact
        for path, input_record in record.inputs.items()
        if (artifact := open_artifact(store / input_record.id) or open_artifact(input_record.url))
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
