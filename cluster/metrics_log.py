"""metrics.jsonl: what a stage logged, one line a step."""

import json

from cluster.storage import Storage

METRICS_LOG = "metrics.jsonl"
_TAIL_BYTES = 1 << 16


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
