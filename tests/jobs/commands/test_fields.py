"""`raymill fields` prints each field of a config with type, default and docstring."""

import dataclasses
import subprocess
import sys
import typing
from dataclasses import dataclass, field
from typing import Literal

import pytest

from jobs.commands.fields import Field, config_fields, describe, find_config_class, nested_dataclass, to_yaml
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
class Outer:
    group: Group


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


FIELDS = {found.path: found for found in config_fields(Config)}


def test_a_field_has_its_type_meaning_default_and_docstring():
    assert FIELDS["corpus"] == Field("corpus", "str", "artifact", ("corpus",), "", "Text to read.")
    assert FIELDS["verifier"] == Field("verifier", "str or null", "user code", (), "null", "")
    assert FIELDS["prompts"] == Field("prompts", "list of str", "files", (), "", "")
    assert FIELDS["sizes"] == Field("sizes", "list of int", None, (), "[1, 2]", "")
    assert FIELDS["weights"] == Field("weights", "mapping of str to (float or null)", None, (), "{a: 2}", "")


def test_docstrings_of_inherited_fields_are_found_and_joined_to_one_line():
    assert field_docs(Config)["seed"] == "Seed of the whole run."
    assert class_doc(Group) == "Some workers." and class_doc(Item) == ""


def test_fields_of_a_nested_dataclass_have_the_defaults_of_its_field():
    assert FIELDS["learners"].default == "" and FIELDS["learners"].doc == "Some workers."
    assert (FIELDS["learners.workers"].default, FIELDS["engines.workers"].default) == ("4", "1")
    assert FIELDS["learners.backend"].type == "one of gloo, nccl"
    assert (FIELDS["items[].name"].default, FIELDS["items[].pattern"].default) == ("", "null")


def test_a_nested_dataclass_without_default_is_required_and_has_its_own_defaults():
    fields = {found.path: found for found in config_fields(Outer)}
    assert (fields["group"].type, fields["group"].default) == ("group", "")
    assert fields["group.workers"].default == "1"


def test_a_default_that_yaml_would_read_as_another_type_is_quoted():
    assert [to_yaml(text) for text in ("true", "null", "12", "- a", "")] == ['"true"', '"null"', '"12"', '"- a"', '""']
    assert [to_yaml(value) for value in ("runs/a", "none", 12, 0.5, True, None)] == [
        *("runs/a", "none", "12", "0.5", "true", "null")
    ]


def test_a_dataclass_that_occurs_twice_is_documented_once():
    assert FIELDS["learners.workers"].doc == "How many." and FIELDS["engines.workers"].doc == ""
    assert FIELDS["engines"].doc == "Those that generate."


@pytest.mark.parametrize("name", [*STAGES, "pipeline"])
def test_every_config_is_described_within_120_columns(name: str):
    lines = describe(name).splitlines()
    assert lines[0] == f"{name}.yaml" and len(lines) > 5
    too_wide = [
        line for line in lines if len(line) > 120 and " = " not in line
    ]  # the line of a field with a long default is not wrapped
    assert not too_wide


def test_the_error_for_an_unknown_stage_suggests_a_similar_name():
    with pytest.raises(ValueError, match="did you mean pretrain"):
        describe("pretain")


def test_the_command_prints_the_fields_and_needs_a_stage():
    run = [sys.executable, "-m", "jobs.cli", "fields"]
    printed = subprocess.run([*run, "vocabulary"], capture_output=True, text=True, check=True)
    assert "kind: one of bpe, wordpiece, unigram = bpe" in printed.stdout.splitlines()
    failed = subprocess.run(run, capture_output=True, text=True, check=False)
    assert failed.returncode == 2 and "fields: name a stage (corpus, vocabulary," in failed.stderr


@pytest.mark.parametrize("name", [*STAGES, "pipeline"])
def test_every_field_of_a_config_has_a_docstring(name: str):
    pending, seen = [find_config_class(name)], set[type]()
    while pending:
        schema = pending.pop()
        seen.add(schema)
        docs, annotations = field_docs(schema), typing.get_type_hints(schema)
        for config_field in dataclasses.fields(schema):
            field_type = nested_dataclass(annotations[config_field.name])
            inner = field_type.dataclass if field_type else None
            explained = config_field.name in docs or (
                inner is not None and (class_doc(inner) or config_field.name == "execution")
            )
            assert explained, f"{schema.__name__}.{config_field.name} has no docstring"
            pending += [inner] if inner is not None and inner not in seen else []
