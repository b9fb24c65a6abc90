"""The road as a list: config files bound to jobs, planned, and run in order.

A folder such as `configs/tiny` holds one file per stage and `pipeline.yaml`, which lists them and names the store.
A stage's inputs name sibling files (`shards: shards`) or the location of an artifact (`init: s3://bucket/sft-0a1b`).
"""

import dataclasses
import difflib
import logging
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.credentials import refuse_credentials
from cluster.placement import check_fits, total_resources
from cluster.progress import working
from cluster.session import connect, max_cluster_resources, refuse_shadowed_packages
from cluster.shared_paths import require_shared_paths
from cluster.storage import Storage
from cluster.wandb_mirror import wandb_mode
from jobs.frame.artifact import Artifact, open_artifact, recorded_precisions
from jobs.frame.config import build, load_yaml, parse_override
from jobs.frame.fields import PREVIOUS, MarkedInput, marked_functions, marked_inputs, match_sources
from jobs.frame.forecast import MEASURED, Forecast, forecasts, free_disk_bytes, own_free_memory, shortages, table
from jobs.frame.precision import precisions_of, warn_of_emulation, with_precisions
from jobs.frame.run import run_job
from jobs.frame.same_code import SUBMITTED_VERSION
from jobs.frame.stage import Job, Stage, inputs_of
from jobs.frame.stages import STAGES, stage_named, stage_of

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SECRET = re.compile(r"(^|_)(API_?)?(KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|PWD|PAT)(_|$)|ACCESS_KEY")

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PipelineConfig:
    """`pipeline.yaml`."""

    store: str = "runs"
    """Where artifacts go: a folder or any fsspec URL. Not part of any identity."""
    stages: list[str] = field(default_factory=lambda: list(STAGES))
    """Names of config files beside this one, in the order in which they run."""
    environment: dict[str, str | None] = field(default_factory=dict)
    """Variables that a job needs and that are no secret (AWS_ENDPOINT_URL, WANDB_PROJECT, HTTPS_PROXY, NCCL_…), with
    their values; null takes the value that the one who gives the command has. Not part of any identity."""

    def values(self) -> dict[str, str]:
        """The variables to set. Raises ValueError for a secret, which must not stand in a config, or one without value.

        A secret belongs in the cluster's own environment: on Kubernetes as a Secret named in cluster.yaml.
        """
        found: dict[str, str] = {}
        for name, value in self.environment.items():
            if not _VARIABLE.fullmatch(name) or name.startswith("RAYMILL_"):
                raise ValueError(f"environment: {name!r} is no name of a variable that may be set")
            if _SECRET.search(name.upper()):
                raise ValueError(
                    f"environment.{name}: by its name this is a secret, which would stand in job records; put it into "
                    "the cluster's own environment, on Kubernetes as a Secret named in cluster.yaml"
                )
            value = os.environ.get(name) if value is None else value
            if value is None:
                raise ValueError(f"environment.{name}: null takes the value from the environment, where it is not set")
            refuse_credentials(value)
            found[name] = value
        return found


@dataclass(frozen=True)
class Pipeline:
    """Config files bound to jobs. `errors` holds, by stage, what keeps a job from being bound."""

    name: str
    store: Storage
    jobs: Mapping[str, Job]
    errors: Mapping[str, str]
    environment: Mapping[str, str]
    """Variables that its processes have, this one too, beside those of where they run."""


def load_pipeline(path: Path, overrides: Sequence[str] = (), *, store: str | None = None) -> Pipeline:
    """Every stage that `pipeline.yaml` lists. Overrides begin with a stage's name: `pretrain.steps=100`.

    Its variables are set in this process too, before the first source is looked at.
    Raises ValueError only for mistakes in the pipeline file or the form of an override; a stage's go to `errors`.
    """
    config, by_stage = _read_pipeline(path, overrides)
    environment = _set_environment(config)
    binder = _Binder(path.parent, by_stage, order=config.stages)
    for name in config.stages:
        binder.try_bind(name)
    return Pipeline(path.parent.name, Storage(store or config.store), binder.jobs, binder.errors, environment)


def _read_pipeline(path: Path, overrides: Sequence[str]) -> tuple[PipelineConfig, dict[str, list[str]]]:
    """The pipeline file, and the overrides by the stage that each is for."""
    own = [override for override in overrides if _is_of_pipeline(override)]
    config = build(PipelineConfig, load_yaml(path), own, where=str(path))
    by_stage: dict[str, list[str]] = {name: [] for name in config.stages}
    for override in overrides:
        if override not in own:
            name, _, rest = override.partition(".")
            if name not in by_stage:
                close = difflib.get_close_matches(name, config.stages, n=1)
                hint = f"did you mean {close[0]}?" if close else f"stages: {', '.join(config.stages)}"
                raise ValueError(f"override {override!r}: {name!r} is no stage of {path}; {hint}")
            by_stage[name].append(rest)
    return config, by_stage


def load_stage(stage: str, path: Path, overrides: Sequence[str] = (), *, store: str | None = None) -> Pipeline:
    """One stage from its file; its inputs must stand. Store, unless given, and variables are those of `pipeline.yaml`
    beside it; the variables are set as by `load_pipeline`."""
    stage_named(stage)
    beside = settings_of(path)
    environment = _set_environment(beside)
    name = path.stem if stage_of(path.stem) == stage else stage
    binder = _Binder(path.parent, {name: list(overrides)}, order=beside.stages, files={name: path})
    binder.try_bind(name)
    own = {name: binder.jobs[name]} if name in binder.jobs else {}
    return Pipeline(path.parent.name, Storage(store or beside.store), own, binder.errors, environment)


def _set_environment(settings: PipelineConfig) -> dict[str, str]:
    """Give this process the variables of the pipeline file (endpoints, proxies, W&B's project), which are returned."""
    values = settings.values()
    os.environ.update(values)
    return values


def load_configs(stage: str, path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The typed config of one stage, or of every stage that a pipeline lists; no data is looked at.

    For what needs only the settings, on a machine from which data and artifacts may not be seen.
    """
    if stage != "pipeline":
        return {stage: build(stage_named(stage).config, load_yaml(path), overrides, where=str(path))}
    config, by_stage = _read_pipeline(path, overrides)
    files = {name: path.parent / f"{name}.yaml" for name in config.stages}
    return {
        name: build(stage_named(name).config, load_yaml(file), by_stage[name], where=str(file))
        for name, file in files.items()
    }


def settings_of(path: Path, overrides: Sequence[str] = ()) -> PipelineConfig:
    """What `pipeline.yaml` says, a config itself or the one beside it; the defaults where there is none."""
    beside = path.parent / "pipeline.yaml"
    if not beside.is_file():
        return PipelineConfig()
    own = [override for override in overrides if _is_of_pipeline(override)] if path == beside else []
    return build(PipelineConfig, load_yaml(beside), own, where=str(beside))


def _is_of_pipeline(override: str) -> bool:
    """Whether it is for `pipeline.yaml` itself and not for a stage: `store=…`, `environment.WANDB_PROJECT=…`."""
    key = parse_override(override)[0]
    return "." not in key or key.startswith("environment.")


class _Binder:
    """Binds each config file once, its inputs before it, and collects what is wrong."""

    def __init__(
        self,
        folder: Path,
        overrides: Mapping[str, list[str]],
        *,
        order: Sequence[str],
        files: Mapping[str, Path] | None = None,
    ) -> None:
        """`order` are the names of a pipeline's configs as it runs them; `files` are configs under other names."""
        self._folder, self._overrides, self._order, self._files = folder, overrides, order, files or {}
        self.jobs: dict[str, Job] = {}
        self.errors: dict[str, str] = {}
        self._binding: list[str] = []

    def try_bind(self, name: str) -> None:
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
        stage = stage_named(name)
        path = self._files.get(name, self._folder / f"{name}.yaml")
        config = build(stage.config, load_yaml(path), self._overrides.get(name, ()), where=str(path))
        try:
            stage.check(config)
            _check_sources(stage, config)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        needs = {marked.path: self._need(f"{path}: {marked.path}", name, marked) for marked in marked_inputs(config)}
        try:
            stage.check_needs(config, needs)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        job = Job(stage, name, config, needs)
        job.id  # noqa: B018 - touches every source file, so that a path that matches nothing is found here
        return job

    def _need(self, where: str, name: str, marked: MarkedInput) -> Job | Artifact:
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
                f"{where}: {value!r} is neither a config beside this one, nor a whole artifact (no artifact.json), "
                "nor a Hugging Face folder (no config.json; for a tokenizer alone, no tokenizer.json)"
            )
        if need.kind not in marked.kinds:
            raise ValueError(f"{where}: {value!r} is a {need.kind}; this input takes {' or '.join(marked.kinds)}")
        return need

    def _has_config(self, value: str) -> bool:
        return "/" not in value and (self._folder / f"{value}.yaml").is_file()

    def _previous(self, where: str, name: str, marked: MarkedInput) -> str:
        """The last config before `name` in the pipeline that makes one of the kinds."""
        if name in self._order:
            before = self._order[: self._order.index(name)]
        else:
            place = STAGES.index(stage_of(name))
            before = [other for other in self._order if STAGES.index(stage_of(other)) < place]
        makers = [other for other in before if self._has_config(other) and stage_named(other).kind in marked.kinds]
        if not makers:
            raise ValueError(
                f"{where}: no config before {name} makes a {' or '.join(marked.kinds)}; "
                "name a config beside this one, or give the location of an artifact or of a Hugging Face folder"
            )
        return makers[-1]


def run_pipeline(
    pipeline: Pipeline, *, address: str | None = None, on_begin: Callable[[], None] = lambda: None
) -> list[Artifact]:
    """Do every job whose artifact does not stand, in order, in one Ray session; the artifacts of all.

    Says first what that will take; `on_begin` is called when all checks are passed.
    Raises ValueError with every error of every stage, and for stages that this machine's memory or the store's disk
    cannot hold, before anything is started.
    """
    with working("checking the store, the sources and the inputs"):
        if not pipeline.errors:
            pipeline.store.check_writable()  # before anything is read from it: a store that refuses says so here
        if errors := find_errors(pipeline):
            raise ValueError("\n".join(errors))
    artifacts = {name: open_artifact(pipeline.store / job.id) for name, job in pipeline.jobs.items()}
    if all(artifacts.values()):
        return [artifact for artifact in artifacts.values() if artifact]
    with working("forecasting what the stages take"):
        expected = forecasts(pipeline.jobs, pipeline.store, address=address)
    for line in table(expected):
        log.info("%s", line)
    if found := find_shortages(pipeline, expected, address=address):
        raise ValueError("\n".join(found))
    done: list[Artifact] = []
    # In a submitted job every worker has these already.
    environment = {} if os.environ.get(SUBMITTED_VERSION) else dict(pipeline.environment)
    pending = [job for name, job in pipeline.jobs.items() if artifacts[name] is None]
    sources = [url for job in pending for url in _urls_of(job)]
    with connect(address, environment=environment), require_shared_paths(pipeline.store, sources):
        _check_rooms(pending)
        on_begin()
        for number, (name, job) in enumerate(pipeline.jobs.items(), start=1):
            artifact = artifacts[name]
            if artifact is None:
                log.info("[%d/%d] %s", number, len(pipeline.jobs), job.id)
                started = time.monotonic()
                with working(name):
                    artifact = run_job(job, pipeline.store, group=pipeline.name)
                log.info(
                    "[%d/%d] %s done in %.1f s",
                    number,
                    len(pipeline.jobs),
                    job.id,
                    time.monotonic() - started,
                )
            done.append(artifact)
    return done


def _check_sources(stage: Stage, config: Any) -> None:
    """`Stage.check_sources`; a path that matches nothing is told by its field, which readers do not know."""
    try:
        stage.check_sources(config)
    except ValueError:
        match_sources(config)
        raise


def _urls_of(job: Job) -> list[str]:
    """Everything that the job reads and that no stage of this pipeline makes; programs travel as text."""
    sources = [
        url for path, urls in job.source_urls.items() if path not in marked_functions(job.config) for url in urls
    ]
    return sources + [need.storage.url for need in job.needs.values() if isinstance(need, Artifact)]


def _check_rooms(jobs: Sequence[Job]) -> None:
    """Raises ValueError for the first job whose workers can never fit; what may still come is waited for later."""
    limits = max_cluster_resources()
    if limits is None:
        return
    for job in jobs:
        for groups in job.stage.groups(job.config):
            where = f"{job.name}: execution ({', '.join(groups)})"
            check_fits(total_resources(groups.values()), limits, where)


def find_errors(pipeline: Pipeline) -> list[str]:
    """Every mistake that can be found without starting anything: in configs, files, and inputs that stand."""
    found = list(pipeline.errors.values())
    for check in (wandb_mode, refuse_shadowed_packages):
        try:
            check()
        except ValueError as error:
            found.append(str(error))
    for name, job in pipeline.jobs.items():
        inputs = inputs_of(job, pipeline.store)
        if open_artifact(pipeline.store / job.id) or len(inputs) < len(job.needs):
            continue  # what stands was checked; what waits for an input is checked when its turn comes
        try:
            job.stage.check_inputs(job.config, inputs)
        except ValueError as error:
            found.append(f"{name}: {error}")
    return found


def find_shortages(pipeline: Pipeline, expected: Mapping[str, Forecast], *, address: str | None = None) -> list[str]:
    """One message for each stage still to be done that memory or disk clearly cannot hold."""
    pending = {name: one for name, one in expected.items() if one.basis != MEASURED}
    store = pipeline.store
    outputs = {name: store / pipeline.jobs[name].id for name in pending}
    return shortages(
        pending,
        store,
        free_memory=own_free_memory(address),
        free_disk=free_disk_bytes(store) if pending else None,
        remedies={name: _memory_remedy(pipeline.jobs[name]) for name in pending},
        written={name: output.num_bytes() for name, output in outputs.items() if store.is_local and output.exists()},
    )


def _memory_remedy(job: Job) -> str:
    """What of a stage's settings lowers the memory it takes."""
    names = {field.name for field in dataclasses.fields(job.config)}
    execution = {field.name for field in dataclasses.fields(job.config.execution)} if "execution" in names else set()
    offers = {
        "micro_batch_size": "execution.micro_batch_size",
        "kv_cache_gib": "execution.kv_cache_gib",
        "task_mib": "execution.task_mib",
    }
    found = [offer for name, offer in offers.items() if name in execution]
    return ", ".join([*found, "the number of workers" + (" or the size of the model" if "steps" in names else "")])


@dataclass(frozen=True)
class PlanRow:
    """What `plan` says of one stage."""

    name: str
    id: str
    state: str
    """`stands`, `stands (input rebuilt)`, `goes on` (part of it is there), or `runs`."""
    estimate: Mapping[str, float]
    placement: str
    precision: str
    """Of its matrix products; what `auto` means on this machine, unless the artifact was begun already."""


def plan(pipeline: Pipeline) -> list[PlanRow]:
    """What would run and what already stands, without starting anything."""
    return [_plan_row(name, job, pipeline.store) for name, job in pipeline.jobs.items()]


def _plan_row(name: str, job: Job, store: Storage) -> PlanRow:
    groups = job.stage.groups(job.config)
    warn_of_emulation(job.config, groups)
    precisions = precisions_of(job.config, groups, recorded_precisions(store / job.id))
    return PlanRow(
        name=name,
        id=job.id,
        state=_state(job, store),
        estimate=job.stage.estimate(with_precisions(job.config, precisions), job.needs),
        placement=_placement(job),
        precision=", ".join(dict.fromkeys(precisions.values())),
    )


def _state(job: Job, store: Storage) -> str:
    artifact = open_artifact(store / job.id)
    if artifact is None:
        return "goes on" if (store / job.id).exists() else "runs"
    for field_path, need in job.needs.items():
        current = need if isinstance(need, Artifact) else open_artifact(store / need.id)
        if current and current.digest != artifact.record.inputs[field_path].digest:
            return f"stands ({field_path} rebuilt since)"
    return "stands"


def _placement(job: Job) -> str:
    """How many processes of each group there will be: `placement×2`, `generators×1 learners×2`."""
    sets = job.stage.groups(job.config)
    return " ".join(f"{name}×{placement.workers}" for groups in sets for name, placement in groups.items())
