"""The learner: trains the policy and sends its weights to the engines. verl calls this the actor worker."""

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
from model.precision import require_resolved, torch_dtype
from model.rounding import perturbed
from model.train import StepReport


class Learner:
    """One rank of the learner.

    Every rank receives the full batch of an RLHF step, computes on its own share of the rows, and returns logprobs,
    step reports and weight snapshots. In collectives, a rank waits for all other ranks. If another rank dies, the
    collective ends with an error.
    """

    def __init__(
        self,
        settings: TrainingSettings,
        rank: int,
        algorithm: str | Program,
        temperature: float,
        weight_transfer: TransferBackend,
    ) -> None:
        """`temperature` is the sampling temperature. The policy's logits are divided by it in training too."""
        self._settings = settings
        self._temperature = temperature
        self._weight_transfer: TransferBackend = weight_transfer
        self._loss = load_algorithm(algorithm).loss
        self._training_rank = TrainingRank(settings, rank)
        precision = require_resolved(settings.learning.precision)
        self._sender: WeightSender = ObjectStoreSender(rank=rank, dtype=torch_dtype(precision))

    def free_address(self) -> str:
        """Return a free `host:port` on this node."""
        return free_address()

    def load_model(self, address: str) -> None:
        """Join the process group at `address` and load the policy. The address is "" if there is only one rank."""
        self._training_rank.load_model(address, load_hf_model, lr=self._settings.learning.lr)

    def connect(self, generators: Sequence[ActorHandle], address: str) -> None:
        """From now on, send weights to these generators with vLLM's weight transfer (nccl or ipc).

        `address` is a free `host:port` on the node of rank 0.
        """
        backend = self._weight_transfer
        assert backend != OBJECT_STORE
        host, port = address.rsplit(":", 1)
        self._sender = DeviceSender(
            backend=self._weight_transfer,
            rank=self._training_rank.context.rank,
            generators=generators,
            address=(host, int(port)),
        )

    def logprobs(self, batch: Batch) -> Tensor:
        """Return the logprobs [n, T] of the targets of this rank's n rows under the current policy.

        `batch` has the rows of all ranks. The logprobs are those at the sampling temperature, and 0 where loss_mask is
        false.
        """
        return self._training_rank.compute(functools.partial(logprobs, temperature=self._temperature), batch)

    def perturbed_logprobs(self, batch: Batch) -> Tensor:
        """Return the same as `logprobs`, but with the values of all layers moved by up to one rounding step."""
        precision = require_resolved(self._settings.learning.precision)
        with perturbed(self._training_rank.state.model, precision):
            return self.logprobs(batch)

    def update(self, batch: PolicyBatch, step: int) -> list[StepReport]:
        """Run one optimizer step for each minibatch of each epoch. Returns the step reports in order.

        `batch` has the rows of all ranks. `step` is the index of the RLHF step. The random order in which the rows are
        divided into minibatches depends on this index.
        """
        objective = functools.partial(self._loss, learning=self._settings.learning, temperature=self._temperature)
        return self._training_rank.update(batch, objective, step)

    def send_weights(self, version: int) -> WeightSnapshot:
        """Send the current weights as weight version `version`. Every generator must then load the returned snapshot.

        With the object store, only the snapshot that rank 0 returns contains the weights. With nccl and ipc, the
        engines have received the weights already, and the snapshot contains only the version.
        """
        return self._sender.send(self._training_rank.state.model, version)

    def export(self, output: Storage, special_tokens: SpecialTokens) -> None:
        """Write the policy as a Hugging Face folder. All ranks must call this, but only rank 0 writes."""
        model = self._training_rank.state.model
        state_dict = full_state_dict(model)
        if self._training_rank.context.rank == 0:
            with tempfile.TemporaryDirectory() as folder:
                save_hf_model(
                    Path(folder),
                    state_dict,
                    model.config,  # pyright: ignore[reportArgumentType]
                    special_tokens=special_tokens,
                    tokenizer_folder=self._settings.folder.local(),
                )
                output.put_folder(Path(folder))

    def save(self) -> None:
        """See `TrainingRank.save`."""
        self._training_rank.save()

    def finish_save(self) -> None:
        """See `TrainingRank.finish_save`."""
        self._training_rank.finish_save()

    def restore(self, optimizer_step: int) -> str | None:
        """See `TrainingRank.restore`."""
        return self._training_rank.restore(optimizer_step)


class LearnerGroup:
    """The driver's interface to all ranks of the learner."""

    def __init__(self, ranks: RankGroup) -> None:
        self.ranks = ranks

    def connect(self, generators: Sequence[ActorHandle]) -> None:
        """From now on, send weights to these generators with vLLM's weight transfer (nccl or ipc)."""
        address = self.ranks.free_address()
        self.ranks.call(lambda actor: actor.connect.remote(list(generators), address), list).wait()

    def logprobs(self, batch: Batch | ray.ObjectRef) -> Pending[Tensor]:
        """Start computing the logprobs [N, T] of the targets of all N rows under the current policy.

        The result is 0 where loss_mask is false.
        """
        batch_ref = to_object_ref(batch)
        return self.ranks.call(lambda actor: actor.logprobs.remote(batch_ref), torch.cat)

    def perturbed_logprobs(self, batch: Batch) -> Pending[Tensor]:
        """Start computing the logprobs [N, T] with values that are moved by up to one rounding step."""
        batch_ref = to_object_ref(batch)
        return self.ranks.call(lambda actor: actor.perturbed_logprobs.remote(batch_ref), torch.cat)

    def update(self, batch: PolicyBatch, step: int) -> Pending[list[StepReport]]:
        """Start one optimizer step for each minibatch of each epoch. The result is the list of step reports."""
        batch_ref = to_object_ref(batch)
        return self.ranks.call(lambda actor: actor.update.remote(batch_ref, step), rank_0_result)

    def send_weights(self, version: int) -> WeightSnapshot:
        """Return a snapshot of the current weights, which the generators must load (`Learner.send_weights`)."""
        return self.ranks.call(lambda actor: actor.send_weights.remote(version), rank_0_result).wait()

    def export(self, output: Storage, special_tokens: SpecialTokens) -> None:
        """Write the policy as a Hugging Face folder."""
        self.ranks.call(lambda actor: actor.export.remote(output, special_tokens), list).wait()
