"""Binding configs to jobs: each config is read and checked, and each of its inputs becomes a job or an artifact."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs.frame.artifact import Artifact, open_artifact
from jobs.frame.config import build, load_yaml
from jobs.frame.fields import PREVIOUS
from jobs.frame.job import Job
from jobs.frame.references import ConfigInput, find_inputs, match_sources
from jobs.frame.stage import Stage
from jobs.frame.stages import STAGES, find_stage, stage_name_of


class Binder:
    """Binds each config of a folder once, its inputs first, and collects the errors of each."""

    def __init__(
        self,
        folder: Path,
        overrides: Mapping[str, list[str]],
        *,
        order: Sequence[str],
        files: Mapping[str, Path] | None = None,
    ) -> None:
        """`order` lists the configs in the order of the pipeline; `files` are configs whose file name is not
        `<name>.yaml`."""
        self._folder, self._overrides, self._order, self._files = folder, overrides, order, files or {}
        self.jobs: dict[str, Job] = {}
        """The jobs of the configs without errors, by name."""
        self.errors: dict[str, str] = {}
        """The first error of each other config, by name."""
        self._binding: list[str] = []

    def try_bind(self, name: str) -> None:
        """Bind the config of this name, unless that was done already; the result is in `jobs` or in `errors`."""
        if name in self.jobs or name in self.errors:
            return
        if name in self._binding:
            raise ValueError(
                f"{' → '.join([*self._binding, name])}: a stage cannot be made from itself; change an input"
            )
        self._binding.append(name)
        try:
            self.jobs[name] = self._bind(name)
        except (ValueError, OSError) as error:
            self.errors[name] = str(error)
        finally:
            self._binding.pop()

    def _bind(self, name: str) -> Job:
        stage = find_stage(name)
        path = self._files.get(name, self._folder / f"{name}.yaml")
        config = build(stage.config, load_yaml(path), self._overrides.get(name, ()), label=str(path))
        try:
            stage.check(config)
            _check_sources(stage, config)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        planned = {marked.path: self._need(f"{path}: {marked.path}", name, marked) for marked in find_inputs(config)}
        try:
            stage.check_planned_inputs(config, planned)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        job = Job(stage, name, config, planned)
        job.id  # noqa: B018 - fingerprints every source file, so that a path that matches nothing is an error now
        return job

    def _need(self, where: str, name: str, marked: ConfigInput) -> Job | Artifact:
        """What an input of the config `name` refers to; `where` names the input in a message."""
        value = self._previous(where, name, marked) if marked.value == PREVIOUS else marked.value
        if self._has_config(value):
            self.try_bind(value)
            if value in self.errors:
                raise ValueError(f"{where}: {value} has errors of its own")
            need: Job | Artifact | None = self.jobs[value]
        else:
            need = open_artifact(value)
        if need is None:
            raise ValueError(
                f"{where}: {value!r} is neither a config beside this one, nor a finished artifact (no artifact.json), "
                "nor a Hugging Face folder (no config.json; for a tokenizer alone, no tokenizer.json)"
            )
        if need.kind not in marked.kinds:
            raise ValueError(f"{where}: {value!r} is a {need.kind}; this input takes {' or '.join(marked.kinds)}")
        return need

    def _has_config(self, value: str) -> bool:
        return "/" not in value and (self._folder / f"{value}.yaml").is_file()

    def _previous(self, where: str, name: str, marked: ConfigInput) -> str:
        """The last config before `name` in the pipeline that makes an accepted kind."""
        if name in self._order:
            before = self._order[: self._order.index(name)]
        else:
            position = STAGES.index(stage_name_of(name))
            before = [other for other in self._order if STAGES.index(stage_name_of(other)) < position]
        makers = [other for other in before if self._has_config(other) and find_stage(other).kind in marked.kinds]
        if not makers:
            raise ValueError(
                f"{where}: no config before {name} makes a {' or '.join(marked.kinds)}; "
                "name a config beside this one, or give the location of an artifact or of a Hugging Face folder"
            )
        return makers[-1]


def _check_sources(stage: Stage, config: Any) -> None:
    """`Stage.check_sources`. For a path that matches nothing the error names the field, which readers do not know."""
    try:
        stage.check_sources(config)
    except ValueError:
        match_sources(config)
        raise
