"""Artifacts: folders that a stage has made, each with a record that is written last and says that it is whole."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from cluster.fingerprints import fingerprint
from cluster.lease import LEASE
from cluster.metrics_log import METRICS_LOG
from cluster.plain import from_plain, to_plain
from cluster.progress import working
from cluster.storage import Storage
from jobs.frame.kinds import Kind, foreign_kind
from jobs.frame.record import InputRecord, Record, Unfinished, to_record
from jobs.frame.stages import stage_named
from model.precision import ComputePrecision

T = TypeVar("T")

RECORD = "artifact.json"

WORK = "work"
"""In an output: files that its tasks leave for each other; removed at the end."""

BEFORE = "forgetting.json"
"""In an output: the backup of artifact.json while `forget` rewrites the artifact."""

UNFINISHED = "unfinished.json"
"""In an output that is being made: its inputs, and what `precision: auto` became."""

FORGOTTEN = "forgotten.jsonl"
"""In a store: the ids of documents that none of its artifacts may hold, one a line."""

_NOT_CONTENT = (RECORD, BEFORE, UNFINISHED, LEASE, METRICS_LOG, f"{WORK}/", "checkpoints/", "wandb/", "logs/")

_FOREIGN = ("huggingface", "tokenizer")
"""What stands in place of a stage's name for a folder from elsewhere: one with a model, one with a tokenizer alone."""


@dataclass(frozen=True)
class Artifact:
    """A whole, finished folder and its record."""

    storage: Storage
    record: Record

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def name(self) -> str:
        """That of its config."""
        return self.record.name

    @property
    def stage(self) -> str:
        return self.record.stage

    @property
    def kind(self) -> Kind:
        return self.record.kind

    @property
    def digest(self) -> str:
        """One hash over the names and bytes of its result."""
        return self.record.digest

    @property
    def summary(self) -> Mapping[str, Any]:
        """The counts and measures that the stage's `run` returned, as plain values."""
        return self.record.summary

    def read_summary(self, kind: type[T]) -> T:
        """The summary in the type that the stage returned it in."""
        return from_plain(kind, self.record.summary)

    @property
    def config(self) -> Any:
        """The config that it was made by, in its stage's type."""
        return from_plain(stage_named(self.stage).config, self.record.config)

    @property
    def is_foreign(self) -> bool:
        """Whether it is a folder from elsewhere, without a record of ours."""
        return self.stage in _FOREIGN

    @property
    def model(self) -> Storage:
        """The Hugging Face folder of a model artifact."""
        return self.storage if self.is_foreign else self.storage / "model"

    @property
    def tokenizer(self) -> Storage:
        """The folder with the tokenizer of a tokenizer or model artifact."""
        return self.storage / "tokenizer" if self.kind == "tokenizer" and not self.is_foreign else self.model


def open_artifact(location: str | Storage) -> Artifact | None:
    """The artifact at a location, or the Hugging Face folder; None where there is no whole one."""
    storage = location if isinstance(location, Storage) else Storage(location)
    if storage.exists(RECORD):
        return Artifact(storage, read_record(storage))
    foreign = _foreign(storage)
    if foreign is None:
        return None
    stage, kind = foreign
    names = [name for name in storage.files() if "/" not in name and name.endswith((".json", ".safetensors", ".jinja"))]
    content = {name: fingerprint(f"{storage.url.rstrip('/')}/{name}") for name in names}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return Artifact(storage, Record(id=f"{stage}-{digest[:12]}", stage=stage, kind=kind, digest=digest))


def _foreign(storage: Storage) -> tuple[str, Kind] | None:
    """What a folder from elsewhere holds, as an entry of `_FOREIGN` and its kind; None for nothing of use."""
    if storage.exists("config.json"):
        kind = foreign_kind(storage.read_json("config.json"))
        return ("huggingface", kind) if storage.glob("*.safetensors") else None
    return ("tokenizer", "tokenizer") if storage.exists("tokenizer.json") else None


def read_record(output: Storage, name: str = RECORD) -> Record:
    """The record in an output; `name` may be that of its backup."""
    return to_record(output.read_json(name))


def write_record(output: Storage, record: Record) -> None:
    """Write artifact.json, which declares the artifact whole."""
    output.write_json(RECORD, to_plain(record))


def read_unfinished(output: Storage) -> Unfinished | None:
    """What an attempt that has not ended wrote, if there was one."""
    return from_plain(Unfinished, output.read_json(UNFINISHED)) if output.exists(UNFINISHED) else None


def recorded_precisions(output: Storage) -> Mapping[str, ComputePrecision]:
    """What `precision: auto` became for an artifact, finished or begun; empty for one that is neither."""
    if output.exists(RECORD):
        return read_record(output).precision
    unfinished = read_unfinished(output)
    return unfinished.precision if unfinished else {}


def clear_output(output: Storage) -> None:
    """Remove everything in an unfinished output but the lease on it."""
    for name in dict.fromkeys(name.partition("/")[0] for name in output.files()):
        if name != LEASE:
            output.remove(name)


def open_for_change(artifact: Artifact) -> None:
    """Move an artifact's record to its backup while its files change, so that nobody takes it for whole."""
    artifact.storage.write_json(BEFORE, to_plain(artifact.record))
    artifact.storage.remove(RECORD)


def read_forgotten(store: Storage) -> frozenset[str]:
    """Ids of the documents that a store must not hold."""
    return frozenset(store.read_jsonl(FORGOTTEN)) if store.exists(FORGOTTEN) else frozenset()


def input_records(inputs: Mapping[str, Artifact]) -> dict[str, InputRecord]:
    """What a record says of the inputs, by config path."""
    return {
        path: InputRecord(id=artifact.id, digest=artifact.digest, url=artifact.storage.url)
        for path, artifact in inputs.items()
    }


def content_digest(storage: Storage) -> str:
    """One hash over the names and bytes of everything in an artifact that is its result (no logs, no checkpoints)."""
    digest = hashlib.sha256()
    for name in storage.files():
        if not name.startswith(_NOT_CONTENT):
            content = hashlib.sha256()
            with working(f"hashing {name}"), storage.open(name, read_ahead=True) as file:
                while block := file.read(1 << 22):
                    content.update(block)
            digest.update(f"{name}\0{content.hexdigest()}\n".encode())
    return digest.hexdigest()
