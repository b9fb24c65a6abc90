"""Artifacts: an artifact is the folder that a stage writes.

The artifact's record, `artifact.json`, is written last. A folder with this file is a finished artifact.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from cluster.fingerprints import fingerprint
from cluster.lease import LEASE_FILE
from cluster.metrics_log import METRICS_LOG
from cluster.plain import from_plain, to_plain
from cluster.progress import show_activity
from cluster.storage import Storage
from jobs.frame.kinds import Kind, huggingface_kind
from jobs.frame.record import InputRecord, Record, Unfinished, to_record
from jobs.frame.stages import find_stage
from model.precision import ComputePrecision

T = TypeVar("T")

RECORD = "artifact.json"
"""File with the record of a finished artifact."""

BACKUP = "forgetting.json"
"""While `raymill forget` changes an artifact, this file holds the artifact's record, and artifact.json does not
exist."""

UNFINISHED = "unfinished.json"
"""File in the folder of an unfinished artifact. Its content is described by the class `Unfinished`."""

WORK = "work"
"""Folder with intermediate files of a stage's tasks. It is removed when the artifact is finished."""

# Files whose names begin with one of these strings are not part of an artifact's digest.
_OUTSIDE_DIGEST = (RECORD, BACKUP, UNFINISHED, LEASE_FILE, METRICS_LOG, f"{WORK}/", "checkpoints/", "wandb/", "logs/")

_EXTERNAL_STAGES = ("huggingface", "tokenizer")
"""The values of `Record.stage` for folders that Raymill did not make.

`huggingface` stands for a Hugging Face model folder, and `tokenizer` for a folder with a tokenizer and without a model.
"""


@dataclass(frozen=True)
class Artifact:
    """A finished artifact: its folder and its record.

    A Hugging Face folder that Raymill did not make is an artifact too (`is_external`). Its record is not read from a
    file but computed from the files of the folder.
    """

    storage: Storage
    record: Record

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def name(self) -> str:
        """The name of the artifact's config, such as `rlhf-ppo`."""
        return self.record.name

    @property
    def stage(self) -> str:
        return self.record.stage

    @property
    def kind(self) -> Kind:
        return self.record.kind

    @property
    def digest(self) -> str:
        """A hash of the names and contents of the artifact's files, except logs and checkpoints."""
        return self.record.digest

    @property
    def summary(self) -> Mapping[str, Any]:
        """The counts and measurements that the stage's `run` returned, as plain values: name -> value."""
        return self.record.summary

    def read_summary(self, summary_class: type[T]) -> T:
        """Return the summary as an object of `summary_class`, the dataclass that the stage's `run` returned."""
        return from_plain(summary_class, self.record.summary)

    @property
    def config(self) -> Any:
        """The config that the artifact was made with, as an object of the stage's config class."""
        return from_plain(find_stage(self.stage).config, self.record.config)

    @property
    def is_external(self) -> bool:
        """Whether the artifact is a folder that Raymill did not make. Such a folder has no artifact.json."""
        return self.stage in _EXTERNAL_STAGES

    @property
    def model(self) -> Storage:
        """The Hugging Face model folder in an artifact that contains a model."""
        return self.storage if self.is_external else self.storage / "model"

    @property
    def tokenizer(self) -> Storage:
        """The folder with the tokenizer, in an artifact that contains a tokenizer or a model."""
        return self.storage / "tokenizer" if self.kind == "tokenizer" and not self.is_external else self.model


def open_artifact(location: str | Storage) -> Artifact | None:
    """Open the finished artifact or the Hugging Face folder at a location. Returns None if the location has neither."""
    storage = location if isinstance(location, Storage) else Storage(location)
    if storage.exists(RECORD):
        return Artifact(storage, read_record(storage))
    stage_and_kind = _external_stage_and_kind(storage)
    if stage_and_kind is None:
        return None
    stage, kind = stage_and_kind
    names = [name for name in storage.files() if "/" not in name and name.endswith((".json", ".safetensors", ".jinja"))]
    content = {name: fingerprint(f"{storage.url.rstrip('/')}/{name}") for name in names}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return Artifact(storage, Record(id=f"{stage}-{digest[:12]}", stage=stage, kind=kind, digest=digest))


def _external_stage_and_kind(storage: Storage) -> tuple[str, Kind] | None:
    """Return (entry of `_EXTERNAL_STAGES`, kind) of a folder that Raymill did not make.

    A folder with a config.json is a model if it has weights in .safetensors files. Without such files, None is returned
    even if the folder also has a tokenizer. A folder without a config.json is a tokenizer if it has a tokenizer.json;
    otherwise None is returned.
    """
    if storage.exists("config.json"):
        kind = huggingface_kind(storage.read_json("config.json"))
        return ("huggingface", kind) if storage.glob("*.safetensors") else None
    return ("tokenizer", "tokenizer") if storage.exists("tokenizer.json") else None


def read_record(output: Storage, file: str = RECORD) -> Record:
    """Read the record of an artifact from the file `file`, which is RECORD or BACKUP."""
    return to_record(output.read_json(file))


def write_record(output: Storage, record: Record) -> None:
    """Write artifact.json. From then on the artifact is finished."""
    output.write_json(RECORD, to_plain(record))


def read_unfinished(output: Storage) -> Unfinished | None:
    """Read unfinished.json. Returns None if the file does not exist."""
    return from_plain(Unfinished, output.read_json(UNFINISHED)) if output.exists(UNFINISHED) else None


def recorded_precisions(output: Storage) -> Mapping[str, ComputePrecision]:
    """Return the precision that each `precision: auto` was resolved to in an earlier run of the artifact.

    The keys are paths of config fields, such as `learning.precision`. The artifact may be finished or unfinished.
    Returns an empty mapping if no run has begun the artifact.
    """
    if output.exists(RECORD):
        return read_record(output).precision
    unfinished = read_unfinished(output)
    return unfinished.precision if unfinished else {}


def clear_output(output: Storage) -> None:
    """Remove all files of an unfinished artifact, except the lease file, because this process holds the lease."""
    for name in dict.fromkeys(name.partition("/")[0] for name in output.files()):
        if name != LEASE_FILE:
            output.remove(name)


def start_change(artifact: Artifact) -> None:
    """Move an artifact's record to BACKUP, so that the artifact is not finished while its files change."""
    artifact.storage.write_json(BACKUP, to_plain(artifact.record))
    artifact.storage.remove(RECORD)


def input_records(inputs: Mapping[str, Artifact]) -> dict[str, InputRecord]:
    """Return what the record of a new artifact says about its inputs (`Record.inputs`).

    The keys, also those of `inputs`, are paths of config fields, such as `init`.
    """
    return {
        path: InputRecord(id=artifact.id, digest=artifact.digest, url=artifact.storage.url)
        for path, artifact in inputs.items()
    }


def content_digest(storage: Storage) -> str:
    """Compute a hash of the names and contents of an artifact's files, except logs and checkpoints."""
    digest = hashlib.sha256()
    for name in storage.files():
        if not name.startswith(_OUTSIDE_DIGEST):
            content = hashlib.sha256()
            with show_activity(f"hashing {name}"), storage.open(name, prefetch=True) as file:
                while block := file.read(1 << 22):
                    content.update(block)
            digest.update(f"{name}\0{content.hexdigest()}\n".encode())
    return digest.hexdigest()
