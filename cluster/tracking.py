"""Metrics of a run: a local log beside the artifact always, and W&B.

The only file that imports wandb.
"""

import json
import logging
import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import IO, Any

from cluster.storage import Storage

METRICS_LOG = "metrics.jsonl"
_UPLOAD_INTERVAL_S = 15.0
_TAIL_BYTES = 1 << 16

log = logging.getLogger(__name__)


def wandb_mode() -> str:
    """`WANDB_MODE` when set; else online with a key and offline without one."""
    chosen = os.environ.get("WANDB_MODE")
    if chosen:
        return chosen
    return "online" if os.environ.get("WANDB_API_KEY") else "offline"


@dataclass
class Tracker:
    """One run's metrics. Picklable until it is first used; only one process of a run logs.

    `metrics.jsonl` in `storage` is the truth: one object a line with `step`, `time` and the metrics, kept in
    step order over kills and resumes. Keys read `area/quantity`.
    """

    storage: Storage
    run_id: str
    """Deterministic (the artifact's id), so that a resumed run continues the same W&B run."""
    name: str
    group: str
    config: Mapping[str, Any] = field(default_factory=dict)
    wandb_dir: str | None = None
    _file: IO[str] | None = field(default=None, repr=False)
    _wandb: Any = field(default=None, repr=False)
    _uploaded_s: float = field(default=0.0, repr=False)

    def resume(self, step: int) -> None:
        """Forget what was logged after `step`: those steps will be done again."""
        self._close_file()
        kept = [line for line in read_lines(self.storage) if json.loads(line)["step"] <= step]
        self.storage.write_bytes(METRICS_LOG, "".join(line + "\n" for line in kept).encode())

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append the metrics of one step (an optimizer step, or whatever the stage counts)."""
        line = {"step": step, "time": round(time.time(), 3)}
        line |= {key: float(value) for key, value in metrics.items()}
        self._log_file().write(json.dumps(line) + "\n")
        self._log_file().flush()
        self._upload(force=False)
        if self._wandb_run() is not None:
            # Steps are our own metric: W&B drops what is logged under a step it has seen, as a resume does.
            self._wandb_run().log({**metrics, "step": step})

    def flush(self) -> None:
        """Make all that was logged safe from a kill: on an object store the log is put there only now and then."""
        self._upload(force=True)

    def close(self) -> None:
        """Flush everything; the tracker opens again when something more is logged."""
        self.flush()
        self._close_file()
        if self._wandb not in (None, False):
            self._wandb.finish()
            self._wandb = None

    def _log_file(self) -> IO[str]:
        if self._file is None:
            if self.storage.is_local:
                os.makedirs(self.storage.root, exist_ok=True)
                self._file = open(self.storage.path(METRICS_LOG), "a+")  # noqa: SIM115 - held over many calls
                whole = sum(len(line.encode()) + 1 for line in read_lines(self.storage))
                self._file.truncate(whole)  # a line torn by a kill would spoil the one after it
            else:  # object stores cannot append: a local copy is put there now and then
                self._file = tempfile.NamedTemporaryFile("w+", suffix=".jsonl")  # noqa: SIM115
                self._file.write("".join(line + "\n" for line in read_lines(self.storage)))
        return self._file

    def _upload(self, *, force: bool) -> None:
        if self.storage.is_local or self._file is None:
            return
        if force or time.monotonic() - self._uploaded_s > _UPLOAD_INTERVAL_S:
            self._file.flush()
            self._file.seek(0)
            self.storage.write_bytes(METRICS_LOG, self._file.read().encode())
            self._uploaded_s = time.monotonic()

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _wandb_run(self) -> Any:
        if self._wandb is None:
            self._wandb = self._start_wandb() if wandb_mode() != "disabled" else False
        return self._wandb or None

    def _start_wandb(self) -> Any:
        import wandb  # late: half a second of import that a run without W&B need not pay

        os.environ.setdefault("WANDB_DISABLE_WEAVE", "true")  # or it advertises itself wherever openai is imported
        directory = self.wandb_dir or tempfile.mkdtemp(prefix="raymill-wandb-")
        os.makedirs(directory, exist_ok=True)
        run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "raymill"),
            id=self.run_id,
            name=self.name,
            group=self.group,
            config=dict(self.config),
            dir=directory,
            mode=wandb_mode(),  # pyright: ignore[reportArgumentType]
            resume="allow" if wandb_mode() == "online" else None,
            settings=wandb.Settings(
                silent=True, console="off", save_code=False, disable_git=True, x_disable_stats=True
            ),
        )
        run.define_metric("step")
        run.define_metric("*", step_metric="step")
        return run


def read_lines(storage: Storage) -> list[str]:
    """The whole lines of a metrics log; a last line torn by a kill is left out."""
    if not storage.exists(METRICS_LOG):
        return []
    text = storage.read_bytes(METRICS_LOG).decode()
    return text[: text.rfind("\n") + 1].splitlines()


def read_metrics(storage: Storage) -> list[dict[str, float]]:
    """Every step that was logged, in order."""
    return [json.loads(line) for line in read_lines(storage)]


def last_metrics(storage: Storage) -> dict[str, float]:
    """The newest step that was logged; empty where there is none. Reads the end of the log only."""
    if not storage.exists(METRICS_LOG):
        return {}
    lines = storage.read_bytes(METRICS_LOG, -_TAIL_BYTES).decode(errors="replace").split("\n")
    return json.loads(lines[-2]) if len(lines) > 1 and lines[-2].startswith("{") else {}
