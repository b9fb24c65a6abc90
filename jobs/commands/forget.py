"""`raymill forget STORE ID…`: take documents out of every corpus and all shards that hold them.

The ids are written into the store first, so that no later run reads the documents again. Then each artifact that can
forget is changed in place to what a run from the raw files would now give; only files that held one are rewritten.
Meanwhile the artifact has no artifact.json, so a kill leaves nothing that looks whole, and the same command, or a run,
finishes the work. What learned from the documents (tokenizers, models) is listed, not changed.
"""

import logging
from collections.abc import Collection, Sequence
from typing import NamedTuple

from cluster.lease import hold_lease
from cluster.session import connect
from cluster.shared_paths import require_shared_paths
from cluster.storage import Storage
from data.corpus.forget import held
from jobs.frame.artifact import BEFORE, FORGOTTEN, RECORD, UNFINISHED, clear_output, read_forgotten, read_unfinished
from jobs.frame.record import Record, to_record
from jobs.frame.run import renew
from jobs.frame.stages import STAGES, stage_named

log = logging.getLogger(__name__)


class Forgotten(NamedTuple):
    """Ids of artifacts."""

    changed: list[str]
    """They no longer hold any of the documents."""
    learned: list[str]
    """Made from an artifact that held a forgotten document, and unchanged."""
    failed: dict[str, str]
    """They may still hold one, and why."""


def forget(store: Storage, ids: Sequence[str], *, address: str | None = None) -> Forgotten:
    """Forget the documents with these ids; shards are made again on the Ray cluster at `address`, or one of our own.

    Raises ValueError when no corpus of the store has had one of them, before anything is changed.
    """
    changed: list[str] = []
    failed: dict[str, str] = {}
    with hold_lease(store), connect(address), require_shared_paths(store, []):  # one at a time in a store
        records = _records(store)
        forgotten = read_forgotten(store)
        if unknown := _unknown([id for id in ids if id not in forgotten], store, records):
            raise ValueError(
                f"forget: no corpus in {store.url} has a document {unknown[0]!r}; an id is SOURCE/…, as documents/ and "
                "drops/ have it (raymill trace STORE ID)"
            )
        store.write_jsonl(FORGOTTEN, sorted(forgotten | set(ids)))
        for record in records:
            stage = stage_named(record.stage)
            if stage.forget is not None:
                try:
                    changed += [record.id] if renew(stage, store / record.id, store) else []
                except (ValueError, OSError) as error:  # the others can forget all the same
                    failed[record.id] = str(error)
        _clear_unfinished(store, changed)
        return Forgotten(changed, _learned(_records(store)), failed)


def _records(store: Storage) -> list[Record]:
    """The records of a store's artifacts, each after its inputs; also of those that a kill left half-changed."""
    paths = {name.partition("/")[0]: name for kind in (BEFORE, RECORD) for name in store.glob(f"*/{kind}")}
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
    """Those of the ids that no corpus has read."""
    unseen = set(ids)
    for record in records:
        if record.kind == "corpus" and "parts" in record.summary and unseen:
            unseen -= {row.id for row in held(store / record.id, record.summary["parts"], unseen)}
    return [id for id in ids if id in unseen]


def _clear_unfinished(store: Storage, changed: Collection[str]) -> None:
    """Empty the outputs that a killed run left half-made of a corpus as it was, or of the raw files."""
    for name in store.glob(f"*/{UNFINISHED}"):
        output = store / name.partition("/")[0]
        unfinished = read_unfinished(output)
        if unfinished and (not unfinished.inputs or any(need.id in changed for need in unfinished.inputs.values())):
            with hold_lease(output):  # after the run that makes it, if there is one
                if not output.exists(RECORD):
                    clear_output(output)
                    log.info("emptied %s, which was not finished", output.url)


def _learned(records: Sequence[Record]) -> list[str]:
    """What was made, directly or not, from an artifact that has changed since."""
    digests = {record.id: record.digest for record in records}
    stale: dict[str, None] = {}
    for record in records:  # each after its inputs
        if stage_named(record.stage).forget is not None:
            continue
        needs = record.inputs.values()
        if any(need.id in stale or digests.get(need.id, need.digest) != need.digest for need in needs):
            stale[record.id] = None
    return list(stale)
