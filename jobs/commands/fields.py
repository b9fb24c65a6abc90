"""`raymill fields STAGE`: every field of a stage's config with its type, its default and its docstring."""

import dataclasses
import json
import re
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

from jobs.frame.field_docs import class_doc, field_docs
from jobs.frame.fields import Meaning, accepted_kinds, user_fields, value_meaning
from jobs.frame.pipeline_config import PipelineConfig
from jobs.frame.stages import find_stage

_WIDTH = 116
_PLAIN_TEXT = re.compile(r"[\w./+-]([\w./+ -]*[\w./+-])?")

LEGEND: Mapping[Meaning, str] = {
    "artifact": "the name of a config beside this one that makes it, `previous` for the last such config before this "
    "one in the pipeline, or the location of an artifact or of a Hugging Face folder",
    "files": "paths, globs or fsspec URLs; the files' content is part of the artifact's id, their location is not",
    "user code": "an extension point: path/to/file.py:name, a function or an object that you wrote",
}
"""Explanations of fields whose value is more than its type says."""


class Field(NamedTuple):
    """One field of a config as a user writes it."""

    path: str
    """Where it is in the YAML: `optimizer.lr`, `sources[].path`, `models.NAME`."""
    type: str
    """In words: `int or null`, `list of str`; empty for a group of further fields."""
    meaning: Meaning | None
    """What the value names; None for a plain setting."""
    kinds: tuple[str, ...]
    """The kinds of artifact that an input accepts."""
    default: str
    """As YAML; empty where the field must be given."""
    doc: str
    """Its docstring on one line."""


class Nested(NamedTuple):
    """A dataclass inside the type of a field."""

    dataclass: type
    suffix: str
    """What its path ends in: nothing for `X`, `[]` for a list or tuple, `.NAME` for a mapping."""


def config_named(name: str) -> type:
    """The config dataclass of a stage, or of `pipeline`. Raises ValueError for another name."""
    return PipelineConfig if name == "pipeline" else find_stage(name).config


def describe(name: str) -> str:
    """The text that `raymill fields NAME` prints."""
    lines: list[str] = [f"{name}.yaml", ""]
    fields = list(fields_of(config_named(name)))
    for field in fields:
        lines.append(_headline(field))
        lines += textwrap.wrap(field.doc, _WIDTH, initial_indent="    ", subsequent_indent="    ")
    used = {field.meaning for field in fields}
    lines.append("")
    for name, text in LEGEND.items():
        if name in used:
            lines += textwrap.wrap(f"({name}): {text}", _WIDTH, subsequent_indent="    ")
    if any(field.path == "execution" for field in fields):
        lines.append("execution: how the stage runs; not part of the artifact's id")
    return "\n".join(lines).rstrip()


def _headline(field: Field) -> str:
    """`init: str or null (artifact: model) = null`."""
    meaning = f" ({': '.join(filter(None, [field.meaning, ' or '.join(field.kinds)]))})" if field.meaning else ""
    default = f" = {field.default}" if field.default else ", required" if field.type else ""
    return f"{field.path}: {field.type}{meaning}{default}".rstrip()


def fields_of(schema: type, default: Any = None, prefix: str = "", shown: set[type] | None = None) -> Iterator[Field]:
    """The fields of a dataclass in the order of its source, nested ones after the field that holds them.

    `default` is the default value of the field that holds this dataclass; its attributes are then the defaults.
    `shown` are the dataclasses described so far, whose docstrings are not repeated.
    """
    shown = set() if shown is None else shown
    annotations, docs = typing.get_type_hints(schema), {} if schema in shown else field_docs(schema)
    shown.add(schema)
    for field in user_fields(schema):
        path, annotation = f"{prefix}{field.name}", annotations[field.name]
        value = default_of(field) if default is None else getattr(default, field.name)
        inner = nested(annotation)
        is_group = inner is not None and not inner.suffix and value is not None
        doc = docs.get(field.name) or (class_doc(inner.dataclass) if inner and inner.dataclass not in shown else "")
        words = "" if is_group else type_in_words(annotation)
        yield Field(path, words, value_meaning(field), accepted_kinds(field), "" if is_group else yaml_of(value), doc)
        if inner is not None:
            yield from fields_of(inner.dataclass, value if is_group else None, f"{path}{inner.suffix}.", shown)


def default_of(field: dataclasses.Field[Any]) -> Any:
    """The value of a field that is left out; `dataclasses.MISSING` for one that must be given."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def nested(annotation: Any) -> Nested | None:
    """The dataclass X in `X`, `X | None`, `list[X]`, `tuple[X, ...]` or `dict[str, X]`; None for a type without one."""
    if dataclasses.is_dataclass(annotation):
        return Nested(typing.cast(type, annotation), "")
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (types.UnionType, Union):
        return next((inner for inner in map(nested, arguments) if inner), None)
    if origin is dict and (inner := nested(arguments[1])):
        return Nested(inner.dataclass, f".NAME{inner.suffix}")
    if origin in (list, tuple) and (inner := nested(arguments[0])):
        return Nested(inner.dataclass, f"[]{inner.suffix}")
    return None


def type_in_words(annotation: Any) -> str:
    """`int`, `int or null`, `list of str`, `mapping of str to float`, `one of NFC, NFKC`."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if origin in (types.UnionType, Union):
        return " or ".join(map(type_in_words, arguments))
    if origin in (list, tuple):
        return f"list of {type_in_words(arguments[0])}"
    if origin is dict:
        value = type_in_words(arguments[1])
        return f"mapping of {type_in_words(arguments[0])} to {f'({value})' if ' or ' in value else value}"
    if annotation is type(None):
        return "null"
    return "group" if dataclasses.is_dataclass(annotation) else annotation.__name__


def yaml_of(value: Any) -> str:
    """A default value as one line of YAML; empty for `dataclasses.MISSING`."""
    if value is dataclasses.MISSING:
        return ""
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(yaml_of, value))}]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {yaml_of(item)}" for key, item in value.items()) + "}"
    if isinstance(value, float):
        return str(value).removesuffix(".0")
    return str(value) if _PLAIN_TEXT.fullmatch(str(value)) else json.dumps(value, ensure_ascii=False)
