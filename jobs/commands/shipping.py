"""The files that travel to a Ray cluster with a command, and the command as it runs there.

Shipped are the YAML files that the command binds and the local `.py` files that they name. Not shipped are data,
artifacts, secrets, and Raymill itself, which the cluster has installed in the same version. A relative path of data
is a path under the working directory of the machine that submits, so it is written into the shipped configs as an
absolute one; artifacts' ids do not depend on paths.
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
from jobs.frame.config import load_yaml, parse_override
from jobs.frame.job import Job
from jobs.frame.pipeline import Pipeline
from jobs.frame.references import find_inputs, find_sources, without_function_name
from jobs.frame.sibling_modules import read_siblings
from jobs.frame.user_code import reject_file_lookups


def write_shipped_files(stage: str, config: Path, overrides: Sequence[str], pipeline: Pipeline, folder: Path) -> str:
    """Write the files to ship into `folder`, laid out as under the working directory. Returns the command to run
    there."""
    jobs = _with_needs(pipeline.jobs)
    replacements = {name: _path_replacements(job) for name, job in jobs.items()}
    for name in jobs:
        is_given_file = stage != "pipeline" and name in pipeline.jobs
        path = config if is_given_file else config.parent / f"{name}.yaml"
        _write_yaml(folder / _shipped_path(path), _replace(load_yaml(path), replacements[name]))
    if stage == "pipeline":
        _write_yaml(folder / _shipped_path(config), load_yaml(config))
    for job in jobs.values():
        for value in find_sources(job.config):
            if program := local_program(value):
                _copy_program(program, folder)
    shipped_overrides = [_shipped_override(override, stage, pipeline, replacements) for override in overrides]
    # The store is always named: the default, `runs` in the working directory of a job, would be lost with it.
    words = ["raymill", "run", stage, str(_shipped_path(config)), *shipped_overrides, "--store", pipeline.store.url]
    return shlex.join(words)


def local_program(value: str) -> Path | None:
    """The local file of a program that a source field names as `path/file.py:function`, which has to be shipped.

    None for data, `.py` files among them, and for a program behind a URL or in an archive.
    """
    file = without_function_name(value)
    path = None if file == value or "::" in file else local_path(file)
    return Path(path).expanduser() if path else None


def program_files(program: Path) -> list[Path]:
    """A program and the modules beside it that it imports. Raises ValueError when it needs other files as well."""
    reject_file_lookups(str(program))
    return [program, *(program.parent / name for name in read_siblings(str(program)))]


def _copy_program(program: Path, folder: Path) -> None:
    for file in program_files(program):
        target = folder / _shipped_path(program).parent / file.relative_to(program.parent)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())


def _shipped_path(path: Path) -> Path:
    """The path of a file among the shipped ones, relative to their folder.

    A file below the working directory keeps its relative path. Any other goes below `outside-<digest>`, where the
    digest of its folder keeps folders of the same name apart.
    """
    relative = Path(os.path.relpath(path))
    if ".." not in relative.parts:
        return relative
    folder = path.resolve().parent
    return Path(f"outside-{hashlib.sha256(str(folder).encode()).hexdigest()[:8]}", folder.name, path.name)


def _with_needs(jobs: Mapping[str, Job]) -> dict[str, Job]:
    """These jobs and all jobs that they need, directly or not, by name and each after its needs."""
    ordered: dict[str, Job] = {}
    for name, job in jobs.items():
        ordered |= _with_needs({need.name: need for need in job.planned.values() if isinstance(need, Job)})
        ordered[name] = job
    return ordered


def _path_replacements(job: Job) -> dict[str, str]:
    """Value in the job's config -> value to ship, for every path that would mean something else on the cluster."""
    replacements: dict[str, str] = {}
    for value in find_sources(job.config):
        program = local_program(value)
        suffix = value[len(without_function_name(value)) :]
        replacements[value] = f"{_shipped_path(program)}{suffix}" if program else absolute_url(value)
    for marked in find_inputs(job.config):
        if isinstance(job.planned[marked.path], Artifact):
            replacements[marked.value] = absolute_url(marked.value)
    return {value: replacement for value, replacement in replacements.items() if replacement != value}


def _shipped_override(
    override: str, stage: str, pipeline: Pipeline, replacements: Mapping[str, Mapping[str, str]]
) -> str:
    """The override with the paths in its value replaced."""
    key, value = parse_override(override)
    name = key.partition(".")[0] if stage == "pipeline" else next(iter(pipeline.jobs))
    plain = yaml.safe_load(value)
    replaced = _replace(plain, replacements.get(name, {}))
    if replaced == plain:
        return override
    return f"{key}={replaced if isinstance(replaced, str) else json.dumps(replaced)}"


def _replace(tree: Any, replacements: Mapping[str, str]) -> Any:
    """The plain value with every text that is a key of `replacements` replaced."""
    if isinstance(tree, Mapping):
        return {key: _replace(item, replacements) for key, item in tree.items()}
    if isinstance(tree, list):
        return [_replace(item, replacements) for item in tree]
    return replacements.get(tree, tree) if isinstance(tree, str) else tree


def _write_yaml(path: Path, values: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True))
