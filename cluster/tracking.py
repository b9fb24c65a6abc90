"""Logs the metrics of a run to a file in its output. `cluster.wandb_mirror` copies this log to W&B."""

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
    """Writes the metrics of a run to the log `metrics.jsonl` in `storage`.

    Each line of the log is a JSON object with `step`, `time` and the metrics. Steps never decrease from line to line,
    also when the run was killed and resumed (`resume`). Metric keys have the form `area/quantity`. Only one process may
    write the log. The tracker can be pickled while its log is not open.
    """

    storage: Storage
    """The output of the run."""
    run_id: str
    """Id of the W&B run. It is made from the id of the artifact, so that a resumed run continues the same W&B run."""
    name: str
    """Name of the W&B run."""
    group: str
    """Group of the W&B run: all stages of a pipeline are in the same group."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """The config that W&B shows for the run."""
    _file: IO[str] | None = field(default=None, repr=False)
    """The open log, or an open local copy of a log on an object store. None while the log is not open."""
    _uploaded_s: float = field(default=0.0, repr=False)
    """When the local copy was last uploaded."""

    def resume(self, step: int) -> None:
        """Remove the log lines of the steps after `step`, because a resumed run repeats these steps."""
        self._close_file()
        kept_lines = [line for line in read_lines(self.storage) if json.loads(line)["step"] <= step]
        self.storage.write_bytes(METRICS_LOG, "".join(line + "\n" for line in kept_lines).encode())

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append the metrics of one step: a training step, or any other unit that the stage counts."""
        line = {"step": step, "time": round(time.time(), 3)}
        line |= {key: float(value) for key, value in metrics.items()}
        self._log_file().write(json.dumps(line) + "\n")
        self._log_file().flush()
        self._upload(force=False)

    def flush(self) -> None:
        """Upload the log if it is on an object store, so that a kill loses no lines.

        `log` uploads it only every 15 s.
        """
        self._upload(force=True)

    def close(self) -> None:
        """Flush and close the log. A later call of `log` opens it again."""
        self.flush()
        self._close_file()

    def _log_file(self) -> IO[str]:
        if self._file is None:
            if self.storage.is_local:
                os.makedirs(self.storage.root, exist_ok=True)
                self._file = open(self.storage.path(METRICS_LOG), "a+")  # noqa: SIM115 - kept open between calls
                complete_bytes = sum(len(line.encode()) + 1 for line in read_lines(self.storage))
                self._file.truncate(complete_bytes)  # removes a last line that was cut off by a kill
            else:  # object stores cannot append, so a local file is uploaded repeatedly
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
