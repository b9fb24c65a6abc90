"""The checkpoints in a folder: which there are, which are whole, and the removal of old ones. Takes no torch."""

from __future__ import annotations

import json
import re
from typing import Any

from fsspec import AbstractFileSystem

RECORD = "checkpoint.json"


def latest_step(fs: AbstractFileSystem, path: str) -> int | None:
    """The step of the newest whole checkpoint under `path`, None when there is none."""
    return max(complete_steps(fs, path), default=None)


def complete_steps(fs: AbstractFileSystem, path: str) -> list[int]:
    """The steps of the whole checkpoints under `path`, ascending."""
    return [step for step in _step_folders(fs, path) if fs.exists(f"{step_folder(path, step)}/{RECORD}")]


def read_record(fs: AbstractFileSystem, path: str, step: int) -> dict[str, Any]:
    """The `checkpoint.json` of one step: step, model, extra. Raises ValueError when the step has no checkpoint."""
    name = f"{step_folder(path, step)}/{RECORD}"
    if not fs.exists(name):
        raise ValueError(f"no whole checkpoint of step {step} under {path}: whole are {complete_steps(fs, path)}")
    return json.loads(fs.cat_file(name))


def prune(fs: AbstractFileSystem, path: str, *, keep: int) -> None:
    """Remove all but the newest `keep` whole checkpoints, and unfinished ones older than the newest."""
    whole = complete_steps(fs, path)
    kept = whole[-keep:]
    for step in _step_folders(fs, path):
        if kept and step < kept[-1] and step not in kept:
            remove_checkpoint(fs, step_folder(path, step))


def step_folder(path: str, step: int) -> str:
    """The folder of one step's checkpoint."""
    return f"{path.rstrip('/')}/step-{step:08d}"


def _step_folders(fs: AbstractFileSystem, path: str) -> list[int]:
    fs.invalidate_cache()
    if not fs.exists(path):
        return []
    names = (entry.rstrip("/").rsplit("/", 1)[-1] for entry in fs.ls(path, detail=False))
    return sorted(int(match[1]) for match in map(re.compile(r"step-(\d+)").fullmatch, names) if match)


def remove_checkpoint(fs: AbstractFileSystem, folder: str) -> None:
    """Remove a checkpoint, its record first, so that a half removed one does not look whole."""
    if fs.exists(f"{folder}/{RECORD}"):
        fs.rm_file(f"{folder}/{RECORD}")
    fs.rm(folder, recursive=True)
