"""Metrics of a run: a log in its output, which is the truth; what W&B shows is a copy (`cluster.wandb_mirror`)."""

import json
import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import IO, Any

from cluster.metrics_log import METRICS_LOG, read_lines
from cluster.storage import Storage

_UPLOAD_INTERVAL_S = 15.0


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
    _file: IO[str] | None = field(default=None, repr=False)
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

    def flush(self) -> None:
        """Make all that was logged safe from a kill: on an object store the log is put there only now and then."""
        self._upload(force=True)

    def close(self) -> None:
        """Flush everything; the tracker opens again when something more is logged."""
        self.flush()
        self._close_file()

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
