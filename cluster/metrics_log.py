"""Reads metrics.jsonl, the log of a stage's metrics: one JSON object per step."""

import json

from cluster.storage import Storage

METRICS_LOG = "metrics.jsonl"
_TAIL_BYTES = 1 << 16


def read_lines(storage: Storage) -> list[str]:
    """The complete lines of a metrics log; a last line that a kill cut off is left out."""
    if not storage.exists(METRICS_LOG):
        return []
    text = storage.read_bytes(METRICS_LOG).decode()
    return text[: text.rfind("\n") + 1].splitlines()


def read_metrics(storage: Storage) -> list[dict[str, float]]:
    """The metrics of every logged step, in order."""
    return [json.loads(line) for line in read_lines(storage)]


def latest_values(storage: Storage) -> dict[str, float]:
    """The last logged value of every metric, and the last `step`."""
    values: dict[str, float] = {}
    for line in read_metrics(storage):
        values |= line
    return values


def last_step_metrics(storage: Storage) -> dict[str, float]:
    """The metrics of the last logged step; empty without one. Reads only the end of the log."""
    if not storage.exists(METRICS_LOG):
        return {}
    lines = storage.read_bytes(METRICS_LOG, -_TAIL_BYTES).decode(errors="replace").split("\n")
    return json.loads(lines[-2]) if len(lines) > 1 and lines[-2].startswith("{") else {}
