"""Artifacts: folders that a stage has made, each with a record that is written last and says that it is whole."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cluster.fingerprints import fingerprint
from cluster.lease import LEASE
from cluster.metrics_log import METRICS_LOG
from cluster.progress import working
from cluster.storage import Storage
from jobs.frame.kinds import Kind, foreign_kind
from jobs.frame.stages import stage_named
from model.precision import ComputePrecision

RECORD = "artifact.json"

WORK = "work"
"""In an output: what its tasks leave for each other; removed at the end."""

BEFORE = "forgetting.json"
"""The record of an artifact whose files are being changed, for as long as it has no other."""

UNFINISHED = "unfinished.json"
"""In an output that is being made: the inputs that it is made from, and what `precision: auto` became."""

FORGOTTEN = "forgotten.jsonl"
"""In a store: the ids of documents that no artifact in it may hold, one a line."""

_NOT_CONTENT = (RECORD, BEFORE, UNFINISHED, LEASE, METRICS_LOG, f"{WORK}/", "checkpoints/", "wandb/", "logs/")


@dataclass(frozen=True)
class Artifact:
    """A whole, finished directory: its place and the record that was written last."""

    storage: Storage
    record: Mapping[str, Any]

    @property
    def id(self) -> str:
        return self.record["id"]

    @property
    def stage(self) -> str:
        return self.record["stage"]

    @property
    def summary(self) -> Mapping[str, Any]:
        """The counts and measures that the stage's `run` returned."""
        return self.record["summary"]

    @property
    def kind(self) -> Kind:
        """What it is, by which inputs ask for it."""
        # Records of earlier versions name the stage alone.
        return self.record.get("kind") or stage_named(self.stage).kind

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


_FOREIGN = ("huggingface", "tokenizer")
"""What stands in place of a stage's name for a folder from elsewhere: one with a model, one with a tokenizer alone."""


def open_artifact(location: str | Storage) -> Artifact | None:
    """The artifact at a location; a foreign Hugging Face folder too; None where neither stands whole."""
    storage = location if isinstance(location, Storage) else Storage(location)
    if storage.exists(RECORD):
        return Artifact(storage, storage.read_json(RECORD))
    foreign = _foreign(storage)
    if foreign is None:
        return None
    stage, kind = foreign
    names = [name for name in storage.files() if "/" not in name and name.endswith((".json", ".safetensors", ".jinja"))]
    content = {name: fingerprint(f"{storage.url.rstrip('/')}/{name}") for name in names}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    empty: dict[str, Any] = {"inputs": {}, "summary": {}}
    return Artifact(storage, {"id": f"{stage}-{digest[:12]}", "stage": stage, "kind": kind, "digest": digest, **empty})


def _foreign(storage: Storage) -> tuple[str, Kind] | None:
    """What a folder from elsewhere holds, as an entry of `_FOREIGN` and its kind; None for nothing of use."""
    if storage.exists("config.json"):
        kind = foreign_kind(storage.read_json("config.json"))
        return ("huggingface", kind) if storage.glob("*.safetensors") else None
    return ("tokenizer", "tokenizer") if storage.exists("tokenizer.json") else None


def recorded_precisions(output: Storage) -> Mapping[str, ComputePrecision]:
    """What `precision: auto` became for an artifact, finished or begun; empty for one that is neither."""
    record = next((name for name in (RECORD, UNFINISHED) if output.exists(name)), None)
    return output.read_json(record).get("precision", {}) if record else {}


def clear_output(output: Storage) -> None:
    """Remove all that an unfinished output holds but for the lease on it."""
    for name in dict.fromkeys(name.partition("/")[0] for name in output.files()):
        if name != LEASE:
            output.remove(name)


def open_for_change(artifact: Artifact) -> None:
    """Take an artifact's record away for as long as its files change, so that nobody takes it for whole."""
    artifact.storage.write_json(BEFORE, dict(artifact.record))
    artifact.storage.remove(RECORD)


def read_forgotten(store: Storage) -> frozenset[str]:
    """Ids of the documents that a store must not hold."""
    return frozenset(store.read_jsonl(FORGOTTEN)) if store.exists(FORGOTTEN) else frozenset()


def inputs_record(inputs: Mapping[str, Artifact]) -> dict[str, Any]:
    """What a record says of the inputs, by config field."""
    return {
        field: {"id": artifact.id, "digest": artifact.record["digest"], "url": artifact.storage.url}
        for field, artifact in inputs.items()
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
