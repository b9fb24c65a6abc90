"""User-provided code is read with the modules that it imports from its folder, and runs without its files."""

import uuid
from pathlib import Path

import fsspec
import pytest

from cluster.user_program import Program, load_function
from jobs.frame.sibling_modules import read_siblings
from jobs.frame.user_code import read_verifier_program, reject_file_lookups

FILES = {
    "checks/verifier.py": """
import json
import words
from scoring import parts as p
from scoring.rules import *
from bare.inner import half

def score(prompt, response, record):
    import late  # only when it is called
    return words.count(response) + p.bonus() + weight() + half(late.two())
""",
    "checks/words.py": "import model\n\ndef count(text):\n    return model.DOUBLE * len(text.split())\n",
    "checks/model.py": "DOUBLE = 2  # the name of one of our own packages\n",
    "checks/scoring/__init__.py": "LIMIT = 5\n",
    "checks/scoring/parts.py": "from . import LIMIT\nfrom .deep.down import ten\ndef bonus(): return LIMIT + ten()\n",
    "checks/scoring/deep/__init__.py": "",
    "checks/scoring/deep/down.py": "def ten():\n    return 10\n",
    "checks/scoring/rules.py": (
        "from dataclasses import dataclass\n__all__ = ['weight']\n\n@dataclass\nclass Rule:\n    weight: int = 100\n\n"
        "def weight():\n    return Rule().weight\n"
    ),
    "checks/scoring/unused.py": "import nothing_of_this_name\n",
    "checks/bare/inner.py": "def half(n):\n    return n / 2\n",
    "checks/late.py": "def two():\n    return 2\n",
    "checks/other.py": "",
}
SHIPPED = [
    "bare/inner.py",
    "late.py",
    "model.py",
    "scoring/__init__.py",
    "scoring/deep/__init__.py",
    "scoring/deep/down.py",
    "scoring/parts.py",
    "scoring/rules.py",
    "words.py",
]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, FILES)
    return tmp_path


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def test_only_the_modules_that_a_program_imports_are_read_with_it(project: Path) -> None:
    assert list(read_siblings("checks/verifier.py")) == SHIPPED
    assert list(read_siblings(f"{project}/checks/verifier.py")) == SHIPPED


def test_a_program_runs_from_its_text_without_its_files(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = read_verifier_program("checks/verifier.py:score")
    for name in FILES:
        (project / name).unlink()
    first = load_function(program)
    assert first("", "three words here", {}) == 2 * 3 + 5 + 10 + 100 + 1

    # Two programs may import different modules of the same name.
    write(
        project, {"more/verifier.py": "import words\ndef score(p, r, x): return words.N\n", "more/words.py": "N = 7\n"}
    )
    assert load_function(read_verifier_program("more/verifier.py:score"))("", "", {}) == 7
    assert first("", "three words here", {}) == 122


def test_the_modules_of_a_program_at_a_url_are_read(project: Path) -> None:
    folder = f"memory://programs-{uuid.uuid4().hex[:8]}"
    for path, text in FILES.items():
        fsspec.filesystem("memory").pipe_file(f"{folder}/{path}", text.encode())
    assert list(read_siblings(f"{folder}/checks/verifier.py")) == SHIPPED
    assert load_function(read_verifier_program(f"{folder}/checks/verifier.py:score"))("", "one", {}) == 118


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "import nowhere_to_be_found",
            r"imports 'nowhere_to_be_found', which is neither in the folder of the file nor installed",
        ),
        ("from words import count\nimport scoring.missing", r"imports 'scoring.missing', which is neither"),
        (
            "def f():\n    from elsewhere_in_the_project import x",
            r"'elsewhere_in_the_project', which is neither",
        ),
        (
            "from . import words",
            r"line 1: this relative import leaves the folder of the file; write the name of the module",
        ),
        ("import broken", r"broken.py cannot be read as a Python file"),
    ],
)
def test_a_module_that_could_not_be_imported_on_the_cluster_is_rejected(
    project: Path, monkeypatch: pytest.MonkeyPatch, source: str, message: str
) -> None:
    # `python -m` adds the working directory to the path. Its modules can be imported here, but they are not shipped.
    monkeypatch.syspath_prepend(project)
    write(project, {"elsewhere_in_the_project.py": "x = 1\n", "checks/broken.py": "def\n", "checks/it.py": source})
    with pytest.raises(ValueError, match=message):
        read_siblings("checks/it.py")


@pytest.mark.parametrize(
    "source",
    [
        "try:\n    import ujson_of_no_use as json\nexcept ImportError:\n    import json\n",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import types_of_nowhere\n",
        "import numpy.linalg\nfrom importlib import metadata\nfrom model.metrics import perplexity\n",
    ],
)
def test_optional_and_installed_modules_are_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, {"it.py": source})
    assert read_siblings("it.py") == {}
    load_function(Program(source + "def f(p, r, x): ...\n", "it.py", "f"))


@pytest.mark.parametrize(
    ("parameters", "is_accepted"),
    [
        ("prompt, completion, record", True),
        ("prompt, completion, record, strict=False", True),
        ("prompt, *others, strict=False", True),
        ("prompt, completion", False),
        ("prompt, completion, record, strict, *others", False),
        ("prompt, completion, record, *, strict", False),
        ("prompt, completion, record, truncated", True),
        ("prompt, completion, record, *, truncated", True),
        ("prompt, *others, truncated", True),
        ("prompt, completion, record, truncated=False, strict=True", True),
        ("prompt, completion, record, strict, truncated", False),
        ("prompt, completion, truncated", False),
        ("prompt, completion, record, truncated, /", False),
    ],
)
def test_a_verifier_must_accept_exactly_three_arguments(project: Path, parameters: str, is_accepted: bool) -> None:
    (project / "it.py").write_text(f"def score({parameters}): ...\n")
    if is_accepted:
        read_verifier_program("it.py:score")
    else:
        with pytest.raises(ValueError, match=r"must accept the parameters \(prompt, completion, record\)"):
            read_verifier_program("it.py:score")


def test_a_program_that_uses_its_file_name_is_not_shipped(project: Path) -> None:
    reject_file_lookups("checks/verifier.py")
    (project / "checks/words.py").write_text(
        "from pathlib import Path\n\nWORDS = Path(__file__).parent / 'words.txt'\n"
    )
    with pytest.raises(
        ValueError, match=r"checks/words.py: line 3: __file__ leads nowhere .* Keep the program's data in"
    ):
        reject_file_lookups("checks/verifier.py")
    read_verifier_program("checks/verifier.py:score")  # `__file__` is allowed in a program that is not shipped
