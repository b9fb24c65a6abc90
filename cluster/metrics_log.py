"""Reads metrics.jsonl, the log of a stage's metrics. Each line is the JSON object of one step."""

import json

from cluster.storage import Storage

METRICS_LOG = "metrics.jsonl"
_TAIL_BYTES = 1 << 16
"""`last_step_metrics` reads this many bytes at the end of the log. They are many times the length of a line."""


def read_lines(storage: Storage) -> list[str]:
    """The complete lines of a metrics log.

    Leaves out a last line without an end, which remains when the process is killed while writing.
    """
    if not storage.exists(METRICS_LOG):
        return []
    text = storage.read_bytes(METRICS_LOG).decode()
    return text[: text.rfind("\n") + 1].splitlines()


def read_metrics(storage: Storage) -> list[dict[str, float]]:
    """The metrics of each logged step, in the order of the log."""
    return [json.loads(line) for line in read_lines(storage)]


def latest_values(storage: Storage) -> dict[str, float]:
    """The last logged value of each metric (not all metrics are logged at every step), and the last `step`."""
    values: dict[str, float] = {}
    for metrics in read_metrics(storage):
        values |= metrics
    return values


def last_step_metrics(storage: Storage) -> dict[str, float]:
    """The metrics of the last logged step, or an empty dict if no step is logged. Reads only the end of the log."""
    if not storage.exists(METRICS_LOG):
        return {}
    lines = storage.read_bytes(METRICS_LOG, -_TAIL_BYTES).decode(errors="replace").split("\n")
    return json.loads(lines[-2]) if len(lines) > 1 and lines[-2].startswith("{") else {}
