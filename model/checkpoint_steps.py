"""Lists and removes the checkpoints in a folder. Does not import torch.

A checkpoint is complete if its folder contains the record, `checkpoint.json`, which is written last.
"""

from __future__ import annotations

import json
import re
from typing import Any

from fsspec import AbstractFileSystem

RECORD = "checkpoint.json"
"""File name of a checkpoint's record."""


def latest_step(fs: AbstractFileSystem, path: str) -> int | None:
    """Return the step of the newest complete checkpoint in the folder `path`, or None if there is none."""
    return max(complete_steps(fs, path), default=None)


def complete_steps(fs: AbstractFileSystem, path: str) -> list[int]:
    """Return the steps of all complete checkpoints in the folder `path`, in ascending order."""
    return [step for step in _all_steps(fs, path) if fs.exists(f"{step_folder(path, step)}/{RECORD}")]


def read_record(fs: AbstractFileSystem, path: str, step: int) -> dict[str, Any]:
    """Return the content of a step's `checkpoint.json`: `step`, `model` and `extra`.

    Raises ValueError if the step has no complete checkpoint.
    """
    name = f"{step_folder(path, step)}/{RECORD}"
    if not fs.exists(name):
        steps = ", ".join(map(str, complete_steps(fs, path))) or "none"
        raise ValueError(f"{path} has no complete checkpoint of step {step}; steps with a complete checkpoint: {steps}")
    return json.loads(fs.cat_file(name))


def prune(fs: AbstractFileSystem, path: str, *, keep: int) -> None:
    """Keep the newest `keep` complete checkpoints, and remove all other checkpoints.

    Incomplete checkpoints that are newer than the newest complete one also stay.
    """
    kept = complete_steps(fs, path)[-keep:]
    for step in _all_steps(fs, path):
        if kept and step < kept[-1] and step not in kept:
            remove_checkpoint(fs, step_folder(path, step))


def step_folder(path: str, step: int) -> str:
    """Return the folder of a step's checkpoint."""
    return f"{path.rstrip('/')}/step-{step:08d}"


def _all_steps(fs: AbstractFileSystem, path: str) -> list[int]:
    """Return the steps of all checkpoint folders in `path`, complete or not, in ascending order."""
    fs.invalidate_cache()
    if not fs.exists(path):
        return []
    names = (entry.rstrip("/").rsplit("/", 1)[-1] for entry in fs.ls(path, detail=False))
    return sorted(int(match[1]) for match in map(re.compile(r"step-(\d+)").fullmatch, names) if match)


def remove_checkpoint(fs: AbstractFileSystem, folder: str) -> None:
    """Remove a checkpoint. Its record is removed first, so that the rest does not count as a complete checkpoint."""
    if fs.exists(f"{folder}/{RECORD}"):
        fs.rm_file(f"{folder}/{RECORD}")
    fs.rm(folder, recursive=True)
