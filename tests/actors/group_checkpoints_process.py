"""The program that test_group_checkpoints kills: python group_checkpoints_process.py FOLDER SLOW_GROUP.

It trains two small models as learner and critic, and saves both after each step. The store of the slow group waits
before each file. The program prints the restored step, and then each step whose checkpoints are complete.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch
from fsspec.implementations.local import LocalFileSystem

from actors.group_checkpoints import GroupCheckpoints
from cluster.storage import Storage
from model.batch import batch_from_sequences
from model.checkpoint import Checkpoints
from model.checkpoint_steps import DamagedCheckpointError
from model.objectives import causal_lm
from model.optim import adamw, constant_schedule
from model.train import TrainState, train_step
from model.transformer import Transformer, initialize
from model.transformer_config import TransformerConfig

CONFIG = TransformerConfig(
    vocab_size=32, width=16, num_layers=1, num_heads=2, num_kv_heads=1, ffn_width=24, max_length=16
)


class SlowFileSystem(LocalFileSystem):
    cachable = False

    def open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        if "w" in mode:
            time.sleep(0.1)
        return super().open(path, mode, **options)


class Group:
    def __init__(self, folder: Path, *, slow: bool) -> None:
        model = Transformer(CONFIG)
        initialize(model, 0)
        self.state = TrainState(model, adamw(model, lr=1e-2), constant_schedule(1e-2))
        self.checkpoints = Checkpoints(SlowFileSystem() if slow else LocalFileSystem(), str(folder), keep=None)

    def train(self) -> None:
        ids = torch.randint(0, 32, (2, 9), generator=torch.Generator().manual_seed(self.state.step)).tolist()
        train_step(self.state, [batch_from_sequences(ids, [[True] * 9] * 2, length=8, pad_id=0)], causal_lm)

    def save(self) -> None:
        self.checkpoints.save(self.state, {})

    def finish_save(self) -> None:
        self.checkpoints.wait()

    def restore(self, step: int) -> str | None:
        try:
            self.checkpoints.load_step(self.state, step)
        except DamagedCheckpointError as error:
            return str(error)
        return None


def main(folder: Path, slow_group: str) -> None:
    groups: Any = {name: Group(folder / name, slow=name == slow_group) for name in ("learner", "critic")}
    checkpoints = GroupCheckpoints({name: Storage(str(folder / name)) for name in groups})
    print(checkpoints.restore(groups) or 0, flush=True)
    while True:
        for group in groups.values():
            group.train()
        saved = groups["learner"].state.step - 1  # `save` waits until the checkpoints of the step before are complete
        checkpoints.save(groups)
        print(saved, flush=True)


main(Path(sys.argv[1]), sys.argv[2])
