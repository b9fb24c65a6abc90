"""Is work lost? The tiny pipeline with its driver killed at random moments of every stage, against an undisturbed run.

In each stage the driver is killed with SIGKILL, by default three times, at moments drawn over the first 60 percent of
the remaining part of the stage's undisturbed time. After each kill the same command resumes. The table shows, for each
kill, the seconds into the stage, the last step logged before it, the step that the stage resumed from (one without
checkpoints begins again) and how long processes of the killed run remained; and for each stage whether its bytes are
those of the undisturbed run. A finished stage that is run again, or a process that remains, is an error at once; bytes
that differ, or a stage that finished before it was killed as often as asked, are listed at the end, with exit status 1.

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
"""Stages that resume from a checkpoint."""
RESUMED = re.compile(r"resumes from its checkpoint at step (\d+)")


@dataclass(frozen=True)
class Kill:
    """One kill."""

    stage: str
    into_stage_s: float
    logged_step: int
    log: Path
    """The log of the killed driver."""
    gone_after_s: float


class MarkedRun:
    """The tiny pipeline in a store of its own, run by drivers whose processes carry a mark."""

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
        """`pid name` of every running process that a driver of this run has started."""
        running = psutil.process_iter(["pid", "name", "environ"])
        return [
            f"{one.info['pid']} {one.info['name']}"
            for one in running
            if (one.info["environ"] or {}).get(MARK) == self.mark
        ]

    def record(self, job: str) -> dict | None:
        """The artifact's record, or None while it is unfinished."""
        path = self.store / job / "artifact.json"
        return json.loads(path.read_text()) if path.exists() else None

    def logged_step(self, job: str) -> int:
        lines = read_metrics(Storage(str(self.store / job)))
        return int(lines[-1]["step"]) if lines else 0

    def kill_in(self, stage: str, job: str, *, within_s: float, draw: random.Random) -> Kill | None:
        """Run until `job` has run for a time drawn up to `within_s`, and kill; None when it finished before."""
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


def disturbed(
    killed_run: MarkedRun, undisturbed: MarkedRun, stages: Sequence[str], *, kills: int, draw: random.Random
) -> list[Kill]:
    """Kill the run in these stages, then let it finish."""
    seen: list[Kill] = []
    begun: dict[str, float] = {}
    jobs = load_pipeline(CONFIG, store=str(killed_run.store)).jobs
    for name, job in jobs.items():
        finished = undisturbed.record(job.id)
        assert finished is not None
        for _ in range(kills if name in stages else 0):
            remaining = 1 - killed_run.logged_step(job.id) / job.config.steps if name in STEPPED else 1.0
            kill = killed_run.kill_in(name, job.id, within_s=finished["wall_s"] * remaining, draw=draw)
            check_unchanged(killed_run, begun, [other.id for other in jobs.values()])
            if kill is None:
                break  # it ended before the moment came: `shortfalls` tells
            seen.append(kill)
            print(f"{name:<14} killed {kill.into_stage_s:6.1f} s into it, at step {kill.logged_step}", flush=True)
    killed_run.finish()
    check_unchanged(killed_run, begun, [job.id for job in jobs.values()])
    return seen


def check_unchanged(killed_run: MarkedRun, begun: dict[str, float], jobs: Sequence[str]) -> None:
    """Raise RuntimeError when a finished artifact was made again; remember those that are finished now."""
    for job in jobs:
        if (record := killed_run.record(job)) and begun.setdefault(job, record["started"]) != record["started"]:
            raise RuntimeError(f"{job} was finished and was made again")


def resumed_from(kill: Kill) -> str:
    """Where the stage resumed, by the logs of the next drivers; one that is killed early has not logged it yet."""
    head, _, number = kill.log.stem.rpartition("-")
    later = itertools.count(int(number) + 1)
    for log in itertools.takewhile(Path.exists, (kill.log.with_name(f"{head}-{count}.log") for count in later)):
        text = log.read_text()
        if resumed := RESUMED.search(text):
            return f"step {resumed.group(1)}"
        if re.search(rf"{kill.stage}-[0-9a-f]+ done", text):
            break
    return "its start"


def require_same_code(undisturbed: MarkedRun, jobs: Sequence[str]) -> None:
    """Raise RuntimeError when the undisturbed run has artifacts that other code made."""
    ours = code_digest()
    for job in jobs:
        if (record := undisturbed.record(job)) and record["code_digest"] != ours:
            raise RuntimeError(
                f"{undisturbed.store / job} was made by other code than this, and the bytes of two codes may differ; "
                f"rm -r {undisturbed.store}"
            )


def shortfalls(seen: Sequence[Kill], stages: Sequence[str], *, kills: int) -> list[str]:
    """The stages that were killed less often than asked, and how often."""
    num_kills = {stage: sum(kill.stage == stage for kill in seen) for stage in stages}
    return [f"{stage} ended after {count} of {kills} kills" for stage, count in num_kills.items() if count < kills]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=3, help="in each stage")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--stages", nargs="*", help="only these (default: every stage)")
    options = parser.parse_args()
    pipeline = load_pipeline(CONFIG)
    undisturbed = MarkedRun(Path(pipeline.store.root))
    require_same_code(undisturbed, [job.id for job in pipeline.jobs.values()])
    undisturbed.finish()
    wrong: list[str] = []
    with tempfile.TemporaryDirectory(prefix="raymill-kills-") as scratch:
        killed_run = MarkedRun(Path(scratch) / f"run-{os.getpid()}")
        stages = options.stages or list(pipeline.jobs)
        seen = disturbed(killed_run, undisturbed, stages, kills=options.kills, draw=random.Random(options.seed))
        print(f"\n{'stage':<14} {'killed at':>9} {'step':>6} {'resumed from':>13} {'all gone after':>15}   bytes")
        for name, job in pipeline.jobs.items():
            ours, theirs = killed_run.record(job.id), undisturbed.record(job.id)
            assert ours is not None and theirs is not None
            same = "equal" if ours["digest"] == theirs["digest"] else "DIFFER"
            wrong += [f"{name}: the bytes differ"] if same == "DIFFER" else []
            for kill in (kill for kill in seen if kill.stage == name):
                print(
                    f"{name:<14} {kill.into_stage_s:>7.1f} s {kill.logged_step:>6} {resumed_from(kill):>13} "
                    f"{kill.gone_after_s:>13.1f} s   {same}"
                )
    wrong += shortfalls(seen, stages, kills=options.kills)
    print("\n".join(wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
