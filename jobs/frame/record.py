"""The content of artifact.json as a dataclass: the stage, config and inputs of an artifact, and its results."""

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
    """One input that an artifact was made from."""

    id: str
    digest: str
    """The digest that the input had when the artifact was made."""
    url: str
    """The location that the input had when the artifact was made."""


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """The processor of the machine that the driver ran on."""

    processor: str
    cores: int


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The resources that a run used, and its workload. The forecasts of later runs of the stage are computed from
    them."""

    workload: Mapping[str, Any] | None = None
    """The fields of `Workload` as plain values: field name -> value. None if the stage has no function `workload`. The
    fields may differ from those of `Workload` if a different version of Raymill made the artifact."""
    resumed: bool = False
    """Whether the run resumed from an earlier attempt. The measured time is then only a part of the stage's time."""
    machine: Hardware | None = None
    """The machine of the driver. None in records of older versions of Raymill."""
    cpu_s: float | None = None
    """CPU seconds, summed over all processes. None if the run joined a cluster, because the processes on the cluster's
    machines were not measured."""
    peak_memory_gib: float | None = None
    """Highest memory of all processes together. None if the run joined a cluster, as for `cpu_s`."""
    disk_gib: float | None = None
    """Size of the artifact, including its checkpoints."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """The content of `artifact.json`. Fields with a default here may be missing in the files of older versions of
    Raymill."""

    id: str
    stage: str
    """The name of the stage that made the artifact. `huggingface` or `tokenizer` for a folder that Raymill did not
    make."""
    kind: Kind
    digest: str = ""
    """A hash of the names and contents of the artifact's files, except logs and checkpoints."""
    name: str = ""
    """The name of the artifact's config, such as `rlhf-ppo`."""
    stage_version: int = 0
    """`Stage.version` of the stage that made the artifact."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """The complete config as plain values."""
    sources: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """The fingerprints of the source files: path of a value in the config -> URL of a source file -> its
    fingerprint."""
    inputs: Mapping[str, InputRecord] = field(default_factory=dict)
    """The inputs. The keys are paths of config fields, such as `init`."""
    summary: Mapping[str, Any] = field(default_factory=dict)
    """The counts and measurements that the stage's `run` returned, as plain values."""
    code_digest: str = ""
    """A hash of the source files of the Raymill that made the artifact."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """The versions of Python and of the main libraries: name of the library -> version."""
    started: float = 0.0
    """When the run started, in seconds of Unix time."""
    wall_s: float = 0.0
    """How long the run took, in seconds of wall time."""
    precision: Mapping[str, ComputePrecision] = field(default_factory=dict)
    """The precision of every `precision` field. The keys are paths of these fields, such as `learning.precision`.
    The value `auto` is replaced by the precision that it was resolved to."""
    measured: Measured = field(default_factory=Measured)

    @property
    def is_current(self) -> bool:
        """Whether this version of Raymill would make the same artifact from the same config and inputs."""
        return self.stage_version == find_stage(self.stage).version


@dataclass(frozen=True, kw_only=True)
class Unfinished:
    """The content of `unfinished.json`: the inputs and the precisions that an unfinished artifact is made with."""

    inputs: Mapping[str, InputRecord]
    """The inputs, with keys as in `Record.inputs`."""
    precision: Mapping[str, ComputePrecision] = field(default_factory=dict)
    """The precision of every `precision` field, as in `Record.precision`."""


def to_record(values: Mapping[str, Any]) -> Record:
    """Convert JSON values to a record. Fields that this version of Raymill does not have are ignored.

    A record without a kind, which an older version has written, gets the kind of its stage.
    """
    kept = {field.name: values[field.name] for field in dataclasses.fields(Record) if field.name in values}
    return from_plain(Record, {"kind": find_stage(values["stage"]).kind, **kept} if "kind" not in kept else kept)
