"""Sharded training checkpoints on any fsspec filesystem, written in the background, visible only when whole.

A checkpoint is a folder `step-00000100` of PyTorch's distributed checkpoint format: each rank writes its own
shards, and they load at any other number of ranks. `checkpoint.json` is written last, after every rank is done; a
folder without it is not a checkpoint. It holds the step, the model's kind and sizes, and whatever the caller needs
to resume, such as the position in the data.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
from fsspec import AbstractFileSystem
from torch import Tensor

from model.heads import ScalarHead
from model.train import TrainState

if TYPE_CHECKING:
    from torch.distributed.checkpoint.metadata import Metadata
from model.checkpoint_steps import RECORD, latest_step, prune, read_record, remove_checkpoint, step_folder


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or read; the message names its folder and each rank's error."""


class Checkpoints:
    """The checkpoints of one run: the folder that holds them and the save in progress.

    Make one on every rank and call its methods on all ranks together.
    """

    def __init__(self, fs: AbstractFileSystem, path: str, *, keep: int = 2) -> None:
        """`path` is a folder inside `fs`; all but the newest `keep` whole checkpoints are removed."""
        if keep < 1:
            raise ValueError(f"keep={keep}: must be at least 1, as a run resumes from its newest checkpoint")
        self.fs = fs
        self.path = path.rstrip("/")
        self.keep = keep
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._saving: Future[None] | None = None
        # The background thread needs a group of its own: its collectives must not mix with training's, and they
        # carry CPU objects even where training uses NCCL.
        self._group = cast(dist.ProcessGroup, dist.new_group(backend="gloo")) if dist.is_initialized() else None

    def save(self, state: TrainState, extra: Mapping[str, Any]) -> None:
        """Copy the state to CPU memory and write it in the background; `extra` is any JSON.

        Waits first for the save before, and raises its error. Call `wait` before the process ends.
        """
        self.wait()
        tensors = _snapshot(_tensors(state))
        record = {"step": state.step, "model": _describe(state), "extra": dict(extra)}
        json.dumps(record)  # fail here rather than in the background
        self._saving = self._writer.submit(self._write, tensors, record)

    def wait(self) -> None:
        """Return when the last save is whole and visible. Raises its error when it failed."""
        if self._saving is not None:
            saving, self._saving = self._saving, None
            saving.result()

    def load(self, state: TrainState, *, step: int | None = None) -> dict[str, Any] | None:
        """Fill the state from the newest whole checkpoint (or that of `step`) and return its `extra`.

        Returns None, and leaves the state unchanged, when there is none. The number of ranks may differ from the one
        that saved. Raises ValueError when the checkpoint is of another model, or `step` has none.
        """
        from torch.distributed.checkpoint.api import CheckpointException
        from torch.distributed.checkpoint.state_dict_loader import load

        from model.checkpoint_files import CheckpointReader

        loaded_step = latest_step(self.fs, self.path) if step is None else step
        if loaded_step is None:
            return None
        record = read_record(self.fs, self.path, loaded_step)
        if record["model"] != _describe(state):
            raise ValueError(
                f"checkpoint {step_folder(self.path, loaded_step)} is of another model: it holds {record['model']}, "
                f"this run has {_describe(state)}. Use another output, or the configuration that wrote it"
            )
        reader = CheckpointReader(self.fs, step_folder(self.path, loaded_step))
        _make_optimizer_state(state, reader.read_metadata())
        tensors = dict(_tensors(state))
        try:
            load(tensors, storage_reader=reader, process_group=self._group, no_dist=self._group is None)
        except CheckpointException as error:
            raise CheckpointError(f"checkpoint {reader.path} could not be read: {_causes(error)}") from error
        state.step = loaded_step
        return record["extra"]

    def _write(self, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
        from torch.distributed.checkpoint.api import CheckpointException
        from torch.distributed.checkpoint.state_dict_saver import save

        from model.checkpoint_files import CheckpointWriter

        folder = step_folder(self.path, record["step"])
        if self._is_first and self.fs.exists(folder):
            # A partial one from before a kill, or a whole one of a run that started over. Other ranks write only after
            # planning together with this one, so the removal is complete by then.
            remove_checkpoint(self.fs, folder)
        writer = CheckpointWriter(self.fs, folder)
        try:
            save(tensors, storage_writer=writer, process_group=self._group, no_dist=self._group is None)
        except CheckpointException as error:  # a BaseException, which a caller's `except Exception` would miss
            raise CheckpointError(f"checkpoint {folder} could not be written: {_causes(error)}") from error
        try:
            if self._is_first:
                _write_json(self.fs, f"{folder}/{RECORD}", record)
                prune(self.fs, self.path, keep=self.keep)
        finally:  # when the first rank fails, the others must not wait for ever
            if self._group is not None:
                dist.barrier(group=self._group)

    @property
    def _is_first(self) -> bool:
        return self._group is None or dist.get_rank(self._group) == 0


def _causes(failed: BaseException) -> str:
    """The ranks' errors in one line, equal ones once: `OSError: No space left on device (rank 0, 1)`."""
    ranks: dict[str, list[str]] = {}
    for rank, (error, _) in failed.failures.items():  # pyright: ignore[reportAttributeAccessIssue]
        ranks.setdefault(" ".join(f"{type(error).__name__}: {error}".split()), []).append(str(rank))
    return "; ".join(f"{cause} (rank {', '.join(numbers)})" for cause, numbers in ranks.items())


def _tensors(state: TrainState) -> Mapping[str, Tensor]:
    """All tensors of the state by name: `model/NAME` and `optimizer/NAME/KEY`, sharing the state's memory."""
    # state_dict() rather than named_parameters(): it first reshards what a forward left gathered.
    tensors = {f"model/{name}": tensor for name, tensor in state.model.state_dict().items()}
    for group in state.optimizer.param_groups:
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            for key, tensor in state.optimizer.state[parameter].items():
                tensors[f"optimizer/{name}/{key}"] = tensor
    return tensors


def _snapshot(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on CPU, each shard as a shard, which training does not change any more."""
    from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

    stager = DefaultStager(
        StagingOptions(
            use_pinned_memory=False, use_shared_memory=False, use_async_staging=False, use_non_blocking_copy=False
        )
    )
    copies = stager.stage(dict(tensors))
    stager.close()
    assert not isinstance(copies, Future), "the stager copied in the background in spite of its options"
    return copies


def _make_optimizer_state(state: TrainState, metadata: Metadata) -> None:
    """Give a new optimizer empty tensors for the checkpoint to fill: it creates its own only in its first step."""
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    saved = metadata.state_dict_metadata
    for group in state.optimizer.param_groups:
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            prefix = f"optimizer/{name}/"
            for key in (entry.removeprefix(prefix) for entry in saved if entry.startswith(prefix)):
                entry = saved[prefix + key]
                assert isinstance(entry, TensorStorageMetadata), f"{prefix}{key} is not a tensor in the checkpoint"
                is_like_parameter = entry.size == parameter.shape
                state.optimizer.state[parameter][key] = (
                    torch.zeros_like(parameter, dtype=entry.properties.dtype, requires_grad=False)
                    if is_like_parameter
                    else torch.zeros(entry.size, dtype=entry.properties.dtype, device=parameter.device)
                )


def _describe(state: TrainState) -> dict[str, Any]:
    head = "scalar" if isinstance(state.model, ScalarHead) else "language"
    return {"head": head, **dataclasses.asdict(state.model.config)}


def _write_json(fs: AbstractFileSystem, name: str, value: object) -> None:
    """Write JSON under a temporary name and rename it, so that no reader sees half of it."""
    fs.pipe_file(f"{name}.tmp", json.dumps(value, indent=2).encode())
    fs.mv(f"{name}.tmp", name)
