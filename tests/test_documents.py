"""The documents name what exists (commands, options, fields, files, headings), and each command is run or says why not.

A command in a fenced block of console is one line. A block of yaml begins with the name of its config: `# rlhf.yaml`.
"""

import itertools
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jsonschema
import pytest
import yaml

from jobs.cli import parse
from jobs.commands.fields import config_fields, find_config_class
from jobs.frame.stages import STAGES

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("k8s/*.md"), *ROOT.glob("examples/**/*.md")]
)
NAMES = [path.relative_to(ROOT).as_posix() for path in DOCUMENTS]

HERE = "run by this test"
COMMANDS: Mapping[str, str] = {
    # A pattern of whole commands -> the test that runs it (on small configs of its own), or why none does.
    r"raymill fields \S+": HERE,
    r"raymill run pipeline configs/tiny/pipeline.yaml.*": "tests/test_wheel.py",
    r"raymill run corpus examples/.*": "tests/examples/test_corpus.py",
    r"raymill run (corpus corpus.yaml|pretrain|evaluate|compress|serve) .*": "tests/jobs/frame/test_pipeline.py",
    r"raymill run rlhf .* learning.algorithm=.*": "tests/examples/test_rl_algorithm.py",
    r"RAY_DEBUG=legacy raymill run .*": "not run: it waits at a breakpoint; tried by hand",
    r"raymill plan .*": "tests/jobs/test_cli.py",
    r"raymill fields --schema .*": "tests/jobs/commands/test_json_schema.py",
    r"raymill (ls|show|export) .*": "tests/jobs/test_cli.py",
    r"raymill (trace|forget) .*": "tests/jobs/commands/test_forget.py",
    r"raymill serve .*": "tests/jobs/test_serve.py",
    r"raymill (submit|status|logs|stop) .*": "tests/jobs/commands/test_submit.py",
    r"raymill run .* --address auto": "not run: it needs a cluster; tests/jobs/commands/test_submit.py joins one",
    r"raymill manifest .*": "tests/jobs/commands/test_manifest.py",
    r"pip install .*": "not run: it downloads packages for GPUs",
    r"make (env|text|test|lint|demo|bench|lock|schemas)": "not run: it installs, or takes the whole suite or more",
    r".venv/bin/python -m pytest .*": "not run: a test that runs tests; tried by hand",
    r"git worktree add .*|.venv/bin/python benchmarks/.*": "not run: minutes of two pipelines; tried by hand",
    r"python -m telnetlib .*|grep -h RemotePdb .*": "not run: it needs a process at a breakpoint; tried by hand",
    r"py-spy .*": "not run: it needs a process of a run; tried by hand",
    r"wandb sync .*": "not run: it sends to W&B",
    r"curl .*": "not run: it needs a server; tests/jobs/test_serve.py asks one",
}


class Block(NamedTuple):
    """A fenced block of a document."""

    document: str
    language: str
    text: str


def blocks(*languages: str) -> Iterator[Block]:
    for path, name in zip(DOCUMENTS, NAMES, strict=True):
        for language, text in re.findall(r"^ *```(\w+)\n(.*?)^ *```", path.read_text(), re.MULTILINE | re.DOTALL):
            if language in languages:
                yield Block(name, language, text)


def commands() -> list[str]:
    """Every command, without the comment behind it."""
    lines = itertools.chain.from_iterable(block.text.splitlines() for block in blocks("console", "bash"))
    return sorted({re.sub(r"\s+# .*", "", line.strip()) for line in lines if line.strip()})


def inline_code(name: str) -> list[str]:
    """What stands between single backticks, outside of fenced blocks."""
    text = re.sub(r"^ *```.*?^ *```", "", (ROOT / name).read_text(), flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"`([^`\n]+)`", text)


def how(command: str) -> str:
    found = [where for pattern, where in COMMANDS.items() if re.fullmatch(pattern, command)]
    assert found, f"{command!r}: no test runs it and COMMANDS has no reason why"
    return found[-1]


@pytest.mark.parametrize("command", commands())
def test_a_command_is_run_or_says_why_not(command: str):
    where = how(command)
    if where == HERE:
        words = shlex.split(command)
        assert words[0] == "raymill"
        subprocess.run([sys.executable, "-m", "jobs.cli", *words[1:]], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    elif not where.startswith("not run: "):
        assert (ROOT / where).is_file(), f"{where} is gone; name another test of {command!r}"


def test_the_table_has_no_line_without_a_command():
    unused = [pattern for pattern in COMMANDS if not any(re.fullmatch(pattern, command) for command in commands())]
    assert not unused


def raymill_commands() -> list[str]:
    """Every raymill command of the documents with its arguments, in blocks and in sentences."""
    inline = [code for name in NAMES for code in inline_code(name)]
    return sorted({found for text in [*commands(), *inline] for found in re.findall(r"\braymill [a-z-][^>|]*", text)})


@pytest.mark.parametrize("command", raymill_commands())
def test_a_raymill_command_has_these_options_and_overrides(command: str):
    words = [word for word in shlex.split(command)[1:] if word != "…"]
    subcommand = next((word for word in words if not word.startswith("-")), "run")
    try:
        options = parse(words)
    except SystemExit:
        is_name_alone = "…" in command or words in ([subcommand], ["--traceback"])
        with pytest.raises(SystemExit) as end:
            parse([subcommand, "--help"])
        assert is_name_alone and end.value.code == 0, f"{command!r} is not understood"
        return
    for override in getattr(options, "overrides", []):
        field = override.partition("=")[0]
        stage, _, rest = field.partition(".")
        if options.stage != "pipeline":
            assert field in paths_of(options.stage), f"{command!r}: {options.stage} has no field {field}"
        else:
            assert field in paths_of("pipeline") or rest in paths_of(stage), f"{command!r}: no field {field}"


def paths_of(config: str) -> set[str]:
    return {field.path for field in config_fields(find_config_class(config))}


@pytest.mark.parametrize("name", NAMES)
def test_a_dotted_field_is_one_of_a_config(name: str):
    known = set().union(*map(paths_of, [*STAGES, "pipeline"]))
    known |= {f"{stage}.{path}" for stage in STAGES for path in paths_of(stage)}
    tops = {path.partition(".")[0] for path in known}
    for code in inline_code(name):
        field = code.partition("=")[0].partition(":")[0]
        is_field = re.fullmatch(r"[a-z_]+(\.[a-z_]+)+", field) and not re.search(r"\.(yaml|jsonl?|py|md)$", field)
        if is_field and field.partition(".")[0] in tops - {"model"}:  # `model.` may be a module
            assert field in known or field in {f"{top}.NAME" for top in tops}, f"{name}: no config has {field}"


@pytest.mark.parametrize("name", NAMES)
def test_a_file_of_the_project_exists(name: str):
    folders = {path.name for path in ROOT.iterdir() if path.is_dir()}
    for code in inline_code(name):
        for word in code.split():
            path, _, inside = word.strip("(),;").partition(":")
            if "/" not in path or path.partition("/")[0] not in folders or set(path) & set("*<"):
                continue
            assert (ROOT / path).exists(), f"{name}: {path} does not exist"
            if inside.isidentifier():
                assert re.search(rf"\b{inside}\b", (ROOT / path).read_text()), f"{name}: {path} has no {inside}"


@pytest.mark.parametrize("name", NAMES)
def test_a_link_leads_to_a_file_and_a_heading(name: str):
    text = (ROOT / name).read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?:", target):
            continue
        path, _, heading = target.partition("#")
        file = (ROOT / name).parent / path if path else ROOT / name
        assert file.exists(), f"{name}: {target} leads nowhere"
        if heading:
            headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            assert heading in {anchor(one) for one in headings}, f"{name}: {target} names no heading"


def anchor(heading: str) -> str:
    """The name that GitHub gives a heading in a link."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def yaml_blocks() -> list[Block]:
    return [block for block in blocks("yaml") if block.text.startswith("# ") or block.document != "README.md"]


@pytest.mark.parametrize("block", yaml_blocks(), ids=lambda block: f"{block.document}:{block.text.splitlines()[0]}")
def test_a_piece_of_a_config_fits_its_schema(block: Block):
    first = re.fullmatch(r"# (\w+)\.yaml", block.text.splitlines()[0])
    assert first, f"{block.document}: a block of yaml begins with the name of its config, such as `# rlhf.yaml`"
    schema = json.loads((ROOT / "configs" / "schema" / f"{first[1]}.json").read_text())
    del schema["$schema"]
    schema.pop("required", None)  # a piece need not be whole
    values: Any = json.loads(json.dumps(yaml.load(block.text, Loader=yaml.CSafeLoader)))
    assert [error.message for error in jsonschema.Draft202012Validator(schema).iter_errors(values)] == []


def test_a_program_in_a_document_is_the_file_that_it_shows():
    for block in blocks("python"):
        if block.document == "README.md":
            continue
        shown = block.text.strip()
        examples = [path for path in (ROOT / "examples").rglob("*.py") if shown in path.read_text()]
        assert examples, f"{block.document}: no file of examples/ holds {shown.splitlines()[0]!r}"
