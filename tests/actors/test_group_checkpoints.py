"""The learner and the critic always have a usable checkpoint of a common step, whenever the run is killed."""

from __future__ import annotations

import itertools
import logging
import os
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from actors.group_checkpoints import GroupCheckpoints
from cluster.storage import Storage
from model.checkpoint_files import find_fault
from model.checkpoint_steps import (
    CheckpointRecord,
    DamagedCheckpointError,
    FileChecksum,
    NoUsableCheckpointError,
    complete_steps,
    read_record,
    remove_checkpoint,
    step_folder,
    write_record,
)

NUM_OPERATIONS = 3
"""Number of operations of a save: remove the folder's old content, write the shard, write the record."""
SCRIPT = Path(__file__).with_name("group_checkpoints_process.py")


class FakeGroup:
    """A group whose saves advance one operation at a time, so that a kill can come between any two of them."""

    def __init__(self, folder: Storage) -> None:
        self.folder, self.step = folder, 0
        self.operations: list[Callable[[], None]] = []

    def save(self) -> None:
        assert not self.operations, "the previous save is not complete"
        fs, path, content = self.folder.fs, self.folder.root, f"state of step {self.step}".encode()
        name = f"{step_folder(path, self.step)}/shard"
        record = CheckpointRecord(
            step=self.step, model={}, extra={}, files={"shard": FileChecksum(len(content), zlib.crc32(content))}
        )

        def remove_leftover() -> None:
            if fs.exists(os.path.dirname(name)):
                remove_checkpoint(fs, os.path.dirname(name))

        def write_shard() -> None:
            fs.makedirs(os.path.dirname(name), exist_ok=True)
            fs.pipe_file(name, content)

        self.operations = [remove_leftover, write_shard, lambda: write_record(fs, path, record)]

    def advance(self, num_operations: int) -> None:
        for _ in range(num_operations):
            self.operations.pop(0)()

    def finish_save(self) -> None:
        self.advance(len(self.operations))

    def restore(self, step: int) -> str | None:
        fs, path = self.folder.fs, self.folder.root
        try:
            record = read_record(fs, path, step)
        except DamagedCheckpointError as error:
            return str(error)
        assert record.files is not None
        fault = find_fault(fs, f"{step_folder(path, step)}/shard", record.files["shard"])
        self.step = step
        return None if fault is None else f"checkpoint of step {step}: shard {fault}"


class Run:
    """A run of RLHF. A new object stands for a new attempt after a kill."""

    def __init__(self, folder: Path) -> None:
        folders = {name: Storage(str(folder / name)) for name in ("learner", "critic")}
        self.checkpoints = GroupCheckpoints(folders)
        self.groups: Any = {name: FakeGroup(storage) for name, storage in folders.items()}
        self.step = self.checkpoints.restore(self.groups) or 0

    def train_and_save(self, step: int) -> None:
        for group in self.groups.values():
            group.step = step
        self.checkpoints.save(self.groups)

    def advance(self, learner: int, critic: int) -> None:
        self.groups["learner"].advance(learner)
        self.groups["critic"].advance(critic)


KILLS = list(itertools.product(range(NUM_OPERATIONS + 1), repeat=2))


@pytest.mark.parametrize("kill", KILLS)
@pytest.mark.parametrize("second_kill", [(0, 3), (1, 3), (3, 0), (3, 2), (2, 2), (3, 3)])
def test_no_kill_loses_the_last_common_step(
    kill: tuple[int, int], second_kill: tuple[int, int], tmp_path: Path
) -> None:
    whole = (NUM_OPERATIONS, NUM_OPERATIONS)
    run = Run(tmp_path)
    run.train_and_save(10)
    run.train_and_save(20)  # finishes the save of step 10
    run.advance(*kill)
    last = 20 if kill == whole else 10
    # The second attempt is stopped by a signal: it saves a step between the intervals, and is killed again.
    run = Run(tmp_path)
    assert run.step == last
    run.train_and_save(last + 5)
    run.advance(*second_kill)
    last = last + 5 if second_kill == whole else last
    run = Run(tmp_path)
    assert run.step == last
    assert all(group.step == last for group in run.groups.values())
    # No group has a checkpoint of a part of the history that was abandoned.
    assert all(max(complete_steps(g.folder.fs, g.folder.root)) == last for g in run.groups.values())


@pytest.mark.parametrize("kill", KILLS)
def test_a_kill_in_the_first_save_starts_at_step_0_and_says_so(
    kill: tuple[int, int], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run(tmp_path)
    run.train_and_save(10)
    run.advance(*kill)
    caplog.clear()
    assert Run(tmp_path).step == (10 if min(kill) == NUM_OPERATIONS else 0)
    is_named = "the first save was interrupted" in caplog.text
    assert is_named == (max(kill) == NUM_OPERATIONS and min(kill) < NUM_OPERATIONS)
    assert Run(tmp_path).step == (
        10 if min(kill) == NUM_OPERATIONS else 0
    )  # once more, after the leftovers are removed


def three_saves(folder: Path) -> None:
    run = Run(folder)
    for step in (10, 20, 30):
        run.train_and_save(step)
    run.checkpoints.finish_save(run.groups)


@pytest.mark.parametrize("name", ["learner", "critic"])
@pytest.mark.parametrize("file", ["shard", "checkpoint.json"])
def test_damage_in_one_group_takes_both_to_the_common_step_before(
    name: str, file: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    three_saves(tmp_path)
    damaged = Path(step_folder(str(tmp_path / name), 30), file)
    damaged.write_bytes(damaged.read_bytes()[:-1])
    run = Run(tmp_path)
    assert run.step == 20
    assert all(group.step == 20 for group in run.groups.values())
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert file in record.getMessage() and "resumes from optimizer step 20 instead" in record.getMessage()


def test_two_common_steps_are_kept(tmp_path: Path) -> None:
    three_saves(tmp_path)
    for name in ("learner", "critic"):
        assert sorted(path.name for path in (tmp_path / name).iterdir()) == ["step-00000020", "step-00000030"]


def test_checkpoints_that_cannot_be_used_end_the_run_instead_of_starting_again(tmp_path: Path) -> None:
    three_saves(tmp_path)
    for step in (20, 30):
        Path(step_folder(str(tmp_path / "critic"), step), "shard").unlink()
    with pytest.raises(NoUsableCheckpointError, match="step 30: shard is missing; .*step 20: shard is missing"):
        Run(tmp_path)
    for step in (20, 30):
        Storage(step_folder(str(tmp_path / "critic"), step)).remove()
    with pytest.raises(NoUsableCheckpointError, match="no optimizer step .* learner 20, 30, critic none"):
        Run(tmp_path)


@pytest.mark.slow
def test_real_kills_with_a_slow_critic_store_never_lose_a_common_step(tmp_path: Path) -> None:
    """The process of `group_checkpoints_process.py` saves every step, and is killed at times that its saves decide."""
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[2]), "OMP_NUM_THREADS": "1"}
    reached = 0
    for delay_s in (0.0, 0.2, 0.4):
        process = subprocess.Popen(
            [sys.executable, str(SCRIPT), str(tmp_path), "critic"], env=environment, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        restored = int(process.stdout.readline())
        assert restored >= reached
        # Each later line is a step whose checkpoints are complete in both groups.
        lines = [process.stdout.readline() for _ in range(3)]
        time.sleep(delay_s)
        process.send_signal(signal.SIGKILL)
        lines += process.communicate()[0].splitlines(keepends=True)
        steps = [int(line) for line in lines if line.endswith("\n")]  # the kill may have cut the last line
        assert steps == list(range(restored, restored + len(steps)))
        reached = steps[-1]
    assert reached >= 6
