"""The arrows between the packages and inside `data/`, held by reading every import."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.frame.stages import STAGES

ROOT = Path(__file__).parent.parent
PACKAGES = ("actors", "cluster", "data", "jobs", "model")

ARROWS = {
    "jobs": {"jobs", "actors", "data", "model", "cluster"},
    "actors": {"actors", "data", "model", "cluster"},
    "data": {"data", "cluster"},
    "cluster": {"cluster"},
    "model": {"model"},
}
"""What each package may import of ours."""

DATA_ARROWS = {
    "document": set[str](),
    "chunk_files": set[str](),
    "words": set[str](),
    "sources": {"document"},
    "cleaning": {"document", "words", "sources"},
    "corpus": {"document", "words", "chunk_files", "sources", "cleaning"},
    "tokens": {"document", "words", "chunk_files"},
    "chats": {"document", "sources", "tokens"},
}
"""What each folder of `data/`, and each file beside them, may import of the others. Cleaning reads evaluation sets, so
it uses the readers."""

ONE_HOME = {
    "omegaconf": {"jobs/frame/config_loader.py"},
    "wandb": {"cluster/wandb_client.py"},
}
"""Libraries that one file each knows."""

VLLM_HOMES = re.compile(r"^(actors/.*|jobs/(serve|evaluate|compress)\.py)$")
NO_RAY = ("model",)


def imports_of(path: Path) -> Iterator[tuple[str, bool]]:
    """(dotted name, whether inside a function) of every import in a file, those for the type checker left out."""
    for_types: set[ast.AST] = set()
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for_types.update(child for statement in node.body for child in ast.walk(statement))
    inside: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            inside.update(child for statement in node.body for child in ast.walk(statement))
    for node in ast.walk(tree):
        if node in for_types:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node in inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; name the package"
            yield str(node.module), node in inside


def files() -> list[str]:
    return sorted(path.relative_to(ROOT).as_posix() for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("name", files())
def test_imports_follow_the_arrows(name: str):
    package = name.partition("/")[0]
    for imported, inside in imports_of(ROOT / name):
        top = imported.partition(".")[0]
        if top in PACKAGES:
            assert top in ARROWS[package], f"{name} imports {imported}: {package} may not use {top}"
        if package == top == "data" and name != "data/__init__.py":
            here, there = (path.split("/")[1].removesuffix(".py") for path in (name, imported.replace(".", "/")))
            assert there in DATA_ARROWS[here] | {here}, f"{name} imports {imported}: data/{here} may not use {there}"
        if package in NO_RAY:
            assert top != "ray", f"{name} imports ray: the model package is read and tested without it"
        if top in ONE_HOME:
            assert name in ONE_HOME[top], f"{name} imports {top}: only {ONE_HOME[top]} may"
        if top == "vllm":
            assert VLLM_HOMES.match(name), f"{name} imports vllm: only where an engine is made"
            assert inside or name == "actors/transfer_engine.py", f"{name} imports vllm at its top: seconds for all"


def test_every_import_of_a_package_is_seen(tmp_path: Path):
    (tmp_path / "a.py").write_text(
        "import ray.train\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import wandb\n"
        "def f():\n    from vllm import LLM\n"
    )
    assert set(imports_of(tmp_path / "a.py")) == {("ray.train", False), ("typing", False), ("vllm", True)}


def test_the_packages_are_those_that_are_installed():
    where = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]
    assert where["include"] == [f"{package}*" for package in PACKAGES] and not where["namespaces"]
    folders = {(ROOT / name).parent for name in files()}
    missing = [str(folder.relative_to(ROOT)) for folder in folders if not (folder / "__init__.py").exists()]
    assert not missing, "a folder without __init__.py is no package, and would be missing from the wheel"
    assert {path.parent.name for path in ROOT.glob("*/__init__.py")} == set(PACKAGES)


def test_every_entry_point_is_a_function_of_ours():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["scripts"], *project["entry-points"].values()]
    for module, _, function in (value.partition(":") for group in groups for value in group.values()):
        tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text())
        assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, (
            f"{module}:{function}"
        )


@pytest.mark.parametrize("name", [name for name in files() if name.endswith("__init__.py")])
def test_a_package_exports_nothing_of_its_own(name: str):
    assert (ROOT / name).read_text() == ""


def test_tests_are_no_packages():
    assert not list((ROOT / "tests").rglob("__init__.py")), "tests/data/__init__.py would shadow our data package"


def test_the_lock_holds_what_pyproject_asks_for():
    lines = (ROOT / "requirements" / "cpu.lock").read_text().splitlines()
    locked = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9-]+==\S+ --hash=sha256:[0-9a-f]{64}", line) for line in locked)
    names = {line.partition("==")[0] for line in locked}
    assert names.isdisjoint({"torchvision", "torchaudio", "torchcodec"})
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = list(project["build-system"]["requires"]) + project["project"]["dependencies"]
    for extra in ("cpu", "dev"):
        wanted += project["project"]["optional-dependencies"][extra]
    missing = {re.split(r"[\[<>=]", want)[0] for want in wanted} - names
    assert not missing, f"not in requirements/cpu.lock: {missing}; run `make lock`"


@pytest.mark.parametrize(
    ("modules", "too_slow"),
    [
        (["jobs.cli"], ["ray", "torch", "pyarrow", "wandb", "transformers"]),
        (
            [f"jobs.{stage}" for stage in STAGES],
            ["torch", "ray", "pandas", "sympy", "nltk", "sklearn", "wandb", "transformers", "vllm"],
        ),
        (["cluster.worker_group", "cluster.trainer"], ["torch"]),
    ],
    ids=["help", "plan", "controller of training"],
)
def test_what_only_work_needs_is_imported_by_work(modules: list[str], too_slow: list[str]):
    code = f"import {', '.join(modules)}, sys; print(*sorted(set({too_slow}) & set(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert answer.stdout.split() == []
