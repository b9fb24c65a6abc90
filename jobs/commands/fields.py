"""`raymill fields STAGE`: every field of a stage's config with its type, its default and what it means."""

import dataclasses
import json
import re
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

from jobs.frame.field_docs import class_doc, field_docs
from jobs.frame.fields import Meaning, kinds_of, meaning_of
from jobs.frame.pipeline import PipelineConfig
from jobs.frame.stages import stage_named

_WIDTH = 116
_PLAIN_TEXT = re.compile(r"[\w./+-]([\w./+ -]*[\w./+-])?")

LEGEND: Mapping[Meaning, str] = {
    "artifact": "the name of a config beside this one that makes it, `previous` for the last one before this in the "
    "pipeline that does, or the location of an artifact or of a Hugging Face folder",
    "files": "paths, globs or fsspec URLs; what they hold is part of the artifact's id, not where they are",
    "user code": "an extension point: path/to/file.py:name, a function or an object that you wrote",
}
"""What a value stands for, where its type does not tell."""


class Field(NamedTuple):
    """One field of a config, as a user meets it."""

    path: str
    """Where it is in the YAML: `optimizer.lr`, `sources[].path`, `models.NAME`."""
    type: str
    """In words: `int or null`, `list of str`; empty for a group of further fields."""
    meaning: Meaning | None
    kinds: tuple[str, ...]
    """Of the artifacts that an input takes."""
    default: str
    """As YAML; empty where the field must be given."""
    doc: str


def config_named(name: str) -> type:
    """The config dataclass of a stage, or of `pipeline`. Raises ValueError for another name."""
    return PipelineConfig if name == "pipeline" else stage_named(name).config


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
        lines.append("execution: says how the stage runs and is no part of the artifact's id")
    return "\n".join(lines).rstrip()


def _headline(field: Field) -> str:
    """`init: str or null (artifact: model) = null`."""
    meaning = f" ({': '.join(filter(None, [field.meaning, ' or '.join(field.kinds)]))})" if field.meaning else ""
    default = f" = {field.default}" if field.default else ", required" if field.type else ""
    return f"{field.path}: {field.type}{meaning}{default}".rstrip()


def fields_of(schema: type, default: Any = None, prefix: str = "", shown: set[type] | None = None) -> Iterator[Field]:
    """The fields of a dataclass in the order of its source, nested ones after the field that holds them.

    `default` is the object that the field above has by default, whose values are then the defaults here. A dataclass
    that occurs again has its docstrings only the first time.
    """
    shown = set() if shown is None else shown
    annotations, docs = typing.get_type_hints(schema), {} if schema in shown else field_docs(schema)
    shown.add(schema)
    for field in dataclasses.fields(schema):
        path, annotation = f"{prefix}{field.name}", annotations[field.name]
        value = default_of(field) if default is None else getattr(default, field.name)
        inner, suffix = nested(annotation)
        is_group = inner is not None and not suffix and value is not None
        doc = docs.get(field.name) or (class_doc(inner) if inner and inner not in shown else "")
        words = "" if is_group else type_in_words(annotation)
        yield Field(path, words, meaning_of(field), kinds_of(field), "" if is_group else yaml_of(value), doc)
        if inner is not None:
            yield from fields_of(inner, value if is_group else None, f"{path}{suffix}.", shown)


def default_of(field: dataclasses.Field[Any]) -> Any:
    """The value that a field has when it is left out; `dataclasses.MISSING` where it must be given."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def nested(annotation: Any) -> tuple[type | None, str]:
    """The dataclass in `X`, `X | None`, `list[X]`, `tuple[X, ...]` or `dict[str, X]`, and the end of its path, which is
    empty, `[]` or `.NAME`.

    None where there is no dataclass in it.
    """
    if dataclasses.is_dataclass(annotation):
        return typing.cast(type, annotation), ""
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin in (types.UnionType, Union):
        return next((found for found in map(nested, inside) if found[0]), (None, ""))
    if origin is dict:
        inner, suffix = nested(inside[1])
        return inner, f".NAME{suffix}"
    if origin in (list, tuple):
        inner, suffix = nested(inside[0])
        return inner, f"[]{suffix}"
    return None, ""


def type_in_words(annotation: Any) -> str:
    """`int`, `int or null`, `list of str`, `mapping of str to float`, `one of NFC, NFKC`."""
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return f"one of {', '.join(map(str, inside))}"
    if origin in (types.UnionType, Union):
        return " or ".join(type_in_words(one) for one in inside)
    if origin in (list, tuple):
        return f"list of {type_in_words(inside[0])}"
    if origin is dict:
        value = type_in_words(inside[1])
        return f"mapping of {type_in_words(inside[0])} to {f'({value})' if ' or ' in value else value}"
    if annotation is type(None):
        return "null"
    return "group" if dataclasses.is_dataclass(annotation) else annotation.__name__


def yaml_of(value: Any) -> str:
    """A default as it would be written in YAML, on one line; empty where there is none."""
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
