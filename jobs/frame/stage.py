"""Stages and jobs: what every stage declares, and the identity of what it will make.

    Stage (what can be done) + config + inputs = Job (what to do) -> Artifact (what was done)

A job's identity is a hash of what changes its result and of nothing else. So a job whose artifact exists is not done
again, and an artifact names every byte that it came from.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Union

from cluster.fingerprints import fingerprints
from cluster.placement import Placement
from cluster.storage import Storage
from cluster.tracking import Tracker
from jobs.frame.artifact import Artifact, open_artifact
from jobs.frame.config import changed_fields
from jobs.frame.fields import marked_functions, match_sources
from jobs.frame.kinds import CorpusSizes, Kind, ShardsSizes, TokenizerSizes
from jobs.frame.work import Work

if TYPE_CHECKING:
    from jobs.report.part import ReportPart
    from model.transformer import TransformerConfig


@dataclass(frozen=True)
class Context:
    """What a run works with that is no part of its identity."""

    output: Storage
    inputs: Mapping[str, Artifact]
    """By config field; an entry of a dict or list field is `field.key`, such as `models.sft` or `models.0`."""
    tracker: Tracker
    forgotten: frozenset[str] = frozenset()
    """Ids of documents that must not be in the output (`raymill forget`)."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What one stage of the pipeline is. Everything that the rest of Raymill knows of a stage is declared here."""

    name: str
    """That of its file, `jobs/<name>.py`, and of its config, `<name>.yaml`."""
    version: int
    """Raised when the same config would now give another result."""
    kind: Kind
    """What it makes; inputs of other stages ask for it."""
    config: type
    """Its config, a frozen dataclass."""
    run: Callable[[Any, Context], object]
    """Makes the artifact in `context.output` and returns its summary, a dataclass of plain values. After a kill it is
    called again, with part of the output there."""
    check: Callable[[Any], None] = lambda config: None
    """Raises ValueError for every mistake that the config alone shows."""
    check_sources: Callable[[Any], None] = lambda config: None
    """Raises ValueError for mistakes in the source files, where they can be read: a missing column, a malformed
    record."""
    check_needs: "Callable[[Any, Needs], None]" = lambda config, needs: None
    """Raises ValueError for what the configs of the inputs show, whether these are made or not: sizes that do not
    fit."""
    check_inputs: Callable[[Any, Mapping[str, Artifact]], None] = lambda config, inputs: None
    """Raises ValueError for what the finished inputs show: a tokenizer of another model, too little text."""
    sizes: "Callable[[Any, Needs], Sizes] | None" = None
    """The sizes of what a config will make, in the type of its kind; needed where other stages compute with them."""
    estimate: "Callable[[Any, Needs], Mapping[str, float]]" = lambda config, needs: {}
    """What `plan` prints: tokens, FLOP, memory; each key ends in its unit. The inputs may not be made yet."""
    work: "Callable[[Any, Needs], Work] | None" = None
    """The amount of work, from which its time, memory and disk are forecast. The inputs may not be made yet."""
    groups: "Callable[[Any], Sequence[Mapping[str, Placement]]]" = lambda config: ()
    """Its groups of workers by name, in sets that run at the same time: each set must fit the cluster."""
    report: "Callable[[Artifact], ReportPart] | None" = None
    """What the HTML report shows of its artifact."""
    forget: "Callable[[Any, Context, Artifact], object | None] | None" = None
    """Makes an artifact, in place, what a run would make of it now that more documents are forgotten; returns the new
    summary, or None where nothing changes. It calls `open_for_change` after everything that can be refused and before
    the first change. After a kill it is called again on an output without a record."""


@dataclass(frozen=True)
class Job:
    """A stage bound to its config and inputs."""

    stage: Stage
    name: str
    """That of its config file: `rlhf-ppo` is the stage rlhf under another name."""
    config: Any
    needs: "Needs"
    """What it is made from: jobs still to be done, or artifacts."""

    @property
    def kind(self) -> Kind:
        """What it will make."""
        return self.stage.kind

    @cached_property
    def id(self) -> str:
        """`<name>-<hash>`: equal wherever the same thing is made from the same bytes."""
        identity = {
            "stage": self.stage.name,
            "version": self.stage.version,
            "config": changed_fields(self.config),
            "sources": self.sources,
            "functions": marked_functions(self.config),  # the fingerprint of a file does not tell which one it is
            "inputs": {field: need.id for field, need in sorted(self.needs.items())},
        }
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        return f"{self.name}-{digest[:12]}"

    @cached_property
    def sizes(self) -> "Sizes":
        """The sizes of what it will make."""
        assert self.stage.sizes is not None, f"{self.stage.name} makes a {self.kind}: its STAGE must declare `sizes`"
        return self.stage.sizes(self.config, self.needs)

    @cached_property
    def sources(self) -> dict[str, list[str]]:
        """Fingerprints of the source files by config path, in the order of their paths."""
        return {path: fingerprints(urls, label=self.name) for path, urls in self.source_urls.items()}

    @cached_property
    def source_urls(self) -> dict[str, list[str]]:
        """`match_sources` of the config."""
        try:
            return match_sources(self.config)
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from error


Needs = Mapping[str, Job | Artifact]
"""By config field, as `Context.inputs`."""

Sizes = Union[CorpusSizes, TokenizerSizes, ShardsSizes, "TransformerConfig"]
"""Of a corpus, a tokenizer, shards, and a model of any head."""


def inputs_of(job: Job, store: Storage) -> dict[str, Artifact]:
    """Those of the job's inputs that are finished, by config field."""
    inputs = {
        field: need if isinstance(need, Artifact) else open_artifact(store / need.id)
        for field, need in job.needs.items()
    }
    return {field: artifact for field, artifact in inputs.items() if artifact is not None}
