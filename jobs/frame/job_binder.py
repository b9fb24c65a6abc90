"""Binds configs to jobs. To bind a config means to read it, to check it, and to resolve each of its inputs.

An input that another config in the same folder makes is resolved to the job of that config. Every other input is
resolved to an artifact that exists.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs.frame.artifact import Artifact, open_artifact
from jobs.frame.config_loader import build, load_yaml
from jobs.frame.fields import PREVIOUS_STAGE
from jobs.frame.job import Job
from jobs.frame.references import ConfigInput, find_inputs, match_sources
from jobs.frame.stage import Stage
from jobs.frame.stages import STAGES, find_stage, stage_name_of
from jobs.frame.token_table import check_token_table


class Binder:
    """Binds the configs of a folder to jobs. The configs that a config's inputs refer to are bound first."""

    def __init__(
        self,
        folder: Path,
        overrides: Mapping[str, list[str]],
        *,
        order: Sequence[str],
        files: Mapping[str, Path] | None = None,
    ) -> None:
        """Create a binder for the configs in `folder`.

        `overrides` maps the name of a config to the overrides of its fields. `order` has the names of the configs that
        `pipeline.yaml` lists, in the same order. `files` maps the name of a config to the path of its file, for those
        configs whose file is not `<name>.yaml` in the folder.
        """
        self._folder, self._overrides, self._order, self._files = folder, overrides, order, files or {}
        self.jobs: dict[str, Job] = {}
        """The jobs of those configs that have no error, by the name of the config."""
        self.errors: dict[str, str] = {}
        """The first error of each config that could not be bound, by the name of the config."""
        self._in_progress: list[str] = []

    def try_bind(self, name: str) -> None:
        """Bind the config with this name, and put the job into `jobs` or the error message into `errors`.

        Does nothing if `jobs` or `errors` already has an entry for the config.

        This method calls itself for the configs that are inputs. If a config is one of its own inputs, directly or
        through other configs, such an inner call raises ValueError, and an outer call puts the message into `errors`.
        """
        if name in self.jobs or name in self.errors:
            return
        if name in self._in_progress:
            raise ValueError(
                f"{' → '.join([*self._in_progress, name])}: these inputs form a cycle; change the input of one of them"
            )
        self._in_progress.append(name)
        try:
            self.jobs[name] = self._bind(name)
        except ValueError as error:  # the message names the file and the field
            self.errors[name] = str(error)
        except OSError as error:
            self.errors[name] = f"{self._files.get(name, self._folder / f'{name}.yaml')}: {error}"
        finally:
            self._in_progress.pop()

    def _bind(self, name: str) -> Job:
        """Return the job of the config with this name. Raises ValueError or OSError if the config has an error."""
        stage = find_stage(name)
        path = self._files.get(name, self._folder / f"{name}.yaml")
        config = build(stage.config, load_yaml(path), self._overrides.get(name, ()), label=str(path))
        try:
            stage.check(config)
            _check_sources(stage, config)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        planned = {
            config_input.path: self._resolve_input(f"{path}: {config_input.path}", name, config_input)
            for config_input in find_inputs(config)
        }
        try:
            stage.check_planned_inputs(config, planned)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        job = Job(stage, name, config, planned)
        job.id  # noqa: B018 - reads every source file, so that a path without files is reported here and not later
        return job

    def _resolve_input(self, label: str, name: str, config_input: ConfigInput) -> Job | Artifact:
        """Return the job or the artifact that an input of the config `name` refers to.

        Raises ValueError if the input refers to nothing, to a config that has an error, to an artifact of a wrong kind,
        or to a model that cannot read every token of its tokenizer. The error message begins with `label`, which names
        the file of the config and the field of the input.
        """
        other = self.config_of_input(name, config_input, label=label)
        if other is not None:
            self.try_bind(other)
            if other in self.errors:
                raise ValueError(f"{label}: the config {other} has an error, which is reported separately")
            resolved: Job | Artifact | None = self.jobs[other]
        else:
            resolved = open_artifact(config_input.value)
        value = other or config_input.value
        if resolved is None:
            raise ValueError(
                f"{label}: {value!r} is not the name of a config in the same folder, not a finished artifact (no "
                "artifact.json), and not a Hugging Face folder (no config.json with weights, no tokenizer.json); "
                "correct the name or the location"
            )
        if resolved.kind not in config_input.kinds:
            raise ValueError(
                f"{label}: {value!r} has the kind {resolved.kind}; this input accepts {' or '.join(config_input.kinds)}"
            )
        if isinstance(resolved, Artifact):
            try:
                check_token_table(resolved)
            except ValueError as error:
                raise ValueError(f"{label}: {error}") from error
        return resolved

    def config_of_input(self, name: str, config_input: ConfigInput, *, label: str | None = None) -> str | None:
        """Return the name of the config to which an input of the config `name` refers. None for a location.

        Raises ValueError if `previous` refers to no config. The error message begins with `label`, by default with the
        name and the field.
        """
        if config_input.value == PREVIOUS_STAGE:
            return self._find_previous(label or f"{name}: {config_input.path}", name, config_input)
        return config_input.value if self._has_config(config_input.value) else None

    def _has_config(self, value: str) -> bool:
        """Return whether `value` is the name of a config in the folder, and not a location."""
        return "/" not in value and (self._folder / f"{value}.yaml").is_file()

    def _find_previous(self, label: str, name: str, config_input: ConfigInput) -> str:
        """Return the name of the config that the value `previous` refers to in an input of the config `name`.

        See `PREVIOUS_STAGE`. Raises ValueError if there is no such config. The error message begins with `label`.
        """
        if name in self._order:
            earlier = self._order[: self._order.index(name)]
        else:
            # `pipeline.yaml` does not list the config `name`. Therefore the order of `STAGES` decides which of the
            # configs that it lists are earlier.
            earlier_stages = STAGES[: STAGES.index(stage_name_of(name))]
            earlier = [config for config in self._order if stage_name_of(config) in earlier_stages]
        candidates = [
            config for config in earlier if self._has_config(config) and find_stage(config).kind in config_input.kinds
        ]
        if not candidates:
            raise ValueError(
                f"{label}: no config before {name} makes a {' or '.join(config_input.kinds)}; set the input to the "
                "name of a config in the same folder, or to the location of an artifact or of a Hugging Face folder"
            )
        return candidates[-1]


def _check_sources(stage: Stage, config: Any) -> None:
    """Call the stage's `check_sources`.

    If a path matches no file, `check_sources` raises an error that does not name the config field. In this case
    `match_sources`, which is called after every ValueError, raises an error that names the field. Otherwise the error
    of `check_sources` is raised.
    """
    try:
        stage.check_sources(config)
    except ValueError:
        match_sources(config)
        raise
