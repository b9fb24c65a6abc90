"""The learner: one rank of the group that owns the policy, improves it and publishes its weights."""

from __future__ import annotations

import functools
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from ray.actor import ActorHandle
from torch import Tensor

from actors import ranks
from actors.logprobs import batch_logprobs
from actors.ranks import RankSettings
from actors.rollout import minibatch_rows, policy_micro_batches, rank_rows
from actors.weights import OBJECT_STORE, Backend, DevicePublisher, ObjectStorePublisher, Publication, Publisher
from cluster.storage import Storage
from model.batch import Batch, PolicyBatch
from model.huggingface import SpecialTokens, load_folder, save_folder
from model.objectives import policy_loss
from model.parallel import full_state_dict
from model.precision import ComputePrecision, torch_dtype
from model.train import StepReport, fit


@dataclass(frozen=True, kw_only=True)
class PolicySettings:
    """What an update of the policy is; see `actors.settings.LearningConfig` for the fields of the same names."""

    folder: Storage
    """The policy that training starts from."""
    temperature: float
    clip_range: float | None
    kl_in_loss: float
    """Weight of the KL to the reference in the loss; 0 where it is in the reward, or nowhere."""
    epochs: int
    minibatches: int
    seed: int
    engine_precision: ComputePrecision
    transfer: Backend


class Learner:
    """One rank.

    consumes: whole batches of a step, of which it takes its own rows; waits for: the other ranks, in collectives;
    is unblocked by: their arrival, or an error when one died; produces: logprobs, step reports, publications.
    """

    def __init__(self, settings: PolicySettings, group: RankSettings, rank: int) -> None:
        self._settings = settings
        self._group = group
        self._rank = rank
        self._publisher: Publisher = ObjectStorePublisher(rank=rank, dtype=torch_dtype(settings.engine_precision))

    def free_address(self) -> str:
        return ranks.free_address()

    def pid(self) -> int:
        return ranks.pid()

    def join(self, address: str) -> None:
        """Meet the other ranks and load the policy."""
        ranks.join_group(rank=self._rank, num_ranks=self._group.num_ranks, backend=self._group.backend, address=address)
        self._state = ranks.make_state(load_folder(self._settings.folder.local()), self._group)
        self._checkpoints = ranks.open_checkpoints(self._group.checkpoints)

    def connect(self, generators: list[ActorHandle], address: str) -> None:
        """Send through vLLM's own trainer engine to these generators from now on (nccl, ipc)."""
        assert self._settings.transfer != OBJECT_STORE
        host, port = address.rsplit(":", 1)
        self._publisher = DevicePublisher(
            backend=self._settings.transfer, rank=self._rank, generators=generators, address=(host, int(port))
        )

    def logprobs(self, batch: Batch) -> Tensor:
        """Logprobs of this rank's rows [n, T] of `batch` under the policy as it is, at the sampling temperature."""
        rows = rank_rows(torch.arange(len(batch.input_ids)), self._rank, self._group.num_ranks)
        return batch_logprobs(
            self._state.model,
            batch,
            rows,
            temperature=self._settings.temperature,
            num_rows=self._group.micro_batch_rows,
            dtype=self._state.autocast_dtype,
        )

    def update(self, batch: PolicyBatch, step: int) -> list[StepReport]:
        """One optimizer step for each minibatch of each epoch; their reports in order."""
        settings = self._settings
        objective = functools.partial(
            policy_loss,
            temperature=settings.temperature,
            clip_range=settings.clip_range,
            kl_coefficient=settings.kl_in_loss,
        )
        batches = (
            list(policy_micro_batches(batch, self._my(rows), self._group.micro_batch_rows))
            for epoch in range(settings.epochs)
            for rows in minibatch_rows(
                len(batch.advantages), settings.minibatches, seed=settings.seed, step=step, epoch=epoch
            )
        )
        return list(fit(self._state, batches, objective))

    def publish(self, version: int) -> Publication:
        """The weights as they are now, for the engines; rank 0's answer counts."""
        return self._publisher.publish(self._state.model, version)

    def save(self) -> None:
        """Begin a checkpoint of the state as it is."""
        self._checkpoints.save(self._state, {})

    def finish_save(self) -> None:
        """Return when the last checkpoint is whole."""
        self._checkpoints.wait()

    def restore(self, optimizer_step: int | None) -> None:
        """Go back to a checkpoint; None leaves the policy that training starts from."""
        if optimizer_step is not None:
            self._checkpoints.load(self._state, step=optimizer_step)

    def export(self, output: Storage, special_tokens: SpecialTokens) -> None:
        """Write the policy as a Hugging Face folder, from rank 0."""
        state = full_state_dict(self._state.model)
        if self._rank == 0:
            with tempfile.TemporaryDirectory() as folder:
                save_folder(
                    Path(folder),
                    state,
                    self._state.model.config,  # pyright: ignore[reportArgumentType]
                    special_tokens=special_tokens,
                    tokenizer_folder=self._settings.folder.local(),
                )
                output.put_folder(Path(folder))

    def _my(self, rows: Tensor) -> Tensor:
        return rank_rows(rows, self._rank, self._group.num_ranks)
