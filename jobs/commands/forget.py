"""`raymill forget STORE ID…`: take documents out of every corpus and every shard that holds them.

The ids are written into the store first, so that no later run brings them back. Then each artifact that can forget is
changed in place to what a run from the raw files would now give, and only the files that held something are rewritten.
While that goes on the artifact has no artifact.json: a kill in between leaves nothing that is taken for whole, and the
same command, or a run, ends the work. What learnt from the documents (vocabularies, models) is named, not changed.
"""

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from cluster.lease import hold_lease
from cluster.session import connect
from cluster.shared_paths import require_shared_paths
from cluster.storage import Storage
from data.corpus.forget import held
from jobs.frame.artifact import BEFORE, FORGOTTEN, RECORD, UNFINISHED, clear_output, read_forgotten
from jobs.frame.run import renew
from jobs.frame.stages import STAGES, stage_named

log = logging.getLogger(__name__)


class Forgotten(NamedTuple):
    """Ids of artifacts."""

    changed: list[str]
    """What no longer holds any of the documents."""
    learnt: list[str]
    """What was made from an artifact that has held a forgotten document, and stays as it is."""
    failed: dict[str, str]
    """What may hold one still, and why."""


def forget(store: Storage, ids: Sequence[str], *, address: str | None = None) -> Forgotten:
    """Forget the documents with these ids; shards are made again on the Ray cluster at `address`, or one of our own.

    Raises ValueError when no corpus of the store has had one of them, before anything is changed.
    """
    changed: list[str] = []
    failed: dict[str, str] = {}
    with hold_lease(store), connect(address), require_shared_paths(store, []):  # one at a time in a store
        records = _records(store)
        forgotten = read_forgotten(store)
        if unknown := _unknown([own for own in ids if own not in forgotten], store, records):
            raise ValueError(
                f"forget: no corpus in {store.url} has a document {unknown[0]!r}; an id is SOURCE/…, as documents/ and "
                "drops/ have it (raymill trace STORE ID)"
            )
        store.write_jsonl(FORGOTTEN, sorted(forgotten | set(ids)))
        for record in records:
            stage = stage_named(record["stage"])
            if stage.forget is not None:
                try:
                    changed += [record["id"]] if renew(stage, store / record["id"], store) else []
                except (ValueError, OSError) as error:  # the others can forget all the same
                    failed[record["id"]] = str(error)
        _clear_unfinished(store, changed)
        return Forgotten(changed, _learnt(_records(store)), failed)


def _records(store: Storage) -> list[dict[str, Any]]:
    """The records of a store's artifacts, each after its inputs; also of those that a kill has left half-changed."""
    found = {name.partition("/")[0]: name for kind in (BEFORE, RECORD) for name in store.glob(f"*/{kind}")}
    records = [record for record in map(store.read_json, found.values()) if record["stage"] in STAGES]
    by_id = {record["id"]: record for record in records}
    ordered: dict[str, dict[str, Any]] = {}

    def add(record: dict[str, Any]) -> None:
        for need in record["inputs"].values():
            if need["id"] in by_id and need["id"] not in ordered:
                add(by_id[need["id"]])
        ordered.setdefault(record["id"], record)

    for _, record in sorted(by_id.items()):
        add(record)
    return list(ordered.values())


def _unknown(ids: Sequence[str], store: Storage, records: Sequence[Mapping[str, Any]]) -> list[str]:
    left = set(ids)
    for record in records:
        if stage_named(record["stage"]).kind == "corpus" and "parts" in record["summary"] and left:
            left -= {row.id for row in held(store / record["id"], record["summary"]["parts"], left)}
    return [own for own in ids if own in left]


def _clear_unfinished(store: Storage, changed: Collection[str]) -> None:
    """Empty the outputs that a killed run has left half-made of a corpus as it was, or of the raw files."""
    for name in store.glob(f"*/{UNFINISHED}"):
        output, inputs = store / name.partition("/")[0], store.read_json(name)
        if not inputs or any(need["id"] in changed for need in inputs.values()):
            with hold_lease(output):  # once the run that makes it, if one does, has ended
                if not output.exists(RECORD):
                    clear_output(output)
                    log.info("emptied %s, which was not finished", output.url)


def _learnt(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """What was made, directly or not, from an artifact that has changed since."""
    digests = {record["id"]: record["digest"] for record in records}
    stale: dict[str, None] = {}
    for record in records:  # each after its inputs
        if stage_named(record["stage"]).forget is not None:
            continue
        needs = record["inputs"].values()
        if any(need["id"] in stale or digests.get(need["id"], need["digest"]) != need["digest"] for need in needs):
            stale[record["id"]] = None
    return list(stale)
