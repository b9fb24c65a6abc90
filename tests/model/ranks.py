"""The program of the processes that test_parallel starts: python ranks.py WORLD RANK FOLDER.

Worlds of 1 and 2 ranks shard the model over gloo. World 0 stands for an unsharded model without a process group. It is
trained by rank 0 of world 2, before this rank joins its process group. Each rank writes its results to
FOLDER/WORLD-RANK.pt. Checkpoints are in FOLDER/checkpoints-WORLD.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from model.batch import Batch, PairBatch, split_rows
from model.checkpoint import Checkpoints
from model.heads import Model, ScalarModel
from model.huggingface import hf_tensors
from model.objectives import Loss, bradley_terry, causal_lm, nll_by_row
from model.optim import adamw, constant_schedule
from model.parallel import full_state_dict, shard
from model.train import NonFiniteError, TrainState, train_step
from model.transformer import Transformer, initialize
from model.transformer_config import TransformerConfig

CONFIG = TransformerConfig(
    vocab_size=64, width=32, num_layers=3, num_heads=4, num_kv_heads=2, ffn_width=48, max_length=32
)
UNTIED = dataclasses.replace(CONFIG, num_layers=2, num_kv_heads=4, tie_embeddings=False)
NUM_STEPS = 10


def language_batch(step: int) -> Batch:
    """Return eight rows, each with two documents of consecutive numbers.

    In step 3 the loss mask of rows 4 to 7 is empty. They are the rows of rank 1 in a world of two ranks.
    """
    generator = torch.Generator().manual_seed(step)
    ids = (torch.randint(0, 64, (8, 1), generator=generator) + torch.arange(17)) % 64
    loss_mask = torch.rand(8, 16, generator=generator) < torch.linspace(0.1, 1, 8)[:, None]
    if step == 3:
        loss_mask[4:] = False
    positions = torch.arange(8).repeat(2).expand(8, 16)
    documents = torch.arange(2).repeat_interleave(8).expand(8, 16)
    return Batch(ids[:, :-1], ids[:, 1:], loss_mask, positions, documents)


def pair_batch(step: int) -> PairBatch:
    generator = torch.Generator().manual_seed(step)
    ids = torch.randint(0, 64, (2, 8, 12), generator=generator)
    last = torch.randint(3, 12, (2, 8), generator=generator)
    return PairBatch(ids[0].sort(1).values, last[0], ids[1], last[1])


class Rank:
    def __init__(self, world: int, rank: int, folder: Path) -> None:
        self.world, self.rank, self.folder = world, rank, folder
        self.results: dict[str, Any] = {}

    def state(self, model: Model, *, seed: int = 0, lr: float = 1e-2, **options: Any) -> TrainState:
        initialize(model, seed)
        if self.world:
            shard(model, mesh=init_device_mesh("cpu", (self.world,)), **options)
        return TrainState(model, adamw(model, lr=lr), constant_schedule(lr))

    def share_of(self, batch: Any) -> Iterator[Any]:
        """Return this rank's share of the eight rows, in two micro-batches."""
        share = list(split_rows(batch, 8 // max(1, self.world)))[self.rank]
        return split_rows(share, 4 // max(1, self.world))

    def train(self, name: str, state: TrainState, objective: Any, make_batch: Any, *, until: int) -> None:
        reports = self.results.setdefault(name, [])
        while state.step < until:
            report = train_step(state, list(self.share_of(make_batch(state.step))), objective)
            reports.append((report.loss, report.grad_norm, report.num_loss_terms, report.num_tokens, report.metrics))

    def checkpoints(self, world: int) -> Checkpoints:
        return Checkpoints(fsspec.filesystem("file"), f"{self.folder}/checkpoints-{world}")

    def run(self) -> None:
        uninterrupted = self.state(Transformer(CONFIG))
        self.train("language", uninterrupted, causal_lm, language_batch, until=5)
        checkpoints = self.checkpoints(self.world)
        checkpoints.save(uninterrupted, {"world": self.world})
        self.evaluate(uninterrupted)
        self.train("language", uninterrupted, causal_lm, language_batch, until=NUM_STEPS)
        checkpoints.wait()
        self.results["language/state"] = full_state_dict(uninterrupted.model)
        self.results["language/hf"] = dict(hf_tensors(uninterrupted.model))

        resumed = self.state(Transformer(CONFIG), seed=1)
        checkpoints.load(resumed)
        self.train("resumed", resumed, causal_lm, language_batch, until=NUM_STEPS)
        self.results["resumed/state"] = full_state_dict(resumed.model)

        untied = self.state(Transformer(UNTIED), **({"activation_checkpointing": True} if self.world else {}))
        self.train("untied", untied, causal_lm, language_batch, until=NUM_STEPS)
        self.results["untied/state"] = full_state_dict(untied.model)

        scalar = self.state(ScalarModel(CONFIG), lr=2e-3)
        self.train("scalar", scalar, bradley_terry, pair_batch, until=NUM_STEPS)
        self.results["scalar/state"] = full_state_dict(scalar.model)
        self.train_on_infinite_loss(untied)

    def load_from(self, world: int) -> None:
        """Resume from the checkpoint of a run with a different number of ranks."""
        state = self.state(Transformer(CONFIG), seed=2)
        self.results["moved/extra"] = self.checkpoints(world).load(state)
        self.train("moved", state, causal_lm, language_batch, until=NUM_STEPS)
        self.results["moved/state"] = full_state_dict(state.model)

    def load_damaged(self) -> None:
        """Resume from a folder whose newest checkpoint lacks the shard of rank 1."""
        path = f"{self.folder}/damaged"
        checkpoints = Checkpoints(fsspec.filesystem("file"), path)
        state = self.state(Transformer(CONFIG))
        self.train("damaged", state, causal_lm, language_batch, until=1)
        for step in (1, 2):
            self.train("damaged", state, causal_lm, language_batch, until=step)
            checkpoints.save(state, {"saved": step})
            checkpoints.wait()
        if self.rank == 0:
            Path(path, "step-00000002", "__1_0.distcp").unlink()
        dist.barrier()
        warnings: list[str] = []
        resumed = self.state(Transformer(CONFIG), seed=3)
        extra = Checkpoints(fsspec.filesystem("file"), path, warn=warnings.append).load(resumed)
        self.results["damaged/resumed"] = (extra, resumed.step, warnings)
        self.train("damaged/again", resumed, causal_lm, language_batch, until=2)

    def evaluate(self, state: TrainState) -> None:
        with torch.no_grad():
            nll = nll_by_row(state.model, language_batch(100))
        self.results["nll"] = nll

    def train_on_infinite_loss(self, state: TrainState) -> None:
        """Make the loss of rank 0 infinite. Every rank must raise an error and keep its parameters."""

        def objective(model: Model, batch: Batch) -> Loss:
            loss = causal_lm(model, batch)
            return Loss(loss.sum * (float("inf") if self.rank == 0 else 1.0), loss.num_loss_terms)

        before = full_state_dict(state.model)
        try:
            train_step(state, list(self.share_of(language_batch(0))), objective)
        except NonFiniteError as error:
            self.results["error"] = str(error)
        after = full_state_dict(state.model)
        self.results["unchanged"] = all(torch.equal(before[name], after[name]) for name in before)


def main() -> None:
    world, rank, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    is_first_of_two = (world, rank) == (2, 0)
    unsharded = Rank(0, 0, folder)
    if is_first_of_two:
        unsharded.run()
    store = f"file://{folder}/store-{world}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world)
    sharded = Rank(world, rank, folder)
    sharded.run()
    if world == 2:
        sharded.load_from(0)
        sharded.load_damaged()
    dist.destroy_process_group()
    if is_first_of_two:
        unsharded.load_from(2)
        torch.save(unsharded.results, folder / "0-0.pt")
    torch.save(sharded.results, folder / f"{world}-{rank}.pt")


if __name__ == "__main__":
    main()
