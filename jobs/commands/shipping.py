"""Writes the files that a command needs on a Ray cluster into a folder, which is then shipped to the cluster.

The shipped files are copies of the YAML files that the command reads, and of the local `.py` files that these YAML
files name, with the modules that these `.py` files import from their folder. Data, artifacts and secrets are not
shipped. Raymill is not shipped either. The same version of Raymill must be installed on the cluster.

In the shipped configs, paths to data and artifacts are absolute, because a relative path is valid only in the working
directory on the machine that submits. The ids of artifacts do not depend on paths.
"""

import hashlib
import json
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from cluster.paths import absolute_url, local_path
from jobs.frame.artifact import Artifact
from jobs.frame.config_loader import load_yaml, parse_override
from jobs.frame.job import Job
from jobs.frame.pipeline import Pipeline
from jobs.frame.pipeline_config import find_pipeline_file
from jobs.frame.references import find_inputs, find_sources, without_function_name
from jobs.frame.sibling_modules import read_siblings
from jobs.frame.user_code import reject_file_lookups


def write_shipped_files(stage: str, config: Path, overrides: Sequence[str], pipeline: Pipeline, folder: Path) -> str:
    """Write the files that must be shipped into `folder`, each under the path that `_shipped_path` returns.

    `stage`, `config` and `overrides` are the arguments of the user's command, and `pipeline` was loaded from them.
    Returns the command that the cluster must run in its copy of `folder`.
    """
    jobs = _with_required_jobs(pipeline.jobs)
    replacements = {name: _path_replacements(job) for name, job in jobs.items()}
    for name in jobs:
        is_config_of_command = stage != "pipeline" and name in pipeline.jobs
        path = config if is_config_of_command else config.parent / f"{name}.yaml"
        _write_yaml(folder / _shipped_path(path), _replace(load_yaml(path), replacements[name]))
    if pipeline_file := find_pipeline_file(stage, config):
        _write_yaml(folder / _shipped_path(pipeline_file), load_yaml(pipeline_file))
    for job in jobs.values():
        for value in find_sources(job.config):
            if program := local_program(value):
                _copy_program(program, folder)
    shipped_overrides = [_shipped_override(override, stage, pipeline, replacements) for override in overrides]
    # --store is always in the command. The default store is the folder `runs` in the working directory, and Ray removes
    # the working directory of a job when the job ends.
    command = ["raymill", "run", stage, str(_shipped_path(config)), *shipped_overrides, "--store", pipeline.store.url]
    return shlex.join(command)


def local_program(value: str) -> Path | None:
    """Return the path `path/file.py` of the local program in a value `path/file.py:function` of a source field.

    Returns None if the value contains no local program: if it is a path to data, which may be a `.py` file too, or if
    the program is at a URL or in an archive. Local programs must be shipped.
    """
    file = without_function_name(value)
    path = None if file == value or "::" in file else local_path(file)
    return Path(path).expanduser() if path else None


def program_files(program: Path) -> list[Path]:
    """Return the file of a program and the modules in its folder that it imports.

    Raises ValueError if one of these files uses `__file__`, because it may then read further files from its folder.
    """
    reject_file_lookups(str(program))
    return [program, *(program.parent / name for name in read_siblings(str(program)))]


def _copy_program(program: Path, folder: Path) -> None:
    """Copy the files of a program into `folder`, the folder of the shipped files."""
    for file in program_files(program):
        target = folder / _shipped_path(program).parent / file.relative_to(program.parent)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())


def _shipped_path(path: Path) -> Path:
    """Return the path of a shipped file, relative to the folder of the shipped files.

    For a file in the working directory, this is the path relative to the working directory. For any other file it is
    `outside-DIGEST/FOLDER/FILE`, where FOLDER is the name of the file's folder. DIGEST is a hash of the complete path
    of that folder, so that folders with equal names do not collide.
    """
    relative = Path(os.path.relpath(path))
    if ".." not in relative.parts:
        return relative
    folder = path.resolve().parent
    return Path(f"outside-{hashlib.sha256(str(folder).encode()).hexdigest()[:8]}", folder.name, path.name)


def _with_required_jobs(jobs: Mapping[str, Job]) -> dict[str, Job]:
    """Return these jobs and all jobs whose artifacts they read, directly or indirectly.

    The keys of `jobs` and of the result are the names of the jobs. A job comes after the jobs whose artifacts it reads.
    """
    ordered: dict[str, Job] = {}
    for name, job in jobs.items():
        ordered |= _with_required_jobs(
            {needed.name: needed for needed in job.planned.values() if isinstance(needed, Job)}
        )
        ordered[name] = job
    return ordered


def _path_replacements(job: Job) -> dict[str, str]:
    """Return a replacement for each path in the job's config that would not be valid on the cluster.

    The keys are the paths as they are in the config, and the values are the paths for the shipped config.
    """
    replacements: dict[str, str] = {}
    for value in find_sources(job.config):
        program = local_program(value)
        suffix = value[len(without_function_name(value)) :]
        replacements[value] = f"{_shipped_path(program)}{suffix}" if program else absolute_url(value)
    for found in find_inputs(job.config):
        if isinstance(job.planned[found.path], Artifact):
            replacements[found.value] = absolute_url(found.value)
    return {value: replacement for value, replacement in replacements.items() if replacement != value}


def _shipped_override(
    override: str, stage: str, pipeline: Pipeline, replacements: Mapping[str, Mapping[str, str]]
) -> str:
    """Return an override for the command on the cluster, in which the paths in the value of `override` are replaced.

    `override` is an override of the user's command. `replacements` maps the name of each job to the result of
    `_path_replacements` for the job.
    """
    key, value = parse_override(override)
    name = key.partition(".")[0] if stage == "pipeline" else next(iter(pipeline.jobs))
    parsed = yaml.safe_load(value)
    replaced = _replace(parsed, replacements.get(name, {}))
    if replaced == parsed:
        return override
    return f"{key}={replaced if isinstance(replaced, str) else json.dumps(replaced)}"


def _replace(value: Any, replacements: Mapping[str, str]) -> Any:
    """Return a copy of a YAML value in which each string, at any depth, is replaced by `replacements[string]`.

    Strings that are not keys of `replacements` stay the same.
    """
    if isinstance(value, Mapping):
        return {key: _replace(item, replacements) for key, item in value.items()}
    if isinstance(value, list):
        return [_replace(item, replacements) for item in value]
    return replacements.get(value, value) if isinstance(value, str) else value


def _write_yaml(path: Path, values: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True))
