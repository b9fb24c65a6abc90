"""requirements/say.py: what the Makefile starts says that it goes on, and a failure of pip is told whole."""

import subprocess
import sys
from pathlib import Path

import pytest

SAY = Path(__file__).parent.parent / "requirements" / "say.py"


def said(*arguments: str, interval_s: float = 0.3) -> subprocess.CompletedProcess[str]:
    script = (
        f"import sys; sys.path.insert(0, {str(SAY.parent)!r}); import say; say.INTERVAL_S = {interval_s}; "
        "sys.exit(say.main())"
    )
    return subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True)


def fake_pip(tmp_path: Path, script: str) -> list[str]:
    (tmp_path / "pip.py").write_text(script)
    return [sys.executable, str(tmp_path / "pip.py")]


def test_a_silent_command_is_said_to_go_on_and_its_output_and_code_are_its_own():
    done = said("linting", sys.executable, "-c", "import time; time.sleep(2); print('found'); raise SystemExit(3)")
    assert done.returncode == 3
    assert done.stdout == "found\n"
    assert done.stderr.count("linting (") >= 2


def test_pip_is_counted_and_its_noise_left_out(tmp_path: Path):
    (tmp_path / "some.lock").write_text("# two\na==1 --hash=sha256:0\nb==2 --hash=sha256:0\n")
    pip = fake_pip(
        tmp_path,
        "import time\n"
        "for name in 'ab':\n"
        "    print(\"WARNING: Location 'x' is ignored: it is either a non-existing path or lacks a scheme.\")\n"
        "    print('Collecting', name + '==1', flush=True)\n"
        "    time.sleep(1)\n"
        "print('Installing collected packages: a, b', flush=True)\n"
        "time.sleep(1)\n",
    )
    done = said("--pip", "installing", *pip, "-r", str(tmp_path / "some.lock"))
    assert done.returncode == 0
    assert "ignored" not in done.stderr
    assert "fetching a==1, 1 of 2 packages" in done.stderr and "of 2 packages unpacked" in done.stderr


@pytest.mark.parametrize(
    "complaint", ["ERROR: No matching distribution found for torch", "error: externally-managed-environment", "Killed"]
)
def test_why_pip_failed_is_told_once_after_the_last_attempt(tmp_path: Path, complaint: str):
    pip = fake_pip(tmp_path, f"print({complaint!r})\nraise SystemExit(1)\n")
    done = said("--pip", "--else=--extra-index-url x", "installing", *pip)
    assert done.returncode == 1
    assert done.stderr.count(complaint) == 1
    assert "once more with --extra-index-url x" in done.stderr


def test_what_the_second_index_has_is_no_error(tmp_path: Path):
    pip = fake_pip(
        tmp_path, "import sys\nif '--more' not in sys.argv:\n    print('ERROR: no torch')\n    raise SystemExit(1)\n"
    )
    done = said("--pip", "--else=--more", "installing", *pip)
    assert done.returncode == 0
    assert "ERROR" not in done.stderr
