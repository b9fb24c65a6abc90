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
    def model(self) -> Storage:
        """The Hugging Face folder of a model artifact (a foreign folder is one itself)."""
        return self.storage if self.stage in (FOREIGN, FOREIGN_TOKENIZER) else self.storage / "model"


FOREIGN = "huggingface"
"""The stage name of a Hugging Face folder that came from elsewhere."""

FOREIGN_TOKENIZER = "tokenizer"
"""The stage name of a folder with a tokenizer and no model."""


def open_artifact(location: str | Storage) -> Artifact | None:
    """The artifact at a location; a foreign Hugging Face folder too; None where neither stands whole."""
    storage = location if isinstance(location, Storage) else Storage(location)
    if storage.exists(RECORD):
        return Artifact(storage, storage.read_json(RECORD))
    stage = _foreign_stage(storage)
    if stage is None:
        return None
    names = [name for name in storage.files() if "/" not in name and name.endswith((".json", ".safetensors", ".jinja"))]
    content = {name: fingerprint(f"{storage.url.rstrip('/')}/{name}") for name in names}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    record = {"id": f"{stage}-{digest[:12]}", "stage": stage, "inputs": {}, "summary": {}, "digest": digest}
    return Artifact(storage, record)


def _foreign_stage(storage: Storage) -> str | None:
    """What a folder from elsewhere holds: a model, a tokenizer alone, or nothing of use."""
    if storage.exists("config.json"):
        return FOREIGN if storage.glob("*.safetensors") else None
    return FOREIGN_TOKENIZER if storage.exists("tokenizer.json") else None


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
