"""The benchmark of faults cannot pass by finding nothing to do, or by any line at all."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run_with_faults(program: str) -> str:
    """What a program prints that has imported the benchmark, in a process of its own: it brings a `sitecustomize`."""
    path = f"import sys; sys.path.insert(0, {str(ROOT / 'benchmarks')!r}); import faults"
    return subprocess.run(
        [sys.executable, "-c", f"{path}; {program}"], check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def test_a_name_that_is_no_fault_is_refused() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "faults.py"), "--only", "pretrian", "sft"]
    ended = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    assert ended.returncode == 2 and "--only: there is no pretrian; --list names all" in ended.stderr


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        (
            "shards::port",
            "raymill: store: cannot write to s3://nowhere/store ([Errno 5] EndpointConnectionError: Could not connect "
            'to the endpoint URL: "http://127.0.0.1:9/nowhere/store/.probe-1"); use a '
            "location with write permission and free space",
            "12:00:00 connected; the connection was refused",
        ),
        (
            "pretrain::wandb-401",
            "12:00:00 W&B failed (CommError: Failed to get resume status for run x: returned error 401: {}); pretrain "
            "continues without it. All metrics",
            "12:00:00 W&B failed (its client process ended unexpectedly); pretrain continues without it. All metrics",
        ),
        (
            "pretrain::wandb-disk",
            "W&B failed (Error: Error initializing run: write /d/run-x1.wandb.syncstate: no space left on device); "
            "pretrain continues without it.",
            "W&B failed (Error: no space left on device); reward continues without it.",
        ),
        (
            "rlhf::term",
            "raymill: stopped by SIGTERM; the same command resumes from here: rlhf resumes from step 3 of 4",
            "raymill: stopped by SIGTERM; the same command resumes from here",
        ),
    ],
)
def test_only_a_line_that_names_stage_and_cause_tells_a_fault(name: str, right: str, wrong: str) -> None:
    find = f"next(faults.pattern_of(one) for one in faults.faults() if one.name == {name!r})"
    pattern = run_with_faults(f"print({find}, end='')")
    assert re.search(pattern, right) and not re.search(pattern, wrong)


def test_every_place_where_a_fault_is_planted_exists() -> None:
    """A function that moves must move here too; a fault at no function would wait for ever."""
    for place in set(run_with_faults("print(*(one.at for one in faults.faults()))").split()):
        module, _, function = place.partition(":")
        tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text())
        names = {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
        assert set(function.split(".")) <= names, place
