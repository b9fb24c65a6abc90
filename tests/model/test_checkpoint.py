"""Checkpoints of an unsharded model. test_parallel tests checkpoints of several ranks."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from fsspec.implementations.local import LocalFileSystem
from torch import Tensor

from model.batch import batch_from_sequences
from model.checkpoint import CheckpointError, Checkpoints
from model.checkpoint_steps import complete_steps, latest_step, read_record, step_folder
from model.heads import ScalarModel
from model.objectives import causal_lm
from model.optim import adamw, constant_schedule
from model.train import StepReport, TrainState, train_step
from model.transformer import Transformer, initialize
from model.transformer_config import TransformerConfig

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

CONFIG = TransformerConfig(
    vocab_size=32, width=16, num_layers=2, num_heads=2, num_kv_heads=1, ffn_width=24, max_length=16
)


def make_state(config: TransformerConfig = CONFIG, *, seed: int = 0) -> TrainState:
    model = Transformer(config)
    initialize(model, seed)
    return TrainState(model, adamw(model, lr=1e-2), constant_schedule(1e-2))


def train(state: TrainState, num_steps: int) -> list[StepReport]:
    reports = []
    for _ in range(num_steps):
        ids = torch.randint(0, 32, (4, 9), generator=torch.Generator().manual_seed(state.step)).tolist()
        reports.append(train_step(state, [batch_from_sequences(ids, [[True] * 9] * 4, length=8, pad_id=0)], causal_lm))
    return reports


def tensors(state: TrainState) -> dict[str, Tensor]:
    out = {name: tensor.clone() for name, tensor in state.model.state_dict().items()}
    for index, values in state.optimizer.state_dict()["state"].items():
        out |= {f"{index}/{key}": value.clone() for key, value in values.items()}
    return out


def assert_equal(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], expected[name]) for name in expected)


def new_folder(kind: str, tmp_path: Path) -> tuple[Any, str]:
    if kind == "local":
        return fsspec.filesystem("file"), f"{tmp_path}/checkpoints"
    return fsspec.filesystem("memory"), f"/{tmp_path.name}/checkpoints"


@pytest.mark.parametrize("kind", ["local", "memory"])
def test_a_resumed_run_is_bitwise_equal_to_an_uninterrupted_run(kind: str, tmp_path: Path) -> None:
    fs, path = new_folder(kind, tmp_path)
    uninterrupted = make_state()
    train(uninterrupted, 3)
    checkpoints = Checkpoints(fs, path)
    checkpoints.save(uninterrupted, {"sample": 12, "epochs": [0, 1]})
    rest = train(uninterrupted, 3)  # while the save is in progress
    checkpoints.wait()

    resumed = make_state(seed=99)
    assert Checkpoints(fs, path).load(resumed) == {"sample": 12, "epochs": [0, 1]}
    assert resumed.step == 3
    again = train(resumed, 3)
    assert [(r.step, r.loss, r.grad_norm) for r in again] == [(r.step, r.loss, r.grad_norm) for r in rest]
    assert_equal(tensors(resumed), tensors(uninterrupted))


def test_a_checkpoint_is_found_only_when_complete_and_later_training_does_not_change_it(tmp_path: Path) -> None:
    release = threading.Event()

    class SlowFileSystem(LocalFileSystem):
        cachable = False

        def open(self, path: str, mode: str = "rb", **options: Any) -> Any:
            if ".distcp" in path and "w" in mode:
                assert release.wait(timeout=60)
            return super().open(path, mode, **options)

    fs, path = SlowFileSystem(), f"{tmp_path}/checkpoints"
    state = make_state()
    train(state, 2)
    expected = tensors(state)
    checkpoints = Checkpoints(fs, path)
    checkpoints.save(state, {})
    train(state, 1)
    assert latest_step(fs, path) is None
    release.set()
    checkpoints.wait()
    assert latest_step(fs, path) == 2
    loaded = make_state(seed=5)
    checkpoints.load(loaded)
    assert_equal(tensors(loaded), expected)


def test_the_newest_checkpoints_are_kept_and_incomplete_older_ones_are_removed(tmp_path: Path) -> None:
    fs, path = new_folder("local", tmp_path)
    state = make_state()
    checkpoints = Checkpoints(fs, path, keep=2)
    for _ in range(4):
        train(state, 1)
        checkpoints.save(state, {})
        checkpoints.wait()
        if state.step == 2:
            fs.pipe_file(f"{step_folder(path, 1)}/__0_0.distcp", b"left by a kill")
    assert complete_steps(fs, path) == [3, 4]
    assert sorted(Path(path).iterdir()) == [Path(step_folder(path, 3)), Path(step_folder(path, 4))]
    fs.rm_file(f"{step_folder(path, 4)}/checkpoint.json")
    assert latest_step(fs, path) == 3
    # A step whose save was killed is saved again in the same folder.
    checkpoints.save(state, {"again": True})
    checkpoints.wait()
    assert read_record(fs, path, 4)["extra"] == {"again": True}


def test_no_checkpoint_leaves_the_state_unchanged(tmp_path: Path) -> None:
    fs, path = new_folder("local", tmp_path)
    state = make_state()
    before = tensors(state)
    assert Checkpoints(fs, path).load(state) is None
    assert_equal(tensors(state), before)
    with pytest.raises(ValueError, match="no complete checkpoint of step 7; steps with a complete checkpoint: none"):
        Checkpoints(fs, path).load(state, step=7)


def test_a_checkpoint_of_a_different_model_is_rejected(tmp_path: Path) -> None:
    fs, path = new_folder("local", tmp_path)
    checkpoints = Checkpoints(fs, path)
    checkpoints.save(make_state(), {})
    checkpoints.wait()
    with pytest.raises(ValueError, match="has a different model"):
        checkpoints.load(make_state(dataclasses.replace(CONFIG, num_layers=1)))
    critic = ScalarModel(CONFIG)
    with pytest.raises(ValueError, match="has a different model"):
        checkpoints.load(TrainState(critic, adamw(critic, lr=1e-2), constant_schedule(1e-2)))


def test_a_failed_save_is_raised_by_wait(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    fs = fsspec.filesystem("file")
    checkpoints = Checkpoints(fs, f"{tmp_path}/file/checkpoints")
    checkpoints.save(make_state(), {})
    with pytest.raises(CheckpointError, match=r"step-00000000 could not be written: .*Not a directory.* \(rank 0\)$"):
        checkpoints.wait()


def test_the_error_of_a_damaged_checkpoint_has_its_folder(tmp_path: Path) -> None:
    fs, path = new_folder("local", tmp_path)
    checkpoints = Checkpoints(fs, path)
    checkpoints.save(make_state(), {})
    checkpoints.wait()
    (shard,) = Path(step_folder(path, 0)).glob("*.distcp")
    shard.write_bytes(shard.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="step-00000000 could not be read"):
        checkpoints.load(make_state())


def test_the_extra_must_be_json(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="JSON"):
        Checkpoints(*new_folder("local", tmp_path)).save(make_state(), {"tensor": torch.zeros(1)})
