"""Stages: everything that the rest of Raymill knows of a stage is declared in its `STAGE`.

Stage (what can be done) + config + inputs = Job (what to do) -> Artifact (what was done)
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Union

from cluster.placement import Placement
from cluster.storage import Storage
from cluster.tracking import Tracker
from jobs.frame.artifact import Artifact
from jobs.frame.kinds import CorpusSizes, Kind, ShardsSizes, TokenizerSizes
from jobs.frame.workload import Workload

if TYPE_CHECKING:
    from jobs.frame.job import Job
    from jobs.report.part import ReportPart
    from model.transformer_config import TransformerConfig

PlannedInputs = Mapping[str, "Job | Artifact"]
"""What a job is made from, by config path: jobs whose artifacts may not be finished yet, or artifacts."""

OutputSizes = Union[CorpusSizes, TokenizerSizes, ShardsSizes, "TransformerConfig"]
"""Sizes of a corpus, a tokenizer, shards, or a model with any head."""


@dataclass(frozen=True)
class Context:
    """What a stage's `run` works with besides its config; none of it is part of the artifact's id."""

    output: Storage
    """The folder of the artifact."""
    inputs: Mapping[str, Artifact]
    """By config path; an entry of a dict or list field is `field.key`, such as `models.sft` or `models.0`."""
    tracker: Tracker
    forgotten: frozenset[str] = frozenset()
    """Ids of documents that must not be in the output (`raymill forget`)."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of the pipeline."""

    name: str
    """Name of its file, `jobs/<name>.py`, and of its config, `<name>.yaml`."""
    version: int
    """Raised when the same config would now give another result."""
    kind: Kind
    """Kind of artifact that it makes; inputs of other stages ask for it."""
    config: type
    """Class of its config, a frozen dataclass."""
    run: Callable[[Any, Context], object]
    """Writes the artifact into `context.output` and returns its summary, a dataclass of plain values. After a kill it
    is called again, and finds in the output what the earlier attempt wrote."""
    check: Callable[[Any], None] = lambda config: None
    """Raises ValueError for every mistake that shows in the config alone."""
    check_sources: Callable[[Any], None] = lambda config: None
    """Raises ValueError for mistakes in the source files, such as a missing column or a malformed record. Called only
    where the files can be read."""
    check_planned_inputs: Callable[[Any, PlannedInputs], None] = lambda config, planned: None
    """Raises ValueError for mistakes that show in the configs of the inputs, finished or not: sizes that do not fit."""
    check_inputs: Callable[[Any, Mapping[str, Artifact]], None] = lambda config, inputs: None
    """Raises ValueError for mistakes that show in the finished inputs: a tokenizer of another model, too little
    text."""
    output_sizes: Callable[[Any, PlannedInputs], OutputSizes] | None = None
    """The sizes of what a config will make, in the type of its kind; required where other stages compute with them."""
    estimate: Callable[[Any, PlannedInputs], Mapping[str, float]] = lambda config, planned: {}
    """What `plan` prints: tokens, FLOP, memory; each key ends in its unit. The inputs may not be finished."""
    workload: Callable[[Any, PlannedInputs], Workload] | None = None
    """The amount of work, from which time, memory and disk are forecast. The inputs may not be finished."""
    placements: Callable[[Any], Sequence[Mapping[str, Placement]]] = lambda config: ()
    """The groups of workers by name, in sets that run at the same time: each set must fit the cluster."""
    engine_groups: Callable[[Any], Collection[str]] = lambda config: ()
    """The names of its groups of inference engines that need nodes of their own: Kubernetes gives them rollout pods."""
    report: "Callable[[Artifact], ReportPart] | None" = None
    """The artifact's section of the HTML report."""
    forget: Callable[[Any, Context, Artifact], object | None] | None = None
    """Changes an artifact in place to what a run would make now that more documents are forgotten. Returns the new
    summary, or None when nothing changes. It calls `start_change` once nothing can be refused any more and before
    the first change. After a kill it is called again on an output without a record."""
