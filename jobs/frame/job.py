"""Jobs: a stage with a config and inputs, and the identity of the artifact that it will make.

A job's id is a hash of everything that changes its result, and of nothing else. So a job whose artifact exists is not
run again, and an artifact's id identifies every byte that it was made from.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from cluster.fingerprints import fingerprints
from cluster.storage import Storage
from jobs.frame.artifact import Artifact, open_artifact
from jobs.frame.identity import changed_fields
from jobs.frame.kinds import Kind
from jobs.frame.references import find_functions, match_sources
from jobs.frame.stage import OutputSizes, PlannedInputs, Stage


@dataclass(frozen=True)
class Job:
    """A stage bound to its config and inputs."""

    stage: Stage
    name: str
    """Name of its config file: `rlhf-ppo` is a config of the stage rlhf."""
    config: Any
    planned: PlannedInputs

    @property
    def kind(self) -> Kind:
        """The kind of artifact that it will make."""
        return self.stage.kind

    @cached_property
    def id(self) -> str:
        """`<name>-<hash>`: equal wherever the same thing is made from the same bytes."""
        identity = {
            "stage": self.stage.name,
            "version": self.stage.version,
            "config": changed_fields(self.config),
            "sources": self.sources,
            "functions": find_functions(self.config),  # the fingerprint of a file does not say which one is called
            "inputs": {path: need.id for path, need in sorted(self.planned.items())},
        }
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        return f"{self.name}-{digest[:12]}"

    @cached_property
    def output_sizes(self) -> OutputSizes:
        """The sizes of what it will make."""
        assert self.stage.output_sizes is not None, (
            f"{self.stage.name} makes a {self.kind}: its STAGE must declare `output_sizes`"
        )
        return self.stage.output_sizes(self.config, self.planned)

    @cached_property
    def sources(self) -> dict[str, list[str]]:
        """Fingerprints of the source files by config path, in the order of `source_urls`."""
        return {path: fingerprints(urls, label=self.name) for path, urls in self.source_urls.items()}

    @cached_property
    def source_urls(self) -> dict[str, list[str]]:
        """URLs of the source files by config path. Raises ValueError for a source field that matches nothing."""
        try:
            return match_sources(self.config)
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from error


def finished_inputs(job: Job, store: Storage) -> dict[str, Artifact]:
    """The job's inputs that are finished, by config path."""
    inputs = {
        path: need if isinstance(need, Artifact) else open_artifact(store / need.id)
        for path, need in job.planned.items()
    }
    return {path: artifact for path, artifact in inputs.items() if artifact is not None}
