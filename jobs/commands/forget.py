"""The command `raymill forget STORE ID…`. It removes documents from all corpora and shards of a store.

First the command adds the ids to a list in the store, so that later runs skip these documents. Then it changes each
corpus and each `shards` artifact in place. The changed artifact equals the artifact that a new run would make from the
source files without the documents, with two exceptions that are described at `Stage.forget`. Only files that change are
rewritten: those that contain one of the documents, or a duplicate that takes its place.

While an artifact is being changed, it has no artifact.json and does not count as finished. If the command is killed,
the same command completes the change, and the next `raymill run` makes the artifact again without the documents.

Tokenizers and models that were trained on the documents are not changed. The command prints their ids.
"""

import logging
from collections.abc import Collection, Sequence
from typing import NamedTuple

from cluster.lease import hold_lease
from cluster.session import connect
from cluster.shared_paths import require_shared_paths
from cluster.storage import Storage
from data.corpus.accounting import CorpusSummary
from data.corpus.forget import find_origin_rows
from jobs.frame.artifact import BACKUP, RECORD, UNFINISHED, Artifact, clear_output, read_unfinished
from jobs.frame.forgetting import FORGOTTEN, read_forgotten, remove_forgotten_documents
from jobs.frame.record import Record, to_record
from jobs.frame.stages import STAGES, find_stage

log = logging.getLogger(__name__)


class ForgetResult(NamedTuple):
    """What `forget` did to the artifacts of a store."""

    changed: list[str]
    """Ids of the artifacts from which documents were removed."""
    derived: list[str]
    """Ids of the artifacts that were not changed, but were made from an artifact from which documents were removed."""
    failed: dict[str, str]
    """The artifacts that could not be changed: artifact id -> error message. They may still contain one of the
    documents."""


def forget(store: Storage, ids: Sequence[str], *, address: str | None = None) -> ForgetResult:
    """Remove the documents with these ids from the store.

    Shards are rewritten by the Ray cluster at `address`. If `address` is None, they are rewritten by the cluster of
    RAY_ADDRESS, or by a local one. Raises ValueError, before anything is changed, for an id that was not forgotten
    before and that no corpus of the store has read. Only corpora that this version of Raymill can change are searched.
    """
    changed: list[str] = []
    failed: dict[str, str] = {}
    with hold_lease(store), connect(address), require_shared_paths(store, []):  # at most one forget runs in a store
        records = _read_records(store)
        forgotten = read_forgotten(store)
        if unknown := _unknown_ids([id for id in ids if id not in forgotten], store, records):
            raise ValueError(
                f"forget: no corpus in {store.url} has read a document with the id {unknown[0]!r}; an id has the "
                "form SOURCE/…, and the ids are in the column `id` of the files in a corpus's documents/ and drops/"
            )
        store.write_jsonl(FORGOTTEN, sorted(forgotten | set(ids)))
        for record in records:
            stage = find_stage(record.stage)
            if stage.forget is not None:
                try:
                    changed += [record.id] if remove_forgotten_documents(stage, store / record.id, store) else []
                except (ValueError, OSError) as error:  # the documents are still removed from the other artifacts
                    failed[record.id] = str(error)
        _clear_unfinished(store, changed)
        return ForgetResult(changed, _derived_ids(_read_records(store)), failed)


def _read_records(store: Storage) -> list[Record]:
    """Return the records of all artifacts of a store. The record of an artifact comes after those of its inputs.

    Artifacts whose change was interrupted are included. Their records are read from the file BACKUP. Artifacts of
    stages that this version of Raymill does not have are left out.
    """
    paths = {name.partition("/")[0]: name for file in (BACKUP, RECORD) for name in store.glob(f"*/{file}")}
    contents = map(store.read_json, paths.values())
    records = {values["id"]: to_record(values) for values in contents if values["stage"] in STAGES}
    ordered: dict[str, Record] = {}

    def add(record: Record) -> None:
        for input_record in record.inputs.values():
            if input_record.id in records and input_record.id not in ordered:
                add(records[input_record.id])
        ordered.setdefault(record.id, record)

    for _, record in sorted(records.items()):
        add(record)
    return list(ordered.values())


def _unknown_ids(ids: Sequence[str], store: Storage, records: Sequence[Record]) -> list[str]:
    """Return those of the ids whose documents no corpus of the store has read. `records` are the store's records.

    Corpora of a different version of the stage are not searched, because their table of origins may differ.
    """
    unseen = set(ids)
    for record in records:
        if record.kind == "corpus" and record.is_current and unseen:
            corpus = Artifact(store / record.id, record)
            unseen -= {
                row.id for row in find_origin_rows(corpus.storage, corpus.read_summary(CorpusSummary).parts, unseen)
            }
    return [id for id in ids if id in unseen]


def _clear_unfinished(store: Storage, changed: Collection[str]) -> None:
    """Empty the folders of unfinished artifacts that may contain one of the documents.

    These are unfinished artifacts without inputs, because they are made from the source files, and unfinished artifacts
    with an input that has changed. `changed` contains the ids of the changed artifacts.
    """
    for name in store.glob(f"*/{UNFINISHED}"):
        output = store / name.partition("/")[0]
        unfinished = read_unfinished(output)
        if unfinished and (
            not unfinished.inputs or any(input_record.id in changed for input_record in unfinished.inputs.values())
        ):
            with hold_lease(output):  # waits until no run writes to this folder
                if not output.exists(RECORD):
                    clear_output(output)
                    log.info("emptied the folder of the unfinished artifact %s", output.url)


def _derived_ids(records: Sequence[Record]) -> list[str]:
    """Return the ids of the tokenizers, models and other artifacts that were made from an artifact that has changed.

    Artifacts that were made from a changed artifact indirectly, through other artifacts, are included. An artifact has
    changed if its digest differs from the digest that another artifact's record has for it as an input.
    """
    digests = {record.id: record.digest for record in records}
    derived: dict[str, None] = {}
    for record in records:  # the record of an artifact comes after those of its inputs
        if find_stage(record.stage).forget is not None:
            continue
        for input_record in record.inputs.values():
            if input_record.id in derived or digests.get(input_record.id, input_record.digest) != input_record.digest:
                derived[record.id] = None
    return list(derived)
