"""Jobs: a job is a stage with a config and inputs. The id of a job is the id of the artifact that the job makes.

The id contains a hash of the stage, the config without `execution`, the content of the source files, what the stage
reads from their paths, and the ids of the inputs. A job is not run again if its artifact exists. The hash does not
cover everything that can change the artifact: the documents that `raymill forget` removed, the precision that the value
`auto` is resolved to on a machine, and the environment variables in `pipeline.yaml` are not part of it.
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
    """The name of the config file without `.yaml`. It begins with the name of the stage: the config `rlhf-ppo` belongs
    to the stage `rlhf`. If the file has another name, which is possible for a single stage, this is the name of the
    stage."""
    config: Any
    """The config, an object of the class `stage.config`."""
    planned: PlannedInputs
    """The job's inputs. The keys are paths of config fields, such as `init` or `models.before`. An input that
    another config in the same folder makes is a `Job`, whether it has run or not. An input that the config names by its
    location is an `Artifact`."""

    @property
    def kind(self) -> Kind:
        """The kind of artifact that the job makes."""
        return self.stage.kind

    @cached_property
    def id(self) -> str:
        """The id of the job and of its artifact, `<name>-<hash>`.

        Jobs with the same name, config, source files and inputs have the same id on all machines.
        """
        identity = {
            "stage": self.stage.name,
            "version": self.stage.version,
            "config": changed_fields(self.config),
            "sources": self.source_fingerprints,
            "functions": find_functions(self.config),  # `sources` identifies the files, but not which function is used
            "inputs": {path: planned_input.id for path, planned_input in sorted(self.planned.items())},
        }
        if (values := self.stage.values_from_paths(self.config, self.source_urls)) is not None:
            identity["paths"] = values
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        return f"{self.name}-{digest[:12]}"

    @cached_property
    def output_sizes(self) -> OutputSizes:
        """The sizes of the artifact that the job makes, computed from the config and the inputs."""
        assert self.stage.output_sizes is not None, (
            f"{self.stage.name} makes a {self.kind}: its STAGE must declare `output_sizes`"
        )
        return self.stage.output_sizes(self.config, self.planned)

    @cached_property
    def source_fingerprints(self) -> dict[str, list[str]]:
        """The fingerprints of the source files. The keys are those of `source_urls`, and each list has the fingerprints
        of the files in the order of the URLs in `source_urls`."""
        return {path: fingerprints(urls, label=self.name) for path, urls in self.source_urls.items()}

    @cached_property
    def source_urls(self) -> dict[str, list[str]]:
        """The URLs of the source files: the data files and user-provided Python files that the config names, and the
        modules that these Python files import from their folder.

        The keys are the paths of the config values, such as `sources.0.path`.

        Raises ValueError if a value matches no file, or if a file cannot be read.
        """
        try:
            return match_sources(self.config)
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from error


def finished_inputs(job: Job, store: Storage) -> dict[str, Artifact]:
    """Return the artifacts of those inputs of the job that are finished.

    The keys are those keys of `job.planned` whose inputs are finished.
    """
    inputs = {
        path: planned_input if isinstance(planned_input, Artifact) else open_artifact(store / planned_input.id)
        for path, planned_input in job.planned.items()
    }
    return {path: artifact for path, artifact in inputs.items() if artifact is not None}
