"""Is work lost? The tiny road with its driver killed at random moments of every stage, against a road left alone.

In each stage the driver is killed with SIGKILL, by default three times, at moments drawn over the first 60 percent of
what is left of the time that the stage took undisturbed. After each kill the same command goes on. The table tells, for
each kill, the seconds into the stage, the last step logged before it, the step it went on from (a stage without
checkpoints begins again) and how long until no process of the killed run was left; and for each stage whether its bytes
are those of the undisturbed road. A finished stage that is made a second time, or a process that stays, ends it with an
error; bytes that differ, or a stage that ended before it was killed as often as asked, are told at the end, with exit
status 1.

    python benchmarks/kills.py [--kills 3] [--seed 0] [--stages rlhf serve]
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from cluster.metrics_log import read_metrics
from cluster.storage import Storage
from jobs.frame.pipeline import load_pipeline
from jobs.frame.same_code import code_digest

CONFIG = Path(__file__).parent.parent / "configs" / "tiny" / "pipeline.yaml"
MARK = "RAYMILL_KILLS"
"""Environment variable that every process of a driver inherits."""
ORPHAN_LIMIT_S = 120.0
STEPPED = ("pretrain", "sft", "reward", "rlhf", "rlhf-shuffled")
"""Stages that go on from a checkpoint."""
GOES_ON = re.compile(r"(?:goes on|resumes) from its checkpoint at step (\d+)")


@dataclass(frozen=True)
class Kill:
    """What was seen of one kill."""

    stage: str
    into_stage_s: float
    logged_step: int
    log: Path
    """Of the driver that was killed."""
    gone_after_s: float


class Road:
    """The tiny pipeline in a store of its own, run by drivers that can be told from all other processes."""

    def __init__(self, store: Path) -> None:
        self.store, self.mark = store, store.name
        self._drivers = 0

    def start(self) -> tuple[subprocess.Popen[bytes], Path]:
        """Another driver of the same command, and its log."""
        self._drivers += 1
        path = self.store.parent / f"{self.mark}-driver-{self._drivers}.log"
        command = [sys.executable, "-m", "jobs.cli", "run", "pipeline", str(CONFIG), "--store", str(self.store)]
        with path.open("wb") as output:
            return subprocess.Popen(command, env=os.environ | {MARK: self.mark}, stdout=output, stderr=output), path

    def processes(self) -> list[str]:
        """`pid name` of everything that a driver of this road has started and that still runs."""
        found = psutil.process_iter(["pid", "name", "environ"])
        return [
            f"{one.info['pid']} {one.info['name']}"
            for one in found
            if (one.info["environ"] or {}).get(MARK) == self.mark
        ]

    def record(self, job: str) -> dict | None:
        """The artifact's record, or None while it is not whole."""
        path = self.store / job / "artifact.json"
        return json.loads(path.read_text()) if path.exists() else None

    def logged_step(self, job: str) -> int:
        lines = read_metrics(Storage(str(self.store / job)))
        return int(lines[-1]["step"]) if lines else 0

    def kill_in(self, stage: str, job: str, *, within_s: float, draw: random.Random) -> Kill | None:
        """Run until `job` has been under way for a time drawn up to `within_s`, and kill; None when it ended before."""
        driver, path = self.start()
        lease = self.store / job / "lease.json"
        while not (lease.exists() and json.loads(lease.read_text() or "{}").get("pid") == driver.pid):
            if driver.poll() is not None:
                raise RuntimeError(f"the driver ended before {stage} began; see {path}")
            time.sleep(0.02)
        begun, wait_s = time.monotonic(), draw.uniform(0, 0.6 * within_s)  # it may be faster this time
        while time.monotonic() - begun < wait_s and self.record(job) is None:
            time.sleep(0.02)
        ended = self.record(job) is not None
        driver.kill()
        killed = time.monotonic()
        step = self.logged_step(job)
        driver.wait()
        while self.processes():
            if time.monotonic() - killed > ORPHAN_LIMIT_S:
                raise RuntimeError(f"{stage}: still there {ORPHAN_LIMIT_S:.0f} s after the kill: {self.processes()}")
            time.sleep(0.1)
        return None if ended else Kill(stage, killed - begun, step, path, time.monotonic() - killed)

    def finish(self) -> Path:
        """Run to the end; the driver's log."""
        driver, path = self.start()
        if driver.wait():
            raise RuntimeError(f"the driver failed; see {path}")
        return path


def disturbed(road: Road, undisturbed: Road, stages: Sequence[str], *, kills: int, draw: random.Random) -> list[Kill]:
    """Kill the road in these stages, then let it end."""
    seen: list[Kill] = []
    begun: dict[str, float] = {}
    jobs = load_pipeline(CONFIG, store=str(road.store)).jobs
    for name, job in jobs.items():
        whole = undisturbed.record(job.id)
        assert whole is not None
        for _ in range(kills if name in stages else 0):
            left = 1 - road.logged_step(job.id) / job.config.steps if name in STEPPED else 1.0
            kill = road.kill_in(name, job.id, within_s=whole["wall_s"] * left, draw=draw)
            check_unchanged(road, begun, [other.id for other in jobs.values()])
            if kill is None:
                break  # it ended before the moment came: `shortfalls` tells
            seen.append(kill)
            print(f"{name:<14} killed {kill.into_stage_s:6.1f} s into it, at step {kill.logged_step}", flush=True)
    road.finish()
    check_unchanged(road, begun, [job.id for job in jobs.values()])
    return seen


def check_unchanged(road: Road, begun: dict[str, float], jobs: Sequence[str]) -> None:
    """Raise RuntimeError when an artifact that stood was made again; remember those that stand now."""
    for job in jobs:
        if (record := road.record(job)) and begun.setdefault(job, record["started"]) != record["started"]:
            raise RuntimeError(f"{job} stood and was made again")


def went_on_from(kill: Kill) -> str:
    """What the next drivers' logs say of where the stage went on; one that is killed early has not said it yet."""
    head, _, number = kill.log.stem.rpartition("-")
    later = itertools.count(int(number) + 1)
    for log in itertools.takewhile(Path.exists, (kill.log.with_name(f"{head}-{count}.log") for count in later)):
        text = log.read_text()
        if found := GOES_ON.search(text):
            return f"step {found.group(1)}"
        if re.search(rf"{kill.stage}-[0-9a-f]+ done", text):
            break
    return "its start"


def require_same_code(undisturbed: Road, jobs: Sequence[str]) -> None:
    """Raise RuntimeError when what stands of the undisturbed road was made by other code than the disturbed will be."""
    ours = code_digest()
    for job in jobs:
        if (record := undisturbed.record(job)) and record["code_digest"] != ours:
            raise RuntimeError(
                f"{undisturbed.store / job} was made by other code than this, and the bytes of two codes may differ; "
                f"rm -r {undisturbed.store}"
            )


def shortfalls(seen: Sequence[Kill], stages: Sequence[str], *, kills: int) -> list[str]:
    """Of each stage that was killed less often than asked, how often that was."""
    made = {stage: sum(kill.stage == stage for kill in seen) for stage in stages}
    return [f"{stage} ended after {count} of {kills} kills" for stage, count in made.items() if count < kills]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=3, help="in each stage")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--stages", nargs="*", help="only these (default: every stage)")
    options = parser.parse_args()
    pipeline = load_pipeline(CONFIG)
    undisturbed = Road(Path(pipeline.store.root))
    require_same_code(undisturbed, [job.id for job in pipeline.jobs.values()])
    undisturbed.finish()
    wrong: list[str] = []
    with tempfile.TemporaryDirectory(prefix="raymill-kills-") as scratch:
        road = Road(Path(scratch) / f"road-{os.getpid()}")
        stages = options.stages or list(pipeline.jobs)
        seen = disturbed(road, undisturbed, stages, kills=options.kills, draw=random.Random(options.seed))
        print(f"\n{'stage':<14} {'killed at':>9} {'step':>6} {'went on from':>13} {'all gone after':>15}   bytes")
        for name, job in pipeline.jobs.items():
            ours, theirs = road.record(job.id), undisturbed.record(job.id)
            assert ours is not None and theirs is not None
            same = "equal" if ours["digest"] == theirs["digest"] else "DIFFER"
            wrong += [f"{name}: the bytes differ"] if same == "DIFFER" else []
            for kill in (kill for kill in seen if kill.stage == name):
                print(
                    f"{name:<14} {kill.into_stage_s:>7.1f} s {kill.logged_step:>6} {went_on_from(kill):>13} "
                    f"{kill.gone_after_s:>13.1f} s   {same}"
                )
    wrong += shortfalls(seen, stages, kills=options.kills)
    print("\n".join(wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
