"""House rules that a linter does not know."""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent
MAX_LINES = 60


def test_no_function_is_longer_than_a_screen() -> None:
    too_long = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
        for folder in ("actors", "benchmarks", "cluster", "configs", "data", "examples", "jobs", "model", "tests")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno >= MAX_LINES
    ]
    assert not too_long, f"functions of more than {MAX_LINES} lines: {too_long}"
