"""The record in artifact.json, typed: what made an artifact, from what, when, and with which results."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cluster.plain import from_plain
from jobs.frame.kinds import Kind
from jobs.frame.stages import find_stage
from model.precision import ComputePrecision


@dataclass(frozen=True, kw_only=True)
class InputRecord:
    """One input of an artifact."""

    id: str
    digest: str
    """Hash of the input's content when it was read."""
    url: str


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """The machine of the driver."""

    processor: str
    cores: int


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The resources that a run used. Later runs are forecast from them and from the work that they were used for."""

    workload: Mapping[str, Any] | None = None
    """`Workload` as plain values; another version of Raymill may have other fields."""
    resumed: bool = False
    """Whether it continued an earlier attempt, so that its time is only a part of the whole."""
    machine: Hardware | None = None
    cpu_s: float | None = None
    """Processor seconds of all processes together."""
    peak_memory_gib: float | None = None
    """None when the run joined a cluster, whose processes are on other machines."""
    disk_gib: float | None = None
    """Size of the artifact, checkpoints included."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """The content of `artifact.json`. Fields with a default may be missing in old artifacts."""

    id: str
    stage: str
    """Stage that made it; `huggingface` or `tokenizer` for a folder that Raymill did not make."""
    kind: Kind
    digest: str = ""
    """One hash over the names and bytes of its files, logs and checkpoints left out."""
    name: str = ""
    """Name of its config: `rlhf-ppo`."""
    stage_version: int = 0
    config: Mapping[str, Any] = field(default_factory=dict)
    """The whole config as plain values."""
    sources: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Config path -> URL of each source file -> its fingerprint."""
    inputs: Mapping[str, InputRecord] = field(default_factory=dict)
    """By config path."""
    summary: Mapping[str, Any] = field(default_factory=dict)
    """The counts and measurements that the stage returned, as plain values."""
    code_digest: str = ""
    """Hash of Raymill's source files."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Versions of Python and of the main libraries."""
    started: float = 0.0
    """Unix time."""
    wall_s: float = 0.0
    precision: Mapping[str, ComputePrecision] = field(default_factory=dict)
    """What `precision: auto` became, by config path."""
    measured: Measured = field(default_factory=Measured)

    @property
    def is_current(self) -> bool:
        """Whether the stage of this version of Raymill would make the same from the same config."""
        return self.stage_version == find_stage(self.stage).version


@dataclass(frozen=True, kw_only=True)
class Unfinished:
    """The content of `unfinished.json`: what an artifact that is not finished is made from."""

    inputs: Mapping[str, InputRecord]
    precision: Mapping[str, ComputePrecision] = field(default_factory=dict)
    """What `precision: auto` became, by config path; empty until the run has begun."""


def to_record(values: Mapping[str, Any]) -> Record:
    """The record in these JSON values. Fields that only another version of Raymill knows are left out."""
    kept = {field.name: values[field.name] for field in dataclasses.fields(Record) if field.name in values}
    return from_plain(Record, {"kind": find_stage(values["stage"]).kind, **kept} if "kind" not in kept else kept)
