"""Sharded training checkpoints on any fsspec filesystem, written by a background thread.

A checkpoint is a folder such as `step-00000100` in PyTorch's distributed checkpoint format. Each rank writes its shards
of the state dict, and a run with a different number of ranks can load them. When all files of all ranks are stored,
rank 0 writes `checkpoint.json`, the record of the checkpoint. A folder without this file is not a complete checkpoint
and is never loaded. The record contains the step, the model's configuration, the checksums of all files, and what the
caller needs to resume, such as the number of tokens that were trained on. The position in the data is not stored,
because it follows from the step.

Before a checkpoint is loaded, the ranks read all of its files and compare the checksums.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
import torch.distributed as dist
from fsspec import AbstractFileSystem
from torch import Tensor

from model.checkpoint_steps import (
    RECORD,
    CheckpointError,
    CheckpointRecord,
    DamagedCheckpointError,
    FileChecksum,
    NoUsableCheckpointError,
    complete_steps,
    interrupted_steps,
    prune,
    read_record,
    remove_checkpoint,
    set_aside,
    step_folder,
    write_record,
)
from model.heads import ScalarModel
from model.train import TrainState

if TYPE_CHECKING:
    from torch.distributed.checkpoint.metadata import Metadata

    from model.checkpoint_files import CheckpointReader

log = logging.getLogger(__name__)

T = TypeVar("T")


class Checkpoints:
    """Saves and loads the checkpoints of a run, which are in one folder.

    Every rank creates a `Checkpoints` object. The methods are collective: all ranks must call them.
    """

    def __init__(
        self,
        fs: AbstractFileSystem,
        path: str,
        *,
        keep: int | None = 2,
        warn: Callable[[str], None] = log.warning,
    ) -> None:
        """`path` is a folder in `fs`. After each save only the newest `keep` complete checkpoints remain.

        With None all remain, and the caller removes them. `warn` is called on rank 0 with each warning.
        """
        if keep is not None and keep < 1:
            raise ValueError(f"keep={keep}: must be at least 1, because a run resumes from its newest checkpoint")
        self.fs = fs
        self.path = path.rstrip("/")
        self.keep = keep
        self._warn = warn
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
        # The round trip through JSON raises an error here if `extra` is not JSON, instead of in the background.
        json_extra = json.loads(json.dumps(dict(extra)))
        record = CheckpointRecord(step=state.step, model=_describe_model(state), extra=json_extra, files=None)
        self._pending_save = self._writer.submit(self._write, tensors, record)

    def wait(self) -> None:
        """Wait until the last save has written a complete checkpoint. Raises the error of a save that failed.

        Does nothing if no save has started since the last call.
        """
        if self._pending_save is not None:
            pending_save, self._pending_save = self._pending_save, None
            pending_save.result()

    def load(self, state: TrainState) -> dict[str, Any] | None:
        """Load the newest complete checkpoint that is not damaged into the state. Returns its `extra`.

        Returns None and leaves the state unchanged if the folder has no complete checkpoint. The number of ranks may
        differ from that of the run that saved the checkpoint. Warns of the damaged and incomplete checkpoints that
        are newer than the loaded one, and sets aside all newer ones. Raises NoUsableCheckpointError if all of them are
        damaged, and the ValueError of `load_step`.
        """
        steps = self._on_first_rank(lambda: complete_steps(self.fs, self.path))
        faults: list[str] = []
        for step in reversed(steps):
            try:
                extra = self.load_step(state, step)
            except DamagedCheckpointError as error:
                faults.append(str(error))
                continue
            self._on_first_rank(lambda loaded_step=step: self._resume_from(loaded_step, faults))
            return extra
        if faults:
            raise NoUsableCheckpointError(
                f"{'; '.join(faults)}. No other checkpoint is left. Restore the files, or remove the folder "
                f"{self.path} to train from the beginning"
            )
        self._on_first_rank(self._warn_of_interrupted_saves)
        return None

    def load_step(self, state: TrainState, step: int) -> dict[str, Any]:
        """Load the checkpoint of `step` into the state, after its checksums were compared. Returns its `extra`.

        All ranks raise the same error: DamagedCheckpointError if the checkpoint is damaged; ValueError if the step has
        no complete checkpoint, if a later version of Raymill has written it, or if its model has a different
        configuration; and CheckpointError if the store does not answer. After an error the state may have changed.
        """
        from model.checkpoint_files import CheckpointReader

        folder = step_folder(self.path, step)
        record = self._on_first_rank(lambda: read_record(self.fs, self.path, step))
        if record.model != (model := _describe_model(state)):
            raise ValueError(
                f"checkpoint {folder} has a different model: its model is {record.model}, but the model of this run is "
                f"{model}. Use a different output folder, or the model configuration of the checkpoint"
            )
        if record.files is None:
            warning = f"checkpoint {folder} is of an earlier version of Raymill and has no checksums; it is not checked"
            self._on_first_rank(lambda: self._warn(warning))
        else:
            self._check_files(folder, record.files)
        reader = CheckpointReader(self.fs, folder)
        self._read_tensors(
            state, reader, error_type=DamagedCheckpointError if record.files is None else CheckpointError
        )
        state.step = step
        return record.extra

    def _check_files(self, folder: str, files: Mapping[str, FileChecksum]) -> None:
        """Compare the checksums of all files. Each rank reads its share of them.

        Raises DamagedCheckpointError or CheckpointError, on all ranks.
        """
        from model.checkpoint_files import find_fault

        rank, world_size = (0, 1) if self._group is None else (dist.get_rank(self._group), self._group.size())
        faults: list[str] = []
        errors: list[str] = []
        for name in sorted(files)[rank::world_size]:
            try:
                if (fault := find_fault(self.fs, f"{folder}/{name}", files[name])) is not None:
                    faults.append(f"{name} {fault}")
            except Exception as error:  # those of a store's HTTP library are no OSErrors
                errors.append(f"{name}: {type(error).__name__}: {error}")
        if errors := self._from_all_ranks(errors):
            raise CheckpointError(f"checkpoint {folder} could not be read: {'; '.join(errors)}")
        if faults := self._from_all_ranks(faults):
            raise DamagedCheckpointError(f"checkpoint {folder} is damaged: {', '.join(faults)}")

    def _read_tensors(self, state: TrainState, reader: CheckpointReader, *, error_type: type[CheckpointError]) -> None:
        """Read all tensors of the state from a checkpoint. Raises an error of the given type on all ranks."""
        from torch.distributed.checkpoint.api import CheckpointException
        from torch.distributed.checkpoint.state_dict_loader import load

        errors: list[str] = []
        try:
            _create_optimizer_state(state, reader.read_metadata())
        except Exception as error:  # unpickling damaged bytes raises almost any exception
            errors.append(f".metadata: {type(error).__name__}: {error}")
        if errors := self._from_all_ranks(errors):
            raise error_type(f"checkpoint {reader.path} could not be read: {'; '.join(errors)}")
        tensors = dict(_named_tensors(state))
        try:
            load(tensors, storage_reader=reader, process_group=self._group, no_dist=self._group is None)
        except CheckpointException as error:
            raise error_type(f"checkpoint {reader.path} could not be read: {_rank_errors(error)}") from error

    def _resume_from(self, step: int, faults: list[str]) -> None:
        """Warn of the damaged and incomplete checkpoints that are newer than that of `step`, and set aside all newer
        ones."""
        for fault in faults:
            self._warn(f"{fault}; training resumes from the checkpoint of step {step} instead")
        if newer := [other for other in interrupted_steps(self.fs, self.path) if other > step]:
            self._warn(
                f"{self.path} has an incomplete checkpoint of step {', '.join(map(str, newer))}, because its save was "
                f"interrupted or its file {RECORD} is missing; training resumes from the checkpoint of step {step}"
            )
        set_aside(self.fs, self.path, after_step=step)

    def _warn_of_interrupted_saves(self) -> None:
        if steps := interrupted_steps(self.fs, self.path):
            self._warn(
                f"{self.path} has no complete checkpoint, because the save of step {', '.join(map(str, steps))} was "
                "interrupted; training starts at step 0"
            )

    def _write(self, tensors: dict[str, Tensor], record: CheckpointRecord) -> None:
        from torch.distributed.checkpoint.api import CheckpointException
        from torch.distributed.checkpoint.state_dict_saver import save

        from model.checkpoint_files import CheckpointWriter

        folder = step_folder(self.path, record.step)
        self._on_first_rank(lambda: self._remove_leftover(folder))
        writer = CheckpointWriter(self.fs, folder)
        try:
            save(tensors, storage_writer=writer, process_group=self._group, no_dist=self._group is None)
        except CheckpointException as error:  # it is a BaseException, which `except Exception` does not catch
            raise CheckpointError(f"checkpoint {folder} could not be written: {_rank_errors(error)}") from error
        files = dict(self._from_all_ranks(list(writer.checksums.items())))
        self._on_first_rank(lambda: self._complete(dataclasses.replace(record, files=files)))

    def _remove_leftover(self, folder: str) -> None:
        """Remove the folder of a checkpoint that is about to be written.

        It may be left from a process that was killed during a save, or from a run that is now repeated from an earlier
        step.
        """
        if self.fs.exists(folder):
            remove_checkpoint(self.fs, folder)

    def _complete(self, record: CheckpointRecord) -> None:
        """Make a checkpoint complete, and remove those that are too old to be kept."""
        write_record(self.fs, self.path, record)
        if self.keep is not None:
            prune(self.fs, self.path, kept_steps=complete_steps(self.fs, self.path)[-self.keep :])

    def _on_first_rank(self, function: Callable[[], T]) -> T:
        """Call a function on rank 0. Its result is returned on all ranks, and its exception raised on all ranks."""
        outcome: list[Any] = [None, None]
        if self._is_first_rank:
            try:
                outcome[0] = function()
            except (ValueError, CheckpointError) as error:
                outcome[1] = error
            except Exception as error:  # another exception may not be possible to pickle
                outcome[1] = CheckpointError(f"{self.path}: {type(error).__name__}: {error}")
        if self._group is not None:
            dist.broadcast_object_list(outcome, group=self._group, group_src=0)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]

    def _from_all_ranks(self, values: list[T]) -> list[T]:
        """Return the concatenated lists of all ranks, on all ranks."""
        if self._group is None:
            return values
        lists: list[Any] = [None] * self._group.size()
        dist.all_gather_object(lists, values, group=self._group)
        return [value for rank_values in lists for value in rank_values]

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
