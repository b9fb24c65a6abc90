"""`raymill fields` prints of every field what a user needs to set it."""

import dataclasses
import subprocess
import sys
import typing
from dataclasses import dataclass, field
from typing import Literal

import pytest

from jobs.commands.fields import Field, config_named, describe, fields_of, nested
from jobs.frame.field_docs import class_doc, field_docs
from jobs.frame.fields import input_artifact, source_files, user_function
from jobs.frame.stages import STAGES


@dataclass(frozen=True, kw_only=True)
class Base:
    seed: int = 0
    """Seed of the
    whole run."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Some workers."""

    workers: int = 1
    """How many."""
    backend: Literal["gloo", "nccl"] = "gloo"


@dataclass(frozen=True, kw_only=True)
class Item:
    name: str
    pattern: str | None = None


@dataclass(frozen=True, kw_only=True)
class Config(Base):
    corpus: str = input_artifact("corpus")
    """Text to read."""
    prompts: list[str] = source_files()
    verifier: str | None = user_function(None)
    items: list[Item] = field(default_factory=list)
    sizes: tuple[int, ...] = (1, 2)
    weights: dict[str, float | None] = field(default_factory=lambda: {"a": 2.0})
    learners: Group = field(default_factory=lambda: Group(workers=4))
    engines: Group = field(default_factory=Group)
    """Those that generate."""


FIELDS = {one.path: one for one in fields_of(Config)}


def test_a_field_has_its_type_meaning_default_and_docstring():
    assert FIELDS["corpus"] == Field("corpus", "str", "artifact", ("corpus",), "", "Text to read.")
    assert FIELDS["verifier"] == Field("verifier", "str or null", "user code", (), "null", "")
    assert FIELDS["prompts"] == Field("prompts", "list of str", "files", (), "", "")
    assert FIELDS["sizes"] == Field("sizes", "list of int", None, (), "[1, 2]", "")
    assert FIELDS["weights"] == Field("weights", "mapping of str to (float or null)", None, (), "{a: 2}", "")


def test_inherited_docstrings_are_found_and_set_on_one_line():
    assert field_docs(Config)["seed"] == "Seed of the whole run."
    assert class_doc(Group) == "Some workers." and class_doc(Item) == ""


def test_nested_fields_have_the_defaults_of_the_field_that_holds_them():
    assert FIELDS["learners"].default == "" and FIELDS["learners"].doc == "Some workers."
    assert (FIELDS["learners.workers"].default, FIELDS["engines.workers"].default) == ("4", "1")
    assert FIELDS["learners.backend"].type == "one of gloo, nccl"
    assert (FIELDS["items[].name"].default, FIELDS["items[].pattern"].default) == ("", "null")


def test_a_dataclass_that_occurs_twice_is_documented_once():
    assert FIELDS["learners.workers"].doc == "How many." and FIELDS["engines.workers"].doc == ""
    assert FIELDS["engines"].doc == "Those that generate."


@pytest.mark.parametrize("name", [*STAGES, "pipeline"])
def test_every_config_is_described_within_120_columns(name: str):
    lines = describe(name).splitlines()
    assert lines[0] == f"{name}.yaml" and len(lines) > 5
    too_wide = [line for line in lines if len(line) > 120 and " = " not in line]  # a default is not broken
    assert not too_wide


def test_an_unknown_stage_is_refused_with_the_nearest_name():
    with pytest.raises(ValueError, match="did you mean pretrain"):
        describe("pretain")


def test_the_command_prints_the_fields_and_refuses_to_guess_a_stage():
    run = [sys.executable, "-m", "jobs.cli", "fields"]
    answer = subprocess.run([*run, "vocabulary"], capture_output=True, text=True, check=True)
    assert "kind: one of bpe, wordpiece, unigram = bpe" in answer.stdout.splitlines()
    refused = subprocess.run(run, capture_output=True, text=True, check=False)
    assert refused.returncode == 2 and "fields: give a stage (corpus, vocabulary," in refused.stderr


@pytest.mark.parametrize("name", [*STAGES, "pipeline"])
def test_every_field_of_a_config_has_a_docstring(name: str):
    pending, seen = [config_named(name)], set[type]()
    while pending:
        schema = pending.pop()
        seen.add(schema)
        docs, kinds = field_docs(schema), typing.get_type_hints(schema)
        for one in dataclasses.fields(schema):
            field_type = nested(kinds[one.name])
            inner = field_type.dataclass if field_type else None
            explained = one.name in docs or (inner is not None and (class_doc(inner) or one.name == "execution"))
            assert explained, f"{schema.__name__}.{one.name} has no docstring"
            pending += [inner] if inner is not None and inner not in seen else []
