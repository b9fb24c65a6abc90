"""Lists, removes and describes the checkpoints in a folder. Does not import torch.

A checkpoint is complete if its folder contains the record, `checkpoint.json`, which is written last. The record has the
size and the checksum of every other file of the checkpoint. A checkpoint of format 1, which earlier versions of Raymill
wrote, has no checksums.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import zlib
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple, cast

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

RECORD = "checkpoint.json"
"""File name of a checkpoint's record."""
FORMAT = 2
"""The format of the checkpoints that this version writes. It can read all formats up to this one."""
_UNUSABLE_RECORD = "unusable.json"
"""New name of the record of a checkpoint that was set aside."""
_FORMAT_1_KEYS = {"step", "model", "extra"}


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or read. The message has the checkpoint's folder and the error of each rank."""


class DamagedCheckpointError(CheckpointError):
    """A file of a checkpoint is missing or has changed. The message has the folder, and each file with its fault."""


class NoUsableCheckpointError(ValueError):
    """A run has checkpoints, but cannot resume from any of them."""


class FileChecksum(NamedTuple):
    """The size and the checksum of a file."""

    num_bytes: int
    crc32: int


@dataclass(frozen=True, kw_only=True)
class CheckpointRecord:
    """The content of a `checkpoint.json`."""

    step: int
    """Number of optimizer steps that were done."""
    model: dict[str, Any]
    """The model's kind of head and its configuration."""
    extra: dict[str, Any]
    """What else the run needs to resume, such as the number of tokens that were trained on."""
    files: dict[str, FileChecksum] | None
    """The checksums of all other files of the checkpoint, by file name. None for a checkpoint of format 1."""

    def to_json(self) -> bytes:
        """Return the content of the file. It contains a checksum of itself."""
        content = {"format": FORMAT, **dataclasses.asdict(self)}
        return json.dumps({**content, "crc32": _record_checksum(content)}, indent=2).encode()

    @staticmethod
    def from_json(data: bytes, folder: str) -> CheckpointRecord:
        """Return the record in the file of the checkpoint `folder`.

        Raises DamagedCheckpointError if the file has changed since it was written. Raises ValueError if a later version
        of Raymill has written it.
        """
        try:
            content: dict[str, Any] = json.loads(data)
            if "format" not in content and content.keys() == _FORMAT_1_KEYS:
                return CheckpointRecord(**content, files=None)
            crc32, file_format = content.pop("crc32"), content.pop("format")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise _damaged(folder, RECORD, "is empty" if not data else f"is not a valid record ({error})") from error
        if _record_checksum({"format": file_format, **content}) != crc32:
            raise _damaged(folder, RECORD, "does not have the content that was written")
        if file_format != FORMAT:
            raise ValueError(
                f"checkpoint {folder} has format {file_format}, but this version of Raymill reads the formats up to "
                f"{FORMAT}; use the version that wrote it, or a different output folder"
            )
        files = {name: FileChecksum(*checksum) for name, checksum in content.pop("files").items()}
        return CheckpointRecord(**content, files=files)


def latest_step(fs: AbstractFileSystem, path: str) -> int | None:
    """Return the step of the newest complete checkpoint in the folder `path`, or None if there is none."""
    return max(complete_steps(fs, path), default=None)


def complete_steps(fs: AbstractFileSystem, path: str) -> list[int]:
    """Return the steps of all complete checkpoints in the folder `path`, in ascending order. Their files may be
    damaged."""
    return [step for step in _all_steps(fs, path) if fs.exists(f"{step_folder(path, step)}/{RECORD}")]


def interrupted_steps(fs: AbstractFileSystem, path: str) -> list[int]:
    """Return the steps of all checkpoints in the folder `path` whose save has not ended, in ascending order."""
    names = (RECORD, _UNUSABLE_RECORD)
    folders = ((step, step_folder(path, step)) for step in _all_steps(fs, path))
    return [step for step, folder in folders if not any(fs.exists(f"{folder}/{name}") for name in names)]


def read_record(fs: AbstractFileSystem, path: str, step: int) -> CheckpointRecord:
    """Return the record of a step's checkpoint.

    Raises ValueError if the step has no complete checkpoint, or one that a later version of Raymill has written. Raises
    DamagedCheckpointError if the record is damaged.
    """
    folder = step_folder(path, step)
    if not fs.exists(f"{folder}/{RECORD}"):
        steps = ", ".join(map(str, complete_steps(fs, path))) or "none"
        raise ValueError(f"{path} has no complete checkpoint of step {step}; steps with a complete checkpoint: {steps}")
    record = CheckpointRecord.from_json(cast(bytes, fs.cat_file(f"{folder}/{RECORD}")), folder)
    if record.step != step:
        raise _damaged(folder, RECORD, f"is the record of step {record.step}")
    return record


def write_record(fs: AbstractFileSystem, path: str, record: CheckpointRecord) -> None:
    """Write the record of a checkpoint, which makes the checkpoint complete.

    It is written under a temporary name and then renamed, so that no reader sees an incomplete file. On a local disk,
    it is on the disk when this function returns. Raises CheckpointError if a file of the checkpoint does not have its
    size.
    """
    folder = step_folder(path, record.step)
    fs.invalidate_cache()
    for name, checksum in (record.files or {}).items():
        if (size := fs.size(f"{folder}/{name}")) != checksum.num_bytes:
            raise CheckpointError(f"checkpoint {folder} is incomplete: {name} has {size} of {checksum.num_bytes} bytes")
    name = f"{folder}/{RECORD}"
    with cast(BinaryIO, fs.open(f"{name}.tmp", "wb")) as file:
        file.write(record.to_json())
        sync_file(fs, file)
    fs.mv(f"{name}.tmp", name)
    for changed_folder in (folder, path, os.path.dirname(path)):
        sync_folder(fs, changed_folder)


def prune(fs: AbstractFileSystem, path: str, *, kept_steps: Collection[int]) -> None:
    """Remove the checkpoints of all steps below the largest of `kept_steps`, except those of `kept_steps`."""
    for step in _all_steps(fs, path):
        if step < max(kept_steps, default=0) and step not in kept_steps:
            remove_checkpoint(fs, step_folder(path, step))


def set_aside(fs: AbstractFileSystem, path: str, *, after_step: int | None) -> None:
    """Rename the records of all checkpoints that are newer than `after_step`, so that they do not count as complete.

    The run resumes from `after_step`, so it will write new checkpoints for these steps. Otherwise a run could later
    resume from a checkpoint of a part of its history that was abandoned. None stands for the beginning of the run. The
    files stay until a new checkpoint of the step is saved, or until the checkpoint would be too old to be kept.
    """
    for step in complete_steps(fs, path):
        if after_step is None or step > after_step:
            folder = step_folder(path, step)
            fs.mv(f"{folder}/{RECORD}", f"{folder}/{_UNUSABLE_RECORD}")
            sync_folder(fs, folder)


def step_folder(path: str, step: int) -> str:
    """Return the folder of a step's checkpoint."""
    return f"{path.rstrip('/')}/step-{step:08d}"


def remove_checkpoint(fs: AbstractFileSystem, folder: str) -> None:
    """Remove a checkpoint. Its record is removed first, so that the rest does not count as a complete checkpoint."""
    if fs.exists(f"{folder}/{RECORD}"):
        fs.rm_file(f"{folder}/{RECORD}")
        sync_folder(fs, folder)
    fs.rm(folder, recursive=True)


def sync_file(fs: AbstractFileSystem, file: Any) -> None:
    """Wait until the content of a file that is open for writing is on the disk. Does nothing on object stores, where
    the content is stored when closing the file returns."""
    if isinstance(fs, LocalFileSystem):
        file.flush()
        os.fsync(file.fileno())


def sync_folder(fs: AbstractFileSystem, folder: str) -> None:
    """Wait until the names of the files in a local folder are on the disk. Does nothing on object stores."""
    if isinstance(fs, LocalFileSystem):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _all_steps(fs: AbstractFileSystem, path: str) -> list[int]:
    """Return the steps of all checkpoint folders in `path`, complete or not, in ascending order."""
    fs.invalidate_cache()
    if not fs.exists(path):
        return []
    names = (entry.rstrip("/").rsplit("/", 1)[-1] for entry in fs.ls(path, detail=False))
    return sorted(int(match[1]) for match in map(re.compile(r"step-(\d+)").fullmatch, names) if match)


def _record_checksum(content: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def _damaged(folder: str, name: str, fault: str) -> DamagedCheckpointError:
    return DamagedCheckpointError(f"checkpoint {folder} is damaged: {name} {fault}")
