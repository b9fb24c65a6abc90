"""artifact.json, typed: what made an artifact, from what, when and with what result."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cluster.plain import from_plain
from jobs.frame.kinds import Kind
from jobs.frame.stages import stage_named
from model.precision import ComputePrecision


@dataclass(frozen=True, kw_only=True)
class InputRecord:
    """An artifact that another one was made from."""

    id: str
    digest: str
    """Of its content at that time."""
    url: str


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """The machine that a stage was run from."""

    processor: str
    cores: int


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a run took; with the work that it was for, later runs are forecast from it."""

    work: Mapping[str, Any] | None = None
    """`Work` as plain values, whose fields may be those of another version."""
    resumed: bool = False
    """Whether it continued an earlier attempt, so that its time is not that of the whole."""
    machine: Hardware | None = None
    cpu_s: float | None = None
    """Processor time of all processes together."""
    peak_memory_gib: float | None = None
    """None on a joined cluster, whose processes are elsewhere."""
    disk_gib: float | None = None
    """Size of the artifact, checkpoints included."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """What `artifact.json` says. Fields with a default were added after the first artifacts were written."""

    id: str
    stage: str
    """That made it; `huggingface` or `tokenizer` for a folder from elsewhere."""
    kind: Kind
    digest: str = ""
    """One hash over the names and bytes of its result."""
    name: str = ""
    """Of its config: `rlhf-ppo`."""
    stage_version: int = 0
    config: Mapping[str, Any] = field(default_factory=dict)
    """The whole config as plain values."""
    sources: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Fingerprints of the source files by URL, by config path."""
    inputs: Mapping[str, InputRecord] = field(default_factory=dict)
    """By config path."""
    summary: Mapping[str, Any] = field(default_factory=dict)
    """The counts and measures that the stage returned, as plain values."""
    code_digest: str = ""
    """Of Raymill's sources."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Of Python and the main libraries."""
    started: float = 0.0
    """Unix time."""
    wall_s: float = 0.0
    precision: Mapping[str, ComputePrecision] = field(default_factory=dict)
    """What `precision: auto` became, by config path."""
    measured: Measured = field(default_factory=Measured)


@dataclass(frozen=True, kw_only=True)
class Unfinished:
    """What `unfinished.json` says of an artifact that is being made."""

    inputs: Mapping[str, InputRecord]
    precision: Mapping[str, ComputePrecision] = field(default_factory=dict)
    """Empty until the run has begun."""


def to_record(values: Mapping[str, Any]) -> Record:
    """The record that was stored as `values`. What another version of Raymill added to it is left out."""
    kept = {field.name: values[field.name] for field in dataclasses.fields(Record) if field.name in values}
    return from_plain(Record, {"kind": stage_named(values["stage"]).kind, **kept} if "kind" not in kept else kept)
