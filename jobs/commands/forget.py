"""`raymill forget STORE ID…`: remove documents from every corpus and all shards that hold them.

The ids are written into the store first, so that no later run reads the documents again. Then each artifact that can
forget is changed in place to what a run from the raw files would now make; only files that held a document are
rewritten. Meanwhile the artifact has no artifact.json, so after a kill it does not count as finished, and the same
command, or a run, completes the change. Tokenizers and models that learned from the documents are listed, not changed.
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
    """The artifacts of a store, by their ids, after documents were forgotten."""

    changed: list[str]
    """Artifacts that held one of the documents and no longer do."""
    derived: list[str]
    """Artifacts that were made from one that held a forgotten document; they are not changed."""
    failed: dict[str, str]
    """Artifacts that may still hold one of the documents, and why."""


def forget(store: Storage, ids: Sequence[str], *, address: str | None = None) -> ForgetResult:
    """Remove the documents with these ids. Shards are rewritten on the Ray cluster at `address`, or on a local one.

    Raises ValueError, before anything is changed, when no corpus of the store has read one of them.
    """
    changed: list[str] = []
    failed: dict[str, str] = {}
    with hold_lease(store), connect(address), require_shared_paths(store, []):  # one at a time in a store
        records = _records(store)
        forgotten = read_forgotten(store)
        if unknown := _unknown([id for id in ids if id not in forgotten], store, records):
            raise ValueError(
                f"forget: no corpus in {store.url} has read a document {unknown[0]!r}; ids look like SOURCE/… and are "
                "in the column `id` of a corpus's documents/ and drops/"
            )
        store.write_jsonl(FORGOTTEN, sorted(forgotten | set(ids)))
        for record in records:
            stage = find_stage(record.stage)
            if stage.forget is not None:
                try:
                    changed += [record.id] if remove_forgotten_documents(stage, store / record.id, store) else []
                except (ValueError, OSError) as error:  # the other artifacts can still forget
                    failed[record.id] = str(error)
        _clear_unfinished(store, changed)
        return ForgetResult(changed, _learned(_records(store)), failed)


def _records(store: Storage) -> list[Record]:
    """The records of a store's artifacts, each after its inputs; those that a kill left half-changed included."""
    paths = {name.partition("/")[0]: name for file in (BACKUP, RECORD) for name in store.glob(f"*/{file}")}
    stored = map(store.read_json, paths.values())
    records = {values["id"]: to_record(values) for values in stored if values["stage"] in STAGES}
    ordered: dict[str, Record] = {}

    def add(record: Record) -> None:
        for need in record.inputs.values():
            if need.id in records and need.id not in ordered:
                add(records[need.id])
        ordered.setdefault(record.id, record)

    for _, record in sorted(records.items()):
        add(record)
    return list(ordered.values())


def _unknown(ids: Sequence[str], store: Storage, records: Sequence[Record]) -> list[str]:
    """The ids that no corpus has read."""
    unseen = set(ids)
    for record in records:
        if record.kind == "corpus" and record.is_current and unseen:
            corpus = Artifact(store / record.id, record)
            unseen -= {
                row.id for row in find_origin_rows(corpus.storage, corpus.read_summary(CorpusSummary).parts, unseen)
            }
    return [id for id in ids if id in unseen]


def _clear_unfinished(store: Storage, changed: Collection[str]) -> None:
    """Empty the unfinished outputs that were made from the raw files, or from an artifact that has now changed."""
    for name in store.glob(f"*/{UNFINISHED}"):
        output = store / name.partition("/")[0]
        unfinished = read_unfinished(output)
        if unfinished and (not unfinished.inputs or any(need.id in changed for need in unfinished.inputs.values())):
            with hold_lease(output):  # waits for the run that makes it, if there is one
                if not output.exists(RECORD):
                    clear_output(output)
                    log.info("emptied the unfinished %s", output.url)


def _learned(records: Sequence[Record]) -> list[str]:
    """Ids of the artifacts that cannot forget and were made, directly or not, from one that has changed since."""
    digests = {record.id: record.digest for record in records}
    stale: dict[str, None] = {}
    for record in records:  # each after its inputs
        if find_stage(record.stage).forget is not None:
            continue
        planned = record.inputs.values()
        if any(need.id in stale or digests.get(need.id, need.digest) != need.digest for need in planned):
            stale[record.id] = None
    return list(stale)
