"""Ship a command to a Ray cluster: the very same `raymill run …`, with the configs and the files of the user's own.

What travels: the YAML files that the command binds and the local `.py` files that they name. What does not: data,
artifacts, secrets, and Raymill itself, which the cluster has installed in the same version. A relative path of data
means a place under the directory of the one who submits, so it is shipped as an absolute one; identities do not depend
on paths.
"""

import hashlib
import json
import os
import shlex
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from cluster import submission_status
from cluster.paths import absolute_url, local_path
from cluster.progress import working
from cluster.session import refuse_shadowed_packages
from cluster.storage import Storage
from cluster.submission import JobReport, Submission, SubmitResult, query_job, submit_once
from cluster.user_cache import UserCache
from jobs.frame.artifact import Artifact, open_artifact
from jobs.frame.config import load_yaml, parse_override
from jobs.frame.fields import file_of, marked_inputs, marked_sources
from jobs.frame.pipeline import Pipeline, find_errors, load_pipeline, load_stage
from jobs.frame.same_code import code_variables
from jobs.frame.stage import Job
from jobs.frame.user_code import read_siblings, refuse_file_lookups

PIPELINE = "pipeline.yaml"
_START_S = 30.0
"""So long a submit looks at what becomes of the job."""
_POLL_S = 1.0
_remembered = UserCache("submissions")


def submit(
    stage: str, config: Path, overrides: Sequence[str], *, store: str | None, address: str | None
) -> SubmitResult:
    """The job that runs this command on the cluster whose dashboard is at `address`.

    Submitting twice does the work once: the id is a hash of the command, the shipped files, Raymill's version and the
    ids of the pipeline's jobs, so that a changed data file is new work. So is an artifact that no longer stands.
    Raises ValueError with every mistake that can be found here, before anything is sent.
    """
    load = load_pipeline if stage == "pipeline" else lambda *a, **k: load_stage(stage, *a, **k)
    refuse_shadowed_packages()  # the shipped files are the workers' directory, as this one is here
    pipeline: Pipeline = load(config, overrides, store=store)
    if errors := find_errors(pipeline):
        raise ValueError("\n".join(errors))
    with tempfile.TemporaryDirectory(prefix="raymill-submit-") as folder:
        command = stage_files(stage, config, overrides, pipeline, Path(folder))
        digest = hashlib.sha256(f"{version('raymill')}\0{command}\n".encode())
        for file in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
            digest.update(f"{file.relative_to(folder)}\0".encode() + file.read_bytes())
        digest.update("\n".join(job.id for job in pipeline.jobs.values()).encode())
        result = submit_once(
            command,
            Path(folder),
            id=f"{stage}-{digest.hexdigest()[:12]}",
            address=address,
            env={**pipeline.environment, **code_variables()},
            metadata={"raymill": version("raymill"), "store": pipeline.store.url},
            has_result=lambda: all(open_artifact(pipeline.store / job.id) for job in pipeline.jobs.values()),
            before_sending=lambda id: submission_status.note_sent(pipeline.store, id),
        )
    remembered = {"store": pipeline.store.url, "address": address, "environment": dict(pipeline.environment)}
    _remembered.put(result.submission.id, remembered)
    return result


def follow_start(submission: Submission, store: Storage) -> JobReport:
    """What is known of a job once its run has passed all checks, or has ended, or after `_START_S`.

    A run that is refused, because the cluster sees another store or has another Raymill, is so within seconds.
    """
    until = time.monotonic() + _START_S
    with working(lambda: f"waiting for job {submission.id} to begin"):
        while True:
            told = query_job(submission, store)
            is_running = told.run is not None and told.run.state == "running"
            if told.has_ended or is_running or time.monotonic() > until:
                return told
            time.sleep(_POLL_S)


def find_submission(id: str, *, address: str | None, store: str | None) -> tuple[Submission, Storage | None]:
    """A job that was submitted, and the store that its run writes to; what is not given as this user's last submit of
    it had it, where it was submitted from this machine. So are the variables that the store may need."""
    known = _remembered.get(id) or {}
    store = store or known.get("store")
    os.environ.update(known.get("environment", {}))
    return Submission(id, address or known.get("address")), Storage(store) if store else None


def stage_files(stage: str, config: Path, overrides: Sequence[str], pipeline: Pipeline, folder: Path) -> str:
    """Put the files to ship into `folder`, as they lie under the working directory; the command to run there."""
    shipped_config = _place(config)
    every = _with_needs(pipeline.jobs)
    moved = {name: _moved_values(job) for name, job in every.items()}
    for name in every:
        own_file = stage != "pipeline" and name in pipeline.jobs
        path = config if own_file else config.parent / f"{name}.yaml"
        _write_yaml(folder / _place(path), _replace(load_yaml(path), moved[name]))
    if stage == "pipeline":
        _write_yaml(folder / shipped_config, load_yaml(config))
    for job in every.values():
        for value in marked_sources(job.config):
            if program := local_program(value):
                for file in program_files(program):
                    target = folder / _place(program).parent / file.relative_to(program.parent)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(file.read_bytes())
    shipped = [_moved_override(override, stage, pipeline, moved) for override in overrides]
    # The store is always named: `runs` in the working directory of a job would be lost with it.
    words = ["raymill", "run", stage, str(shipped_config), *shipped, "--store", pipeline.store.url]
    return shlex.join(words)


def local_program(value: str) -> Path | None:
    """The file of a program that a source field names, `path/file.py:function`, and that is shipped; None for data,
    `.py` files among them, and for a program that is elsewhere or in an archive."""
    file = file_of(value)
    path = None if file == value or "::" in file else local_path(file)
    return Path(path).expanduser() if path else None


def program_files(program: Path) -> list[Path]:
    """A program and the modules beside it that it imports. Raises ValueError for one that wants other files as well."""
    refuse_file_lookups(str(program))
    return [program, *(program.parent / name for name in read_siblings(str(program)))]


def _place(path: Path) -> Path:
    """Where a file lies in what is shipped: as under the working directory; one from elsewhere in a folder of its
    folder's name, below a digest that tells folders of one name apart."""
    below = Path(os.path.relpath(path))
    if ".." not in below.parts:
        return below
    folder = path.resolve().parent
    return Path(f"outside-{hashlib.sha256(str(folder).encode()).hexdigest()[:8]}", folder.name, path.name)


def _with_needs(jobs: Mapping[str, Job]) -> dict[str, Job]:
    """These jobs and, by name, all that they need that is not an artifact already."""
    found: dict[str, Job] = {}
    for name, job in jobs.items():
        found |= _with_needs({need.name: need for need in job.needs.values() if isinstance(need, Job)})
        found[name] = job
    return found


def _moved_values(job: Job) -> dict[str, str]:
    """{value in the config: value to ship} of every path in it that would mean another place elsewhere."""
    moved: dict[str, str] = {}
    for value in marked_sources(job.config):
        program = local_program(value)
        moved[value] = f"{_place(program)}{value[len(file_of(value)) :]}" if program else absolute_url(value)
    for path, value, _ in marked_inputs(job.config):
        if isinstance(job.needs[path], Artifact):
            moved[value] = absolute_url(value)
    return {value: new for value, new in moved.items() if new != value}


def _moved_override(override: str, stage: str, pipeline: Pipeline, moved: Mapping[str, Mapping[str, str]]) -> str:
    key, value = parse_override(override)
    name = key.partition(".")[0] if stage == "pipeline" else next(iter(pipeline.jobs))
    plain = yaml.safe_load(value)
    replaced = _replace(plain, moved.get(name, {}))
    if replaced == plain:
        return override
    return f"{key}={replaced if isinstance(replaced, str) else json.dumps(replaced)}"


def _replace(tree: Any, moved: Mapping[str, str]) -> Any:
    if isinstance(tree, Mapping):
        return {key: _replace(item, moved) for key, item in tree.items()}
    if isinstance(tree, list):
        return [_replace(item, moved) for item in tree]
    return moved.get(tree, tree) if isinstance(tree, str) else tree


def _write_yaml(path: Path, values: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True))
