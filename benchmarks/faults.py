"""Checks that every fault is reported with its right cause: faults in all stages of a tiny pipeline, one run each.

Each fault happens once, in the process that the table names: it is killed, stopped, runs out of memory in a control
group, gets a full disk or a closed port, or raises. Within 30 s the run's output must name the right stage, process and
cause. A run that cannot continue must end by itself, with its exit code; any other gets SIGTERM and must end within
15 s, with exit code 143. No process of it may remain. `term` is that signal alone, in every working stage. A failure of
W&B (unreachable, a refused key, its disk full) must be one warning in a stage that ends well, with all its metrics in
the offline run of its artifact, as `wandb sync` sends them to a server. Exit code 1 on a miss. A fault that this
machine does not allow is skipped.

    python benchmarks/faults.py [--only pretrain rlhf:generator:kill] [--list]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
PLANTING = ROOT / "benchmarks" / "planting"
sys.path[:0] = [str(PLANTING), str(ROOT / "tests")]
import wandb_server  # noqa: E402
from sitecustomize import memory_group  # noqa: E402  # pyright: ignore[reportAttributeAccessIssue]
from tiny_pipeline import STAGES, copy_store, prepare  # noqa: E402

MARK = "RAYMILL_FAULTS"
"""Environment variable that every process of a run inherits, with a value of the run's own."""
RAY_FOLDER = Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp") / "ray"
"""The folder of Ray's sessions, as in `ray._common.utils.get_default_ray_temp_dir`."""
REPORT_LIMIT_S, END_LIMIT_S = 30.0, 15.0
KEY, CLOSED_URL = "0" * 40, "http://127.0.0.1:9"
START_LIMIT_S = 600.0
"""How long a run may take until its fault happens, on a busy machine."""

AT_WORK = {
    "corpus": "data.corpus.cleaning_tasks:clean_ranges",
    "vocabulary": "data.tokens.word_counts:_count_part",
    "shards": "data.tokens.shard_tasks:write_shards",
    **dict.fromkeys(("pretrain", "sft", "reward"), "model.train:train_step"),
    "rlhf": "actors.generator:Generator.generate",
    **dict.fromkeys(("compress", "evaluate"), "actors.likelihood:score_text"),
    "serve": "",
}
"""A function that the processes of each stage call while it works; none for serve, which runs another program."""
WANDB_KINDS = ("wandb-unreachable", "wandb-401", "wandb-disk")

CAUSES = {
    "kill": r"was killed by signal 9 \(SIGKILL\)",
    "stop": r"was stopped by a signal \(SIGSTOP\)",
    "crash": r"was killed by signal 11 \(SIGSEGV\)",
    "memory": r"ran out of memory: .*limit 256 MiB",
    "raise": r"raised RuntimeError: planted fault, at ",
    "disk": r"No space left on device",
    "wandb-unreachable": r"OSError: http://127\.0\.0\.1:9 cannot be reached: .*refused",
    "wandb-401": r"CommError: [^;]*\b401\b",
    "wandb-disk": r"[^;]*no space left on device",
}
"""The cause that must be reported, by the kind of fault."""
PORT = rf"raymill: store: cannot write to s3://nowhere/store \(.*Could not connect to the endpoint URL: .{CLOSED_URL}/"


@dataclass(frozen=True)
class Fault:
    """A fault: the stage and process in which it happens, and how it is caused."""

    stage: str
    role: str
    kind: str
    at: str = ""
    """`module:function` in which it happens; empty where it is caused from outside."""
    call: int = 1
    """The call of that function at which it happens."""
    overrides: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.stage}:{self.role}:{self.kind}"

    @property
    def code(self) -> int:
        """The exit code of a run that ends by itself: 0 where it continued, as after the death of a rank or a task."""
        if self.kind == "port":
            return 2
        is_raised = self.kind == "raise" and self.role != "rank"
        return int(is_raised or self.kind == "disk" or (self.stage, self.kind) == ("serve", "kill"))

    @property
    def is_final(self) -> bool:
        """Whether the run must end by itself in time; ranks are restarted several times, which may take longer."""
        return self.code != 0 and self.role != "rank"


def faults() -> list[Fault]:
    """All faults, by stage."""
    one_task = {stage: AT_WORK[stage] for stage in ("corpus", "vocabulary", "shards", "compress", "evaluate")}
    result = [
        Fault(stage, "score_text" if at.endswith(":score_text") else "task", kind, at)
        for stage, at in one_task.items()
        for kind in (("kill", "raise", "stop", "memory") if stage in ("corpus", "evaluate") else ("kill", "raise"))
    ]
    for stage in ("pretrain", "sft", "reward"):
        kinds = ("kill", "stop", "crash", "memory", "raise") if stage == "pretrain" else ("kill", "raise")
        result += [Fault(stage, "rank", kind, AT_WORK[stage], 4) for kind in kinds]
    for role, at, kinds in (
        ("generator", AT_WORK["rlhf"], ("kill", "stop", "memory", "raise")),
        ("learner", "actors.learner:Learner.update", ("kill", "stop", "raise")),
        ("scorer", "actors.reward_model:RewardModel.score", ("kill", "raise")),
        ("reference", "actors.reference:Reference.logprobs", ("kill", "crash")),
        ("driver", "actors.graph:Graph._rewards", ("raise",)),
    ):
        result += [Fault("rlhf", role, kind, at, 2) for kind in kinds]
    result += [
        Fault("evaluate", "generator", kind, "actors.generator:Generator.generate") for kind in ("kill", "raise")
    ]
    result += [Fault("serve", "server", "kill"), Fault("serve", "engine", "kill"), Fault("serve", "engine", "stop")]
    result += [
        Fault("corpus", "task", "disk", AT_WORK["corpus"]),
        Fault("pretrain", "rank", "disk", AT_WORK["pretrain"], 4),
    ]
    result += [Fault("shards", "", "port")]
    result += [Fault(stage, "", kind) for stage in ("pretrain", "reward", "rlhf") for kind in WANDB_KINDS]
    result += [Fault(stage, "server" if stage == "serve" else "", "term", AT_WORK[stage]) for stage in STAGES]
    return result


# One run with a fault.


@dataclass
class Run:
    """A running driver, its output by time, and its processes."""

    folder: Path
    mark: str
    process: subprocess.Popen[str]
    started_s: float = field(default_factory=time.time)
    lines: list[tuple[float, str]] = field(default_factory=list)
    known: set[psutil.Process] = field(default_factory=set)
    terminated_s: float | None = None
    """When the driver was sent SIGTERM."""

    @property
    def text(self) -> str:
        return "".join(line for _, line in self.lines)

    def others(self) -> list[psutil.Process]:
        """Everything that the driver has started and that still runs.

        Some processes overwrite their environment with their title, so children of a marked process are remembered.
        """
        for one in psutil.process_iter(["environ"]):
            if (one.info["environ"] or {}).get(MARK) == self.mark:
                with suppress(psutil.Error):
                    self.known |= {one, *one.children(recursive=True)}
        return [one for one in self.known if one.is_running() and one.pid != self.process.pid]

    def kill_remaining(self) -> list[int]:
        """Kill the processes that still run a second after the driver's end; their ids."""
        time.sleep(1.0)
        remaining = self.others()
        for one in remaining:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        return [one.pid for one in remaining]

    def find_pid(self, role: str) -> int | None:
        """The process id of the run's first monitored process of a role; None while there is none."""
        pids = {one.pid for one in self.others()}
        for file in sorted(RAY_FOLDER.glob("session_*/raymill-watch-*/*.json")):
            with suppress(OSError, ValueError):
                process = json.loads(file.read_text())["process"]
                if process["role"] == role and process["pid"] in pids:
                    return process["pid"]
        return None


@dataclass(frozen=True)
class Outcome:
    """The result of a run with a fault."""

    fault: Fault
    report_s: float | None
    """Seconds from the fault to the line that reports it; None where none did, or wrongly."""
    line: str
    ended: str
    """`143 after 4.0 s`, and the ids of remaining processes."""
    is_right: bool


def start(folder: Path, store: Path | str, fault: Fault, planted: Path, environment: Mapping[str, str]) -> Run:
    """Start the driver of one stage in a store that has the stage's inputs."""
    mark = f"{fault.name}-{time.time_ns()}"
    command = [sys.executable, "-m", "jobs.cli", "run", fault.stage, str(folder / f"{fault.stage}.yaml")]
    command += [*fault.overrides, "--store", str(store)]
    driver_environment = {
        **os.environ,
        "WANDB_MODE": "disabled",
        MARK: mark,
        "PYTHONPATH": f"{PLANTING}:{ROOT}",
        **environment,
    }
    if fault.at:
        module, _, function = fault.at.partition(":")
        driver_environment["RAYMILL_FAULT"] = json.dumps(
            {
                "module": module,
                "function": function,
                "call": fault.call,
                "kind": fault.kind,
                "planted": str(planted),
                "disk": str(store),
            }
        )
    process = subprocess.Popen(
        command, env=driver_environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=folder
    )
    run = Run(folder, mark, process)

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            run.lines.append((time.time(), line))

    threading.Thread(target=read, daemon=True).start()
    return run


Sign = Callable[[Run], float | None]
"""The time at which a fault that exists from the start took effect, by other signs than its report; None before."""


def stage_began(run: Run) -> float | None:
    """The time at which the only stage of a run began; None before."""
    return next((at for at, line in run.lines if re.search(r" \[1/1\] \S+$", line.rstrip())), None)


FROM_OUTSIDE = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "term": signal.SIGTERM}


def wait_until_planted(run: Run, fault: Fault, planted: Path, sign: Sign) -> float:
    """Wait for the fault; the time at which it happened.

    Raises RuntimeError when the run ended before, or the fault did not happen in time.
    """
    deadline = time.time() + START_LIMIT_S
    while time.time() < deadline:
        if fault.at and planted.exists() and (text := planted.read_text()):
            return float(text) + (3.0 if fault.kind == "memory" else 0.0)
        if not fault.at and fault.kind in FROM_OUTSIDE and (pid := run.find_pid(fault.role)):
            time.sleep(0.3)
            if fault.kind != "term":  # `plant` sends that to the driver
                os.kill(pid, FROM_OUTSIDE[fault.kind])
            return time.time()
        if not fault.at and fault.kind not in FROM_OUTSIDE and (at := sign(run)) is not None:
            return at
        if run.process.poll() is not None:
            raise RuntimeError(f"the run ended before its fault:\n{run.text[-3000:]}")
        time.sleep(0.05)
    raise RuntimeError(f"the fault did not happen within {START_LIMIT_S:.0f} s:\n{run.text[-3000:]}")


def pattern_of(fault: Fault) -> str:
    """The regular expression of a line that reports the fault."""
    if fault.kind in WANDB_KINDS:
        return rf"W&B failed \((?:{CAUSES[fault.kind]}).*\); {fault.stage} continues without it"
    if fault.kind == "port":
        return PORT
    if fault.kind == "term":
        return rf"raymill: stopped by SIGTERM; the same command resumes from here: {fault.stage} "
    process = "the driver" if fault.role == "driver" else rf"{fault.role} \d+ on node \S+ \(pid \d+\)"
    if fault.role == "engine" and fault.kind == "kill":
        process = r"server 0 on node \S+ \(pid \d+\) failed: its engine \(pid \d+\)"
    between = ".*" if fault.kind == "disk" else " "
    return rf"{fault.stage}: {process}{between}{CAUSES[fault.kind]}"


def end(run: Run, fault: Fault) -> tuple[str, bool]:
    """End a run, by SIGTERM unless it ends by itself; how it ended, and whether that is right."""
    run.others()
    has_last_words = any(said.startswith("raymill: ") for _, said in run.lines)
    if run.terminated_s is None and (fault.is_final or has_last_words):
        with suppress(subprocess.TimeoutExpired):
            run.process.wait(END_LIMIT_S if has_last_words else REPORT_LIMIT_S)
    was_over = run.terminated_s is None and run.process.poll() is not None
    began = run.terminated_s or time.time()
    if not was_over and run.terminated_s is None:
        run.process.send_signal(signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        run.process.wait(60)
    took_s = time.time() - began
    remaining = run.kill_remaining()
    code = run.process.returncode
    ends_well = (
        (code == fault.code and fault.kind != "stop")
        if was_over
        else took_s <= END_LIMIT_S and code == 143 and not fault.is_final
    )
    names = f", remaining: {remaining}" if remaining else ""
    return (f"{code} by itself" if was_over else f"{code} after {took_s:.1f} s") + names, ends_well and not remaining


def finish(run: Run, store: Path, stage: str) -> tuple[str, bool]:
    """Let a run end by itself despite a failing W&B; its metrics in the artifact, and whether they are complete."""
    with suppress(subprocess.TimeoutExpired):
        run.process.wait(START_LIMIT_S)
    remaining = run.kill_remaining()
    (artifact,) = store.glob(f"{stage}-*")
    logged = [json.loads(line)["step"] for line in (artifact / "metrics.jsonl").read_text().splitlines()]
    num_warnings = run.text.count("W&B failed (")
    with wandb_server.serving() as server:
        files = [str(path) for path in artifact.glob("wandb/offline-run-*")]
        command = [str(Path(sys.executable).with_name("wandb")), "sync", *files]
        environment = {**os.environ, "WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY}
        subprocess.run(command, env=environment, capture_output=True, timeout=200)
        synced = [server.steps(run_id) for run_id in server.history]
    is_right = run.process.returncode == 0 and not remaining and num_warnings == 1 and synced == [logged]
    num_synced = len(synced[0]) if synced else 0
    return f"{run.process.returncode}, {num_warnings} warning, {num_synced} of {len(logged)} steps synced", is_right


def plant(world: Path, fault: Fault, scratch: Path) -> Outcome:
    """Run the stage with the fault, in a copy of the store without the stage's artifact."""
    planted = scratch / "planted"
    with surroundings(fault, scratch) as (store, environment, sign):
        if isinstance(store, Path):
            copy_store(world / "store", store, without=fault.stage)
        run = start(world, store, fault, planted, environment)
        report_s, line = None, ""
        try:
            happened = wait_until_planted(run, fault, planted, sign)
            if fault.kind == "term":
                run.process.send_signal(signal.SIGTERM)
                run.terminated_s = happened = time.time()
            report_s, line = first_line(run, fault, happened)
        finally:
            if fault.kind in WANDB_KINDS and report_s is not None and isinstance(store, Path):
                ended, ends_well = finish(run, store, fault.stage)
            else:
                ended, ends_well = end(run, fault)
    guesses = [one for one in ("potential root cause", "common causes") if one in run.text]
    first = next((said for _, said in run.lines if said.startswith("raymill: ") or "Traceback" in said), "")
    is_right = (
        report_s is not None and report_s <= REPORT_LIMIT_S and ends_well and not guesses and "Traceback" not in first
    )
    if not is_right:
        (Path(tempfile.gettempdir()) / f"raymill-fault-{fault.name.replace(':', '-')}.log").write_text(run.text)
    return Outcome(fault, report_s, line, ended, is_right)


def first_line(run: Run, fault: Fault, happened: float) -> tuple[float | None, str]:
    """Seconds from the fault to the first line that reports it, and the line; None without one."""
    pattern = re.compile(pattern_of(fault))
    while time.time() - happened <= REPORT_LIMIT_S + 1:
        for at, said in list(run.lines):
            if pattern.search(said):
                return max(0.0, at - happened), said.strip()
        time.sleep(0.1)
    return None, ""


@contextmanager
def surroundings(fault: Fault, scratch: Path) -> Iterator[tuple[Path | str, dict[str, str], Sign]]:
    """The store and environment of a fault, and the sign that it took effect."""
    store, online = scratch / "store", {"WANDB_MODE": "online", "WANDB_API_KEY": KEY}
    if fault.kind == "disk":
        with small_disk(scratch, "400m") as disk:  # more than a store must have free; it is filled at work
            yield disk, {}, stage_began
    elif fault.kind == "port":
        keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
        yield "s3://nowhere/store", {"AWS_ENDPOINT_URL": CLOSED_URL, **keys}, lambda run: run.started_s
    elif fault.kind == "wandb-unreachable":
        yield store, {**online, "WANDB_BASE_URL": CLOSED_URL}, stage_began
    elif fault.kind in WANDB_KINDS:
        with ExitStack() as stack:
            server = stack.enter_context(wandb_server.serving("unauthorized" if fault.kind == "wandb-401" else "good"))
            environment = {**online, "WANDB_BASE_URL": server.url}
            if fault.kind == "wandb-401":
                yield store, environment, lambda run: server.refused_s
            else:
                disk = stack.enter_context(small_disk(scratch, "16k"))
                environment["WANDB_DIR"] = str(disk)
                yield store, environment, lambda run: time.time() if shutil.disk_usage(disk).free <= 4096 else None
    else:
        yield store, {}, stage_began


@contextmanager
def small_disk(scratch: Path, size: str) -> Iterator[Path]:
    """A file system in memory that is full at `size`."""
    disk = scratch / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(disk)], check=True)
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def can_mount() -> bool:
    """Whether this process may mount a small disk."""
    with tempfile.TemporaryDirectory() as folder:
        mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", folder], capture_output=True)
        if mount.returncode:
            return False
        subprocess.run(["umount", folder], check=True)
    return True


def can_group() -> bool:
    """Whether this process may make a memory control group."""
    try:
        group: Path = memory_group() / f"raymill-probe-{os.getpid()}"
        group.mkdir()
        group.rmdir()
    except OSError:
        return False
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", help="stages, or faults as stage:process:kind")
    parser.add_argument("--list", action="store_true", help="print the faults and end")
    parser.add_argument("--world", help="keep the undisturbed pipeline here and use it again")
    options = parser.parse_args()
    known = {name for one in faults() for name in (one.name, one.stage)}
    if unknown := set(options.only or ()) - known:
        parser.error(f"--only: there is no {', '.join(sorted(unknown))}; --list names all")
    chosen = [one for one in faults() if not options.only or {one.name, one.stage} & set(options.only)]
    if options.list:
        print("\n".join(one.name for one in chosen))
        return 0
    possible: dict[str, Callable[[], bool]] = {"disk": can_mount, "wandb-disk": can_mount, "memory": can_group}
    allowed = {kind: is_possible() for kind, is_possible in possible.items()}
    with tempfile.TemporaryDirectory(prefix="raymill-faults-") as scratch:
        world = Path(options.world or f"{scratch}/world")
        prepare(world)
        missed = 0
        for fault in chosen:
            if not allowed.get(fault.kind, True):
                print(f"{fault.name:<28} skipped: this machine does not allow it", flush=True)
                continue
            folder = Path(tempfile.mkdtemp(dir=scratch))
            try:
                outcome = plant(world, fault, folder)
            except RuntimeError as error:
                missed += 1
                print(f"{fault.name:<28} MISSED  {error}", flush=True)
                continue
            missed += not outcome.is_right
            report = "not reported" if outcome.report_s is None else f"reported after {outcome.report_s:4.1f} s"
            verdict = "right " if outcome.is_right else "MISSED"
            print(f"{fault.name:<28} {verdict}  {report:<22} {outcome.ended:<20} {outcome.line[:200]}", flush=True)
            shutil.rmtree(folder, ignore_errors=True)
    print(f"{len(chosen) - missed} of {len(chosen)} right or skipped")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
