"""Only the complete lines of a metrics log are read."""

import json
from pathlib import Path

from cluster.metrics_log import METRICS_LOG, last_step_metrics, read_lines, read_metrics
from cluster.storage import Storage


def test_an_incomplete_last_line_is_left_out(tmp_path: Path):
    line = json.dumps({"step": 1, "time": 0.0, "a": 1.0})
    (tmp_path / METRICS_LOG).write_text(f'{line}\n{{"step": 2, "ti')
    assert read_lines(Storage(str(tmp_path))) == [line]


def test_a_missing_log_has_no_metrics(storage: Storage):
    assert read_metrics(storage) == [] and last_step_metrics(storage) == {}


def test_the_last_step_is_read_from_the_end_of_the_log(storage: Storage):
    lines = b"".join(json.dumps({"step": step, "time": 0.0}).encode() + b"\n" for step in range(20_000))
    storage.write_bytes(METRICS_LOG, lines)
    assert last_step_metrics(storage)["step"] == 19_999
    storage.write_bytes(METRICS_LOG, lines + b'{"step": 20')
    assert last_step_metrics(storage)["step"] == 19_999
