"""Stages and jobs: what every stage declares, and the identity of what it will make.

    Stage (what can be done) + config + inputs = Job (what shall be done) -> Artifact (what was done)

A job's identity is a hash of what changes its result and of nothing else, so a job whose artifact stands is never
done again, and an artifact can name every byte that it came from.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from cluster.fingerprints import fingerprints
from cluster.placement import Placement
from cluster.storage import Storage
from cluster.tracking import Tracker
from jobs.frame.artifact import Artifact, open_artifact
from jobs.frame.config import changed_fields
from jobs.frame.fields import marked_functions, match_sources
from jobs.frame.work import Work


@dataclass(frozen=True)
class Context:
    """What a run is given and is no part of its identity."""

    output: Storage
    inputs: Mapping[str, Artifact]
    """By config field; an entry of a dict or list field is `field.key`, such as `models.sft` or `models.0`."""
    tracker: Tracker
    forgotten: frozenset[str] = frozenset()
    """Ids of documents that must not be in the output (`raymill forget`)."""


@dataclass(frozen=True)
class Stage:
    """One stage of the road."""

    name: str
    version: int
    """Raised when the same config would now give another result."""
    config: type
    run: Callable[[Any, Context], Mapping[str, Any]]
    """May be entered again after a kill, with part of its output there."""
    check: Callable[[Any], None]
    """Raises ValueError for every mistake that the config shows by itself."""
    check_sources: Callable[[Any], None] = lambda config: None
    """The same for the source files, where they can be read: a missing column, a malformed record."""
    check_needs: "Callable[[Any, Needs], None]" = lambda config, needs: None
    """The same for what the configs up the road tell of the inputs, made or not: sizes that do not fit."""
    check_inputs: Callable[[Any, Mapping[str, Artifact]], None] = lambda config, inputs: None
    """The same once the inputs stand: a tokenizer of another model, too little text."""
    estimate: "Callable[[Any, Needs], Mapping[str, float]]" = lambda config, needs: {}
    """What `plan` prints: tokens, FLOP, memory; keys end in their unit. The needs may not be made yet."""
    work: "Callable[[Any, Needs], Work] | None" = None
    """What its work amounts to, for the forecast of its time, memory and disk. The needs may not be made yet."""
    forget: "Callable[[Any, Context, Artifact], Mapping[str, Any] | None] | None" = None
    """Make `context.output`, which the given artifact is, what a run would make of it now that more documents are
    forgotten; returns the summary, or None where nothing has to change. Calls `open_for_change` before it changes
    anything and after whatever can go wrong; without a record it is entered again after a kill."""
    groups: "Callable[[Any], Sequence[Mapping[str, Placement]]]" = lambda config: ()
    """Its groups of workers by name, in sets that run at the same time: the cluster must have room for each set."""


@dataclass(frozen=True)
class Job:
    """A stage bound to its config and inputs. `needs` are jobs still to be done or artifacts that stand."""

    stage: Stage
    name: str
    config: Any
    needs: "Needs"

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


def inputs_of(job: Job, store: Storage) -> dict[str, Artifact]:
    """The job's inputs that stand, by config field."""
    found = {
        field: need if isinstance(need, Artifact) else open_artifact(store / need.id)
        for field, need in job.needs.items()
    }
    return {field: artifact for field, artifact in found.items() if artifact is not None}
