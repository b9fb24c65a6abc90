"""Logs the metrics of a run to a file in its output. W&B shows a copy of it (`cluster.wandb_mirror`)."""

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
    """Writes the metrics of a run to `metrics.jsonl` in `storage`, from one process; picklable until first used.

    The log has one JSON object per line with `step`, `time` and the metrics, in step order across kills and resumes.
    Metric keys read `area/quantity`.
    """

    storage: Storage
    run_id: str
    """The artifact's id, so that a resumed run continues the same W&B run."""
    name: str
    group: str
    config: Mapping[str, Any] = field(default_factory=dict)
    _file: IO[str] | None = field(default=None, repr=False)
    _uploaded_s: float = field(default=0.0, repr=False)

    def resume(self, step: int) -> None:
        """Remove what was logged after `step`, as those steps will be repeated."""
        self._close_file()
        kept = [line for line in read_lines(self.storage) if json.loads(line)["step"] <= step]
        self.storage.write_bytes(METRICS_LOG, "".join(line + "\n" for line in kept).encode())

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append the metrics of one step (an optimizer step, or whatever else the stage counts)."""
        line = {"step": step, "time": round(time.time(), 3)}
        line |= {key: float(value) for key, value in metrics.items()}
        self._log_file().write(json.dumps(line) + "\n")
        self._log_file().flush()
        self._upload(force=False)

    def flush(self) -> None:
        """Make the log safe from a kill: to an object store it is otherwise uploaded only every few seconds."""
        self._upload(force=True)

    def close(self) -> None:
        """Flush and close the log; logging again reopens it."""
        self.flush()
        self._close_file()

    def _log_file(self) -> IO[str]:
        if self._file is None:
            if self.storage.is_local:
                os.makedirs(self.storage.root, exist_ok=True)
                self._file = open(self.storage.path(METRICS_LOG), "a+")  # noqa: SIM115 - held over many calls
                whole = sum(len(line.encode()) + 1 for line in read_lines(self.storage))
                self._file.truncate(whole)  # a line that a kill cut off would corrupt the next one
            else:  # object stores cannot append: a local copy is uploaded every few seconds
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
