"""Checkpoints of an unsharded model. test_parallel tests checkpoints of several ranks."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from fsspec.implementations.local import LocalFileSystem
from torch import Tensor

from model.batch import batch_from_sequences
from model.checkpoint import Checkpoints
from model.checkpoint_steps import (
    CheckpointError,
    NoUsableCheckpointError,
    complete_steps,
    latest_step,
    read_record,
    step_folder,
)
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
    assert read_record(fs, path, 4).extra == {"again": True}


def test_no_checkpoint_leaves_the_state_unchanged(tmp_path: Path) -> None:
    fs, path = new_folder("local", tmp_path)
    state = make_state()
    before = tensors(state)
    assert Checkpoints(fs, path).load(state) is None
    assert_equal(tensors(state), before)
    with pytest.raises(ValueError, match="no complete checkpoint of step 7; steps with a complete checkpoint: none"):
        Checkpoints(fs, path).load_step(state, 7)


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


def save_steps(fs: Any, path: str, steps: list[int], *, keep: int = 2) -> dict[int, dict[str, Tensor]]:
    """Save checkpoints of these steps and return the state of each."""
    state, states = make_state(), {}
    checkpoints = Checkpoints(fs, path, keep=keep)
    for step in steps:
        train(state, step - state.step)
        states[step] = tensors(state)
        checkpoints.save(state, {"step": step})
        checkpoints.wait()
    return states


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(position: float) -> Callable[[Path], None]:
    def flip_bit(file: Path) -> None:
        data = bytearray(file.read_bytes())
        data[int(position * len(data))] ^= 1
        file.write_bytes(data)

    return flip_bit


def empty(file: Path) -> None:
    file.write_bytes(b"")


def append(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b" ")


SHARD = "__0_0.distcp"
DAMAGES = [
    (SHARD, cut, r"__0_0\.distcp has \d+ of \d+ bytes"),
    (SHARD, flip(0.5), r"__0_0\.distcp does not have the content that was written"),
    (SHARD, flip(0.999), r"__0_0\.distcp does not have the content that was written"),
    (SHARD, empty, r"__0_0\.distcp has 0 of \d+ bytes"),
    (SHARD, append, r"__0_0\.distcp has \d+ of \d+ bytes"),
    (SHARD, Path.unlink, r"__0_0\.distcp is missing"),
    (".metadata", Path.unlink, r"\.metadata is missing"),
    (".metadata", cut, r"\.metadata has \d+ of \d+ bytes"),
    (".metadata", flip(0.3), r"\.metadata does not have the content that was written"),
    ("checkpoint.json", empty, r"checkpoint\.json is empty"),
    ("checkpoint.json", cut, r"checkpoint\.json is not a valid record"),
    ("checkpoint.json", flip(0.5), r"checkpoint\.json (is not a valid record|does not have the content)"),
]


def test_a_newest_checkpoint_without_a_record_is_named_where_the_one_before_is_used(tmp_path: Path) -> None:
    fs, path = new_folder("local", tmp_path)
    state, checkpoints = make_state(), Checkpoints(fs, path)
    for _ in range(2):
        train(state, 1)
        checkpoints.save(state, {})
    checkpoints.wait()
    Path(step_folder(path, 2), "checkpoint.json").unlink()
    resumed, warnings = make_state(), []
    Checkpoints(fs, path, warn=warnings.append).load(resumed)
    assert resumed.step == 1
    (warning,) = warnings
    assert "incomplete checkpoint of step 2" in warning and "resumes from the checkpoint of step 1" in warning


@pytest.mark.parametrize(("name", "damage", "fault"), DAMAGES)
def test_a_damaged_newest_checkpoint_is_replaced_by_the_one_before_with_a_warning(
    name: str, damage: Callable[[Path], None], fault: str, tmp_path: Path
) -> None:
    fs, path = new_folder("local", tmp_path)
    states = save_steps(fs, path, [3, 5])
    damage(Path(step_folder(path, 5), name))
    warnings: list[str] = []
    resumed = make_state(seed=9)
    assert Checkpoints(fs, path, warn=warnings.append).load(resumed) == {"step": 3}
    assert resumed.step == 3
    assert_equal(tensors(resumed), states[3])
    (warning,) = warnings
    assert re.search(rf"step-00000005 is damaged: {fault}.*; training resumes from the checkpoint of step 3", warning)
    # The next attempt does not meet the damaged checkpoint again, and training replaces it.
    assert complete_steps(fs, path) == [3]
    checkpoints = Checkpoints(fs, path, warn=warnings.append)
    train(resumed, 2)
    checkpoints.save(resumed, {})
    checkpoints.wait()
    assert_equal(tensors(resumed), states[5])
    assert checkpoints.load(make_state()) == {}
    assert len(warnings) == 1


def test_a_damaged_checkpoint_with_none_before_it_ends_the_run_and_stays(tmp_path: Path) -> None:
    fs, path = new_folder("local", tmp_path)
    save_steps(fs, path, [2, 4])
    cut(Path(step_folder(path, 2), SHARD))
    Path(step_folder(path, 4), ".metadata").unlink()
    message = r"step-00000004 is damaged: .*\.metadata is missing; .*step-00000002 is damaged: .*Restore the files, or"
    for _ in range(2):
        with pytest.raises(NoUsableCheckpointError, match=message):
            Checkpoints(fs, path).load(make_state())
    assert complete_steps(fs, path) == [2, 4]


def test_a_folder_without_a_complete_checkpoint_is_named_when_training_starts_at_step_0(tmp_path: Path) -> None:
    fs, path = new_folder("local", tmp_path)
    save_steps(fs, path, [2])
    Path(step_folder(path, 2), "checkpoint.json").unlink()
    warnings: list[str] = []
    assert Checkpoints(fs, path, warn=warnings.append).load(make_state()) is None
    assert warnings == [
        f"{path} has no complete checkpoint, because the save of step 2 was interrupted; training starts at step 0"
    ]


def as_format_1(path: str, step: int) -> None:
    """Turn a checkpoint into one that an earlier version of Raymill has written."""
    file = Path(step_folder(path, step), "checkpoint.json")
    record = json.loads(file.read_text())
    file.write_text(json.dumps({key: record[key] for key in ("step", "model", "extra")}, indent=2))


def test_a_checkpoint_without_checksums_is_loaded_and_named_as_unchecked(tmp_path: Path) -> None:
    fs, path = new_folder("local", tmp_path)
    states = save_steps(fs, path, [2])
    as_format_1(path, 2)
    warnings: list[str] = []
    resumed = make_state(seed=9)
    assert Checkpoints(fs, path, warn=warnings.append).load(resumed) == {"step": 2}
    assert_equal(tensors(resumed), states[2])
    assert [warning.split(" is ")[1] for warning in warnings] == [
        "of an earlier version of Raymill and has no checksums; it"
    ]


@pytest.mark.parametrize(
    ("name", "damage"), [(SHARD, cut), (SHARD, Path.unlink), (".metadata", cut), (".metadata", empty)]
)
def test_damage_of_a_checkpoint_without_checksums_is_found_when_it_is_read(
    name: str, damage: Callable[[Path], None], tmp_path: Path
) -> None:
    fs, path = new_folder("local", tmp_path)
    states = save_steps(fs, path, [2, 4])
    for step in (2, 4):
        as_format_1(path, step)
    damage(Path(step_folder(path, 4), name))
    warnings: list[str] = []
    resumed = make_state(seed=9)
    assert Checkpoints(fs, path, warn=warnings.append).load(resumed) == {"step": 2}
    assert_equal(tensors(resumed), states[2])
    assert re.search(
        r"step-00000004 could not be read: .*; training resumes from the checkpoint of step 2", warnings[2]
    )


def test_a_checkpoint_of_a_later_format_is_rejected_and_not_taken_for_damaged(tmp_path: Path) -> None:
    fs, path = new_folder("local", tmp_path)
    save_steps(fs, path, [2, 4])
    file = Path(step_folder(path, 4), "checkpoint.json")
    record = json.loads(file.read_text()) | {"format": 3}
    del record["crc32"]
    record["crc32"] = zlib.crc32(json.dumps(record, sort_keys=True).encode())
    file.write_text(json.dumps(record))
    with pytest.raises(ValueError, match="has format 3, but this version of Raymill reads the formats up to 2"):
        Checkpoints(fs, path).load(make_state())


class PayloadError(Exception):
    """Stands for the errors of HTTP libraries, which are no OSErrors."""


@pytest.mark.parametrize("error_type", [ConnectionError, PayloadError])
def test_a_store_that_does_not_answer_is_an_error_and_not_damage(error_type: type[Exception], tmp_path: Path) -> None:
    class FailingFileSystem(LocalFileSystem):
        cachable = False

        def open(self, path: str, mode: str = "rb", **options: Any) -> Any:
            if "r" in mode and path.endswith(".distcp"):
                raise error_type("reset by peer")
            return super().open(path, mode, **options)

    fs, path = new_folder("local", tmp_path)
    save_steps(fs, path, [2, 4])
    expected = rf"step-00000004 could not be read: .*{error_type.__name__}: reset by peer"
    with pytest.raises(CheckpointError, match=expected):
        Checkpoints(FailingFileSystem(), path).load(make_state())
    assert complete_steps(fs, path) == [2, 4]


def test_every_file_and_its_folder_is_on_the_disk_before_the_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def record_fsync(descriptor: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record_fsync)
    fs, path = new_folder("local", tmp_path)
    save_steps(fs, path, [2])
    before_record = synced[: synced.index("checkpoint.json.tmp")]
    assert before_record[:2] == [SHARD, "step-00000002"]
    assert before_record[2:] == [".metadata.tmp", "step-00000002", "step-00000002"]
    assert synced[len(before_record) + 1 :] == ["step-00000002", "checkpoints", tmp_path.name]


def test_an_incomplete_upload_does_not_become_a_checkpoint(tmp_path: Path) -> None:
    class LossyFileSystem(LocalFileSystem):
        cachable = False

        def mv(self, path1: str, path2: str, **options: Any) -> None:
            super().mv(path1, path2, **options)
            if path2.endswith(".metadata"):
                cut(Path(path2).with_name(SHARD))

    path = f"{tmp_path}/checkpoints"
    checkpoints = Checkpoints(LossyFileSystem(), path)
    checkpoints.save(make_state(), {})
    with pytest.raises(CheckpointError, match=r"is incomplete: __0_0\.distcp has \d+ of \d+ bytes"):
        checkpoints.wait()
    assert complete_steps(checkpoints.fs, path) == []


def test_the_extra_must_be_json(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="JSON"):
        Checkpoints(*new_folder("local", tmp_path)).save(make_state(), {"tensor": torch.zeros(1)})
