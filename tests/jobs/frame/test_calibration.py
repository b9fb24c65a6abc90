"""This machine is calibrated once a week."""

import time
from pathlib import Path

import pytest

from jobs.frame import calibration
from jobs.frame.calibration import calibrate


def test_a_machine_is_calibrated_once_a_week(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = calibrate()
    assert first.step_flops > 1e8 and first.product_flops > 1e8 and 0 < first.python_s < 5
    monkeypatch.setattr(calibration, "_measure", lambda: pytest.fail("measured again"))
    assert calibrate() == first
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 8 * 24 * 3600)
    with pytest.raises(pytest.fail.Exception, match="measured again"):
        calibrate()
