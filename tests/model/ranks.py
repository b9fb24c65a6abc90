"""What test_parallel runs in processes of its own: python ranks.py WORLD RANK FOLDER.

World 1 and 2 shard the model over gloo; world 0 trains a plain model without a process group, and the first of two
ranks does that too, before it meets the other. Each rank writes what it found to FOLDER/WORLD-RANK.pt, and the first
one its checkpoints to FOLDER/checkpoints-WORLD.
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
from model.heads import Model, ScalarHead
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
    """Eight rows of two documents that count up; rows 4 to 7, the second rank's, learn nothing in step 3."""
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
        self.found: dict[str, Any] = {}

    def state(self, model: Model, *, seed: int = 0, lr: float = 1e-2, **options: Any) -> TrainState:
        initialize(model, seed)
        if self.world:
            shard(model, mesh=init_device_mesh("cpu", (self.world,)), **options)
        return TrainState(model, adamw(model, lr=lr), constant_schedule(lr))

    def mine(self, batch: Any) -> Iterator[Any]:
        """This rank's share of eight rows, in two micro-batches."""
        share = list(split_rows(batch, 8 // max(1, self.world)))[self.rank]
        return split_rows(share, 4 // max(1, self.world))

    def train(self, name: str, state: TrainState, objective: Any, make_batch: Any, *, until: int) -> None:
        reports = self.found.setdefault(name, [])
        while state.step < until:
            report = train_step(state, list(self.mine(make_batch(state.step))), objective)
            reports.append((report.loss, report.grad_norm, report.num_terms, report.num_tokens, report.metrics))

    def checkpoints(self, world: int) -> Checkpoints:
        return Checkpoints(fsspec.filesystem("file"), f"{self.folder}/checkpoints-{world}")

    def run(self) -> None:
        straight = self.state(Transformer(CONFIG))
        self.train("language", straight, causal_lm, language_batch, until=5)
        checkpoints = self.checkpoints(self.world)
        checkpoints.save(straight, {"world": self.world})
        self.evaluate(straight)
        self.train("language", straight, causal_lm, language_batch, until=NUM_STEPS)
        checkpoints.wait()
        self.found["language/state"] = full_state_dict(straight.model)
        self.found["language/hf"] = dict(hf_tensors(straight.model))

        resumed = self.state(Transformer(CONFIG), seed=1)
        checkpoints.load(resumed)
        self.train("resumed", resumed, causal_lm, language_batch, until=NUM_STEPS)
        self.found["resumed/state"] = full_state_dict(resumed.model)

        untied = self.state(Transformer(UNTIED), **({"activation_checkpointing": True} if self.world else {}))
        self.train("untied", untied, causal_lm, language_batch, until=NUM_STEPS)
        self.found["untied/state"] = full_state_dict(untied.model)

        scalar = self.state(ScalarHead(CONFIG), lr=2e-3)
        self.train("scalar", scalar, bradley_terry, pair_batch, until=NUM_STEPS)
        self.found["scalar/state"] = full_state_dict(scalar.model)
        self.break_down(untied)

    def load_from(self, world: int) -> None:
        """Go on from the checkpoint that another number of ranks wrote."""
        state = self.state(Transformer(CONFIG), seed=2)
        self.found["moved/extra"] = self.checkpoints(world).load(state)
        self.train("moved", state, causal_lm, language_batch, until=NUM_STEPS)
        self.found["moved/state"] = full_state_dict(state.model)

    def evaluate(self, state: TrainState) -> None:
        with torch.no_grad():
            nll = nll_by_row(state.model, language_batch(100))
        self.found["nll"] = nll

    def break_down(self, state: TrainState) -> None:
        """Only rank 0's loss is infinite; every rank must hear of it and keep its parameters."""

        def objective(model: Model, batch: Batch) -> Loss:
            loss = causal_lm(model, batch)
            return Loss(loss.sum * (float("inf") if self.rank == 0 else 1.0), loss.num_terms)

        before = full_state_dict(state.model)
        try:
            train_step(state, list(self.mine(language_batch(0))), objective)
        except NonFiniteError as error:
            self.found["error"] = str(error)
        after = full_state_dict(state.model)
        self.found["unchanged"] = all(torch.equal(before[name], after[name]) for name in before)


def main() -> None:
    world, rank, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    is_first_of_two = (world, rank) == (2, 0)
    plain = Rank(0, 0, folder)
    if is_first_of_two:
        plain.run()
    store = f"file://{folder}/store-{world}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world)
    this = Rank(world, rank, folder)
    this.run()
    if world == 2:
        this.load_from(0)
    dist.destroy_process_group()
    if is_first_of_two:
        plain.load_from(2)
        torch.save(plain.found, folder / "0-0.pt")
    torch.save(this.found, folder / f"{world}-{rank}.pt")


if __name__ == "__main__":
    main()
