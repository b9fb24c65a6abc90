"""Artifacts: the folder that a stage writes, and `artifact.json` in it, which is written last: with it an artifact is
finished."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from cluster.fingerprints import fingerprint
from cluster.lease import LEASE_FILE
from cluster.metrics_log import METRICS_LOG
from cluster.plain import from_plain, to_plain
from cluster.progress import working
from cluster.storage import Storage
from jobs.frame.kinds import Kind, huggingface_kind
from jobs.frame.record import InputRecord, Record, Unfinished, to_record
from jobs.frame.stages import find_stage
from model.precision import ComputePrecision

T = TypeVar("T")

RECORD = "artifact.json"

"""In an output: the record of the finished artifact."""

BACKUP = "forgetting.json"
"""In an output: the backup of artifact.json while `forget` rewrites the artifact."""

UNFINISHED = "unfinished.json"
"""In an output that is not finished: its inputs, and what `precision: auto` became."""

WORK = "work"
"""In an output: folder of intermediate files of its tasks; removed at the end."""

_NOT_CONTENT = (RECORD, BACKUP, UNFINISHED, LEASE_FILE, METRICS_LOG, f"{WORK}/", "checkpoints/", "wandb/", "logs/")

_FOREIGN_STAGES = ("huggingface", "tokenizer")
"""The value of `Record.stage` for a folder that Raymill did not make: with a model, or with a tokenizer alone."""


@dataclass(frozen=True)
class Artifact:
    """A finished folder and its record."""

    storage: Storage
    record: Record

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def name(self) -> str:
        """Name of its config: `rlhf-ppo`."""
        return self.record.name

    @property
    def stage(self) -> str:
        return self.record.stage

    @property
    def kind(self) -> Kind:
        return self.record.kind

    @property
    def digest(self) -> str:
        """One hash over the names and bytes of its files, logs and checkpoints left out."""
        return self.record.digest

    @property
    def summary(self) -> Mapping[str, Any]:
        """The counts and measurements that the stage's `run` returned, as plain values."""
        return self.record.summary

    def read_summary(self, kind: type[T]) -> T:
        """The summary as the dataclass that the stage returned."""
        return from_plain(kind, self.record.summary)

    @property
    def config(self) -> Any:
        """The config that it was made with, as its stage's config class."""
        return from_plain(find_stage(self.stage).config, self.record.config)

    @property
    def is_external(self) -> bool:
        """Whether it is a folder that Raymill did not make, which has no artifact.json."""
        return self.stage in _FOREIGN_STAGES

    @property
    def model(self) -> Storage:
        """The Hugging Face folder of a model artifact."""
        return self.storage if self.is_external else self.storage / "model"

    @property
    def tokenizer(self) -> Storage:
        """The folder with the tokenizer of a tokenizer or model artifact."""
        return self.storage / "tokenizer" if self.kind == "tokenizer" and not self.is_external else self.model


def open_artifact(location: str | Storage) -> Artifact | None:
    """The finished artifact, or the Hugging Face folder, at a location; None where there is neither."""
    storage = location if isinstance(location, Storage) else Storage(location)
    if storage.exists(RECORD):
        return Artifact(storage, read_record(storage))
    foreign = _foreign_stage_and_kind(storage)
    if foreign is None:
        return None
    stage, kind = foreign
    names = [name for name in storage.files() if "/" not in name and name.endswith((".json", ".safetensors", ".jinja"))]
    content = {name: fingerprint(f"{storage.url.rstrip('/')}/{name}") for name in names}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return Artifact(storage, Record(id=f"{stage}-{digest[:12]}", stage=stage, kind=kind, digest=digest))


def _foreign_stage_and_kind(storage: Storage) -> tuple[str, Kind] | None:
    """The entry of `_FOREIGN_STAGES` and the kind of a folder that Raymill did not make; None for any other folder."""
    if storage.exists("config.json"):
        kind = huggingface_kind(storage.read_json("config.json"))
        return ("huggingface", kind) if storage.glob("*.safetensors") else None
    return ("tokenizer", "tokenizer") if storage.exists("tokenizer.json") else None


def read_record(output: Storage, name: str = RECORD) -> Record:
    """The record in an output; `name` may be BACKUP."""
    return to_record(output.read_json(name))


def write_record(output: Storage, record: Record) -> None:
    """Write artifact.json, with which the artifact counts as finished."""
    output.write_json(RECORD, to_plain(record))


def read_unfinished(output: Storage) -> Unfinished | None:
    """What unfinished.json says; None when there is no such file."""
    return from_plain(Unfinished, output.read_json(UNFINISHED)) if output.exists(UNFINISHED) else None


def recorded_precisions(output: Storage) -> Mapping[str, ComputePrecision]:
    """What `precision: auto` became for an artifact, finished or unfinished, by config path; empty when there is
    neither."""
    if output.exists(RECORD):
        return read_record(output).precision
    unfinished = read_unfinished(output)
    return unfinished.precision if unfinished else {}


def clear_output(output: Storage) -> None:
    """Remove everything in an unfinished output except the lease on it."""
    for name in dict.fromkeys(name.partition("/")[0] for name in output.files()):
        if name != LEASE_FILE:
            output.remove(name)


def start_change(artifact: Artifact) -> None:
    """Move an artifact's record to its backup while its files change, so that it does not count as finished."""
    artifact.storage.write_json(BACKUP, to_plain(artifact.record))
    artifact.storage.remove(RECORD)


def input_records(inputs: Mapping[str, Artifact]) -> dict[str, InputRecord]:
    """The entries of a record for the inputs, by config path."""
    return {
        path: InputRecord(id=artifact.id, digest=artifact.digest, url=artifact.storage.url)
        for path, artifact in inputs.items()
    }


def content_digest(storage: Storage) -> str:
    """One hash over the names and bytes of an artifact's files, logs and checkpoints left out."""
    digest = hashlib.sha256()
    for name in storage.files():
        if not name.startswith(_NOT_CONTENT):
            content = hashlib.sha256()
            with working(f"hashing {name}"), storage.open(name, read_ahead=True) as file:
                while block := file.read(1 << 22):
                    content.update(block)
            digest.update(f"{name}\0{content.hexdigest()}\n".encode())
    return digest.hexdigest()
