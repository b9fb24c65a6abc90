"""Sharded training checkpoints on any fsspec filesystem, written by a background thread.

A checkpoint is a folder such as `step-00000100` in PyTorch's distributed checkpoint format. Each rank writes its shards
of the state dict, and a run with a different number of ranks can load them. When all ranks have finished, rank 0 writes
`checkpoint.json`, the record of the checkpoint. A folder without this file is not a complete checkpoint and is never
loaded. The record contains the step, the model's configuration, and what the caller needs to resume, such as the
number of tokens that were trained on. The position in the data is not stored, because it follows from the step.
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

from model.checkpoint_steps import RECORD, latest_step, prune, read_record, remove_checkpoint, step_folder
from model.heads import ScalarModel
from model.train import TrainState

if TYPE_CHECKING:
    from torch.distributed.checkpoint.metadata import Metadata


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or read. The message has the checkpoint's folder and the error of each rank."""


class Checkpoints:
    """Saves and loads the checkpoints of a run, which are in one folder.

    Every rank creates a `Checkpoints` object. The methods are collective: all ranks must call them.
    """

    def __init__(self, fs: AbstractFileSystem, path: str, *, keep: int = 2) -> None:
        """`path` is a folder in `fs`. After each save only the newest `keep` complete checkpoints remain."""
        if keep < 1:
            raise ValueError(f"keep={keep}: must be at least 1, because a run resumes from its newest checkpoint")
        self.fs = fs
        self.path = path.rstrip("/")
        self.keep = keep
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending_save: Future[None] | None = None
        # The background thread has a separate process group, so that its collectives do not mix with those of training.
        # The backend is gloo even if training uses NCCL, because the thread sends objects in CPU memory.
        self._group = cast(dist.ProcessGroup, dist.new_group(backend="gloo")) if dist.is_initialized() else None

    def save(self, state: TrainState, extra: Mapping[str, Any]) -> None:
        """Copy the state to CPU memory and start writing the copy in the background. `extra` must be JSON.

        If the previous save is still in progress, this method waits for it. If the previous save failed, this method
        raises the error of that save. Call `wait` before the process ends.
        """
        self.wait()
        tensors = _copy_to_cpu(_named_tensors(state))
        record = {"step": state.step, "model": _describe_model(state), "extra": dict(extra)}
        json.dumps(record)  # raises an error here if `extra` is not JSON, instead of in the background
        self._pending_save = self._writer.submit(self._write, tensors, record)

    def wait(self) -> None:
        """Wait until the last save has written a complete checkpoint. Raises the error of a save that failed.

        Does nothing if no save has started since the last call.
        """
        if self._pending_save is not None:
            pending_save, self._pending_save = self._pending_save, None
            pending_save.result()

    def load(self, state: TrainState, *, step: int | None = None) -> dict[str, Any] | None:
        """Load the newest complete checkpoint, or the checkpoint of `step`, into the state. Returns its `extra`.

        Returns None and leaves the state unchanged if the folder has no complete checkpoint. The number of ranks may
        differ from that of the run that saved the checkpoint. Raises ValueError if the checkpoint's model has a
        different configuration, or if `step` is given and has no complete checkpoint.
        """
        from torch.distributed.checkpoint.api import CheckpointException
        from torch.distributed.checkpoint.state_dict_loader import load

        from model.checkpoint_files import CheckpointReader

        loaded_step = latest_step(self.fs, self.path) if step is None else step
        if loaded_step is None:
            return None
        record = read_record(self.fs, self.path, loaded_step)
        if record["model"] != _describe_model(state):
            raise ValueError(
                f"checkpoint {step_folder(self.path, loaded_step)} has a different model: its model is "
                f"{record['model']}, but the model of this run is {_describe_model(state)}. Use a different output "
                f"folder, or the model configuration of the checkpoint"
            )
        reader = CheckpointReader(self.fs, step_folder(self.path, loaded_step))
        _create_optimizer_state(state, reader.read_metadata())
        tensors = dict(_named_tensors(state))
        try:
            load(tensors, storage_reader=reader, process_group=self._group, no_dist=self._group is None)
        except CheckpointException as error:
            raise CheckpointError(f"checkpoint {reader.path} could not be read: {_rank_errors(error)}") from error
        state.step = loaded_step
        return record["extra"]

    def _write(self, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
        from torch.distributed.checkpoint.api import CheckpointException
        from torch.distributed.checkpoint.state_dict_saver import save

        from model.checkpoint_files import CheckpointWriter

        folder = step_folder(self.path, record["step"])
        if self._is_first_rank and self.fs.exists(folder):
            # The folder is left from a process that was killed during a save, or from a run that is now repeated from
            # an earlier step. `save` below starts with a collective, so no rank writes before the folder is removed.
            remove_checkpoint(self.fs, folder)
        writer = CheckpointWriter(self.fs, folder)
        try:
            save(tensors, storage_writer=writer, process_group=self._group, no_dist=self._group is None)
        except CheckpointException as error:  # it is a BaseException, which `except Exception` does not catch
            raise CheckpointError(f"checkpoint {folder} could not be written: {_rank_errors(error)}") from error
        try:
            if self._is_first_rank:
                _write_json(self.fs, f"{folder}/{RECORD}", record)
                prune(self.fs, self.path, keep=self.keep)
        finally:  # reached also if rank 0 fails, so that the other ranks do not wait forever
            if self._group is not None:
                dist.barrier(group=self._group)

    @property
    def _is_first_rank(self) -> bool:
        return self._group is None or dist.get_rank(self._group) == 0


def _rank_errors(exception: BaseException) -> str:
    """Return the errors of all ranks in one line, such as `OSError: No space left on device (rank 0, 1)`.

    Equal errors of several ranks are listed once.
    """
    ranks_by_error: dict[str, list[str]] = {}
    for rank, (error, _) in exception.failures.items():  # pyright: ignore[reportAttributeAccessIssue]
        ranks_by_error.setdefault(" ".join(f"{type(error).__name__}: {error}".split()), []).append(str(rank))
    return "; ".join(f"{text} (rank {', '.join(ranks)})" for text, ranks in ranks_by_error.items())


def _named_tensors(state: TrainState) -> Mapping[str, Tensor]:
    """Return all tensors of the state by the names `model/PARAMETER` and `optimizer/PARAMETER/KEY`, without copying."""
    # state_dict() instead of named_parameters(), because state_dict() first reshards parameters that a forward left
    # unsharded.
    tensors = {f"model/{name}": tensor for name, tensor in state.model.state_dict().items()}
    for group in state.optimizer.param_groups:
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            for key, tensor in state.optimizer.state[parameter].items():
                tensors[f"optimizer/{name}/{key}"] = tensor
    return tensors


def _copy_to_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies of the tensors in CPU memory. A sharded tensor stays sharded."""
    from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

    stager = DefaultStager(
        StagingOptions(
            use_pinned_memory=False, use_shared_memory=False, use_async_staging=False, use_non_blocking_copy=False
        )
    )
    copies = stager.stage(dict(tensors))
    stager.close()
    assert not isinstance(copies, Future), "the stager copied in the background although use_async_staging is False"
    return copies


def _create_optimizer_state(state: TrainState, metadata: Metadata) -> None:
    """Create the optimizer's tensors, into which the checkpoint is loaded.

    An optimizer creates these tensors in its first step, so a new optimizer has none.
    """
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    saved_tensors = metadata.state_dict_metadata
    for group in state.optimizer.param_groups:
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            prefix = f"optimizer/{name}/"
            for key in (saved.removeprefix(prefix) for saved in saved_tensors if saved.startswith(prefix)):
                tensor = saved_tensors[prefix + key]
                assert isinstance(tensor, TensorStorageMetadata), f"{prefix}{key} is not a tensor in the checkpoint"
                has_parameter_shape = tensor.size == parameter.shape
                state.optimizer.state[parameter][key] = (
                    torch.zeros_like(parameter, dtype=tensor.properties.dtype, requires_grad=False)
                    if has_parameter_shape
                    else torch.zeros(tensor.size, dtype=tensor.properties.dtype, device=parameter.device)
                )


def _describe_model(state: TrainState) -> dict[str, Any]:
    head = "scalar" if isinstance(state.model, ScalarModel) else "language"
    return {"head": head, **dataclasses.asdict(state.model.config)}


def _write_json(fs: AbstractFileSystem, name: str, value: object) -> None:
    """Write a JSON file under a temporary name and then rename it, so that no reader sees an incomplete file."""
    fs.pipe_file(f"{name}.tmp", json.dumps(value, indent=2).encode())
    fs.mv(f"{name}.tmp", name)
