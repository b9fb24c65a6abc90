"""The learner: it owns the policy, improves it and sends its weights to the engines."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Sequence
from pathlib import Path

import ray
import torch
from ray.actor import ActorHandle
from torch import Tensor

from actors.algorithm import load_algorithm
from actors.engine import OBJECT_STORE, TransferBackend
from actors.rank_group import Pending, RankGroup, rank_0_result, to_object_ref
from actors.training_rank import TrainingRank, TrainingSettings
from actors.weight_sync import DeviceSender, ObjectStoreSender, WeightSender, WeightSnapshot
from cluster.process_group import free_address
from cluster.storage import Storage
from cluster.user_program import Program
from model.batch import Batch, PolicyBatch
from model.huggingface import load_hf_model, save_hf_model
from model.huggingface_config import SpecialTokens
from model.objectives import logprobs
from model.parallel import full_state_dict
from model.precision import resolved_precision, torch_dtype
from model.train import StepReport


class Learner:
    """One rank.

    consumes: whole batches of a step, of which it takes its share of the rows; waits for: the other ranks, in
    collectives; is unblocked by: their arrival, or an error when one died; produces: logprobs, step reports, weight
    snapshots.
    """

    def __init__(
        self,
        settings: TrainingSettings,
        rank: int,
        algorithm: str | Program,
        temperature: float,
        weight_transfer: TransferBackend,
    ) -> None:
        """`temperature` is that of sampling, by which the policy's logits are divided."""
        self._settings = settings
        self._temperature = temperature
        self._weight_transfer: TransferBackend = weight_transfer
        self._loss = load_algorithm(algorithm).loss
        self._rank = TrainingRank(settings, rank)
        precision = resolved_precision(settings.learning.precision)
        self._sender: WeightSender = ObjectStoreSender(rank=rank, dtype=torch_dtype(precision))

    def free_address(self) -> str:
        """`host:port` on this node at which nothing listens."""
        return free_address()

    def join(self, address: str) -> None:
        """Meet the other ranks and load the policy."""
        self._rank.join(address, load_hf_model, lr=self._settings.learning.lr)

    def connect(self, generators: Sequence[ActorHandle], address: str) -> None:
        """Send through vLLM's own trainer engine to these generators from now on (nccl, ipc)."""
        backend = self._weight_transfer
        assert backend != OBJECT_STORE
        host, port = address.rsplit(":", 1)
        self._sender = DeviceSender(
            backend=self._weight_transfer,
            rank=self._rank.context.rank,
            generators=generators,
            address=(host, int(port)),
        )

    def logprobs(self, batch: Batch) -> Tensor:
        """Logprobs [n, T] of this rank's rows under the current policy, at the sampling temperature."""
        return self._rank.compute(functools.partial(logprobs, temperature=self._temperature), batch)

    def update(self, batch: PolicyBatch, step: int) -> list[StepReport]:
        """One optimizer step for each minibatch of each epoch; their reports in order."""
        objective = functools.partial(self._loss, learning=self._settings.learning, temperature=self._temperature)
        return self._rank.update(batch, objective, step)

    def send_weights(self, version: int) -> WeightSnapshot:
        """The current weights, for the engines; only rank 0's snapshot holds them."""
        return self._sender.send(self._rank.state.model, version)

    def export(self, output: Storage, special_tokens: SpecialTokens) -> None:
        """Write the policy as a Hugging Face folder, from rank 0."""
        state, model = full_state_dict(self._rank.state.model), self._rank.state.model
        if self._rank.context.rank == 0:
            with tempfile.TemporaryDirectory() as folder:
                save_hf_model(
                    Path(folder),
                    state,
                    model.config,  # pyright: ignore[reportArgumentType]
                    special_tokens=special_tokens,
                    tokenizer_folder=self._settings.folder.local(),
                )
                output.put_folder(Path(folder))

    def save(self) -> None:
        self._rank.save()

    def finish_save(self) -> None:
        self._rank.finish_save()

    def restore(self, optimizer_step: int | None) -> None:
        self._rank.restore(optimizer_step)


class LearnerGroup:
    """The driver's view of the learner's ranks."""

    def __init__(self, ranks: RankGroup) -> None:
        self.ranks = ranks

    def connect(self, generators: Sequence[ActorHandle]) -> None:
        """Send weights to these generators through vLLM's own trainer engine (nccl, ipc)."""
        address = self.ranks.free_address()
        self.ranks.start(lambda rank: rank.connect.remote(list(generators), address), list).wait()

    def logprobs(self, batch: Batch | ray.ObjectRef) -> Pending[Tensor]:
        """Logprobs [N, T] of all rows under the current policy; 0 where loss_mask is false."""
        batch_ref = to_object_ref(batch)
        return self.ranks.start(lambda rank: rank.logprobs.remote(batch_ref), torch.cat)

    def update(self, batch: PolicyBatch, step: int) -> Pending[list[StepReport]]:
        """One optimizer step for each minibatch of each epoch; their reports in order."""
        batch_ref = to_object_ref(batch)
        return self.ranks.start(lambda rank: rank.update.remote(batch_ref, step), rank_0_result)

    def send_weights(self, version: int) -> WeightSnapshot:
        """A snapshot of the current weights, for the engines."""
        return self.ranks.start(lambda rank: rank.send_weights.remote(version), rank_0_result).wait()

    def export(self, output: Storage, special_tokens: SpecialTokens) -> None:
        """Write the policy as a Hugging Face folder."""
        self.ranks.start(lambda rank: rank.export.remote(output, special_tokens), list).wait()
