"""Reads metrics.jsonl, the log of a stage's metrics.

Each line is a JSON object with metrics of one step. Its keys are the names of the metrics, `step`, and `time` (the
Unix time at which the line was logged). A step may have several lines, such as one for the training and one for the
validation.
"""

import json

from cluster.storage import Storage

METRICS_LOG = "metrics.jsonl"
_TAIL_BYTES = 1 << 16
"""`last_step_metrics` reads this many bytes at the end of the log, which is many times the length of a line."""


def read_lines(storage: Storage) -> list[str]:
    """The complete lines of a metrics log. Empty if the log does not exist.

    A last line without a line break is left out, because a process that was killed has written only a part of it.
    """
    if not storage.exists(METRICS_LOG):
        return []
    text = storage.read_bytes(METRICS_LOG).decode()
    return text[: text.rfind("\n") + 1].splitlines()


def read_metrics(storage: Storage) -> list[dict[str, float]]:
    """The metrics in each line, in the order of the log."""
    return [json.loads(line) for line in read_lines(storage)]


def latest_values(storage: Storage) -> dict[str, float]:
    """The last logged value of each metric, by name, with the last `step` and `time`.

    Not every line has all metrics.
    """
    values: dict[str, float] = {}
    for metrics in read_metrics(storage):
        values |= metrics
    return values


def last_step_metrics(storage: Storage) -> dict[str, float]:
    """The metrics in the last complete line, or an empty dict if there is none. Reads only the end of the log."""
    if not storage.exists(METRICS_LOG):
        return {}
    lines = storage.read_bytes(METRICS_LOG, -_TAIL_BYTES).decode(errors="replace").split("\n")
    return json.loads(lines[-2]) if len(lines) > 1 and lines[-2].startswith("{") else {}
