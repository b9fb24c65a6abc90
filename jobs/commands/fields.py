"""The command `raymill fields STAGE`. It prints each field of a stage's config with type, default and docstring."""

import dataclasses
import json
import re
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

import yaml

from jobs.frame.field_docs import class_doc, field_docs
from jobs.frame.fields import Meaning, accepted_kinds, config_key, field_types, user_fields, value_meaning
from jobs.frame.pipeline_config import PipelineConfig
from jobs.frame.stages import find_stage

_TEXT_WIDTH = 116
"""Greatest number of columns in a line of a printed docstring."""
_UNQUOTED_YAML = re.compile(r"[\w./+-]([\w./+ -]*[\w./+-])?")
"""Strings that are written in YAML without quotes, unless YAML would read them as another type, such as `true`."""

MEANING_TEXTS: Mapping[Meaning, str] = {
    "artifact": "the name of another config in this folder, whose stage makes the artifact; `previous`, for the last "
    "stage before this one in the pipeline that makes such an artifact; or the location of an artifact or of a Hugging "
    "Face folder",
    "files": "paths, globs or fsspec URLs; the artifact's id depends on the files' content and not on their location",
    "user code": "path/to/file.py:name of a function or an object that you wrote",
}
"""Meaning of a field's value -> what users can write in such a field. The type of the field, such as `str`, does not
show this."""


class Field(NamedTuple):
    """The description of one field of a config."""

    path: str
    """Path of the field in the YAML, such as `optimizer.lr`, `sources[].path` or `models.NAME`."""
    type: str
    """The type in words, such as `int or null` or `list of str`. Empty for a field whose default is an object of a
    dataclass, because the fields of the dataclass are described next."""
    meaning: Meaning | None
    """What the value refers to. None for a setting that refers to nothing, such as a number."""
    kinds: tuple[str, ...]
    """The kinds of artifact that the field accepts, if its value refers to an artifact."""
    default: str
    """The default as YAML. Empty for a required field, and for a field whose `type` is empty."""
    doc: str
    """The docstring of the field, as one line. If the field has none, the docstring of the dataclass in its type. Empty
    if there is neither, and where the docstring would repeat that of a dataclass that was described before."""


class NestedDataclass(NamedTuple):
    """The dataclass that is the type of a field, or that occurs in the type, as in `list[X]`."""

    dataclass: type
    path_suffix: str
    """What is added to the path of the field to get the path of one object of the dataclass X: "" for the type `X`,
    `[]` for a list or tuple of X, and `.NAME` for a mapping whose values are X."""


def find_config_class(name: str) -> type:
    """Return the config dataclass of a stage or of `pipeline`. Raises ValueError for an unknown name."""
    return PipelineConfig if name == "pipeline" else find_stage(name).config


def describe(name: str) -> str:
    """Return the text that `raymill fields NAME` prints."""
    lines: list[str] = [f"{name}.yaml", ""]
    fields = list(config_fields(find_config_class(name)))
    for field in fields:
        lines.append(_headline(field))
        lines += textwrap.wrap(field.doc, _TEXT_WIDTH, initial_indent="    ", subsequent_indent="    ")
    used_meanings = {field.meaning for field in fields}
    lines.append("")
    for meaning, text in MEANING_TEXTS.items():
        if meaning in used_meanings:
            lines += textwrap.wrap(f"({meaning}): {text}", _TEXT_WIDTH, subsequent_indent="    ")
    if any(field.path == "execution" for field in fields):
        lines.append("execution: how the stage runs; these settings are not part of the artifact's id")
    return "\n".join(lines).rstrip()


def _headline(field: Field) -> str:
    """Return the first line about a field, such as `init: str or null (artifact: model) = null`."""
    meaning = f" ({': '.join(filter(None, [field.meaning, ' or '.join(field.kinds)]))})" if field.meaning else ""
    default = f" = {field.default}" if field.default else ", required" if field.type else ""
    return f"{field.path}: {field.type}{meaning}{default}".rstrip()


def config_fields(
    config_class: type, default: Any = None, prefix: str = "", documented: set[type] | None = None
) -> Iterator[Field]:
    """Yield the fields of a config dataclass in the order of its source code.

    A field whose type contains a nested dataclass is followed by the fields of that dataclass. If `config_class` is
    itself nested, `default` is the default value of the field that contains it, and the attributes of this value are
    the defaults of the fields of `config_class`. If `default` is None, the defaults in `config_class` are used.
    `prefix` is the beginning of the path of each field. `documented` collects the dataclasses that were already
    described, because their docstrings are not repeated.
    """
    documented = set() if documented is None else documented
    annotations = field_types(config_class)
    docs = {} if config_class in documented else field_docs(config_class)
    documented.add(config_class)
    for field in user_fields(config_class):
        path, annotation = f"{prefix}{config_key(field)}", annotations[field.name]
        value = default_value(field) if default is None else getattr(default, field.name)
        nested = nested_dataclass(annotation)
        is_group = nested is not None and not nested.path_suffix and dataclasses.is_dataclass(value)
        class_text = class_doc(nested.dataclass) if nested and nested.dataclass not in documented else ""
        yield Field(
            path,
            type="" if is_group else type_in_words(annotation),
            meaning=value_meaning(field),
            kinds=accepted_kinds(field),
            default="" if is_group else to_yaml(value),
            doc=docs.get(field.name) or class_text,
        )
        if nested is not None:
            nested_default, nested_prefix = value if is_group else None, f"{path}{nested.path_suffix}."
            yield from config_fields(nested.dataclass, nested_default, nested_prefix, documented)


def default_value(field: dataclasses.Field[Any]) -> Any:
    """Return the default value of a field, or `dataclasses.MISSING` for a required field."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def nested_dataclass(annotation: Any) -> NestedDataclass | None:
    """Return the dataclass X in a type `X`, `X | None`, `list[X]`, `tuple[X, ...]` or `dict[str, X]`.

    These types may be nested in each other. Returns None for any other type.
    """
    if dataclasses.is_dataclass(annotation):
        return NestedDataclass(typing.cast(type, annotation), "")
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (types.UnionType, Union):
        return next((found for found in map(nested_dataclass, arguments) if found), None)
    if origin is dict and (found := nested_dataclass(arguments[1])):
        return NestedDataclass(found.dataclass, f".NAME{found.path_suffix}")
    if origin in (list, tuple) and (found := nested_dataclass(arguments[0])):
        return NestedDataclass(found.dataclass, f"[]{found.path_suffix}")
    return None


def type_in_words(annotation: Any) -> str:
    """Return a type in words, such as `int or null`, `list of str`, `mapping of str to float` or `one of NFC, NFKC`."""
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


def to_yaml(value: Any) -> str:
    """Return a default value as one line of YAML, or an empty string for `dataclasses.MISSING`."""
    if value is dataclasses.MISSING:
        return ""
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(to_yaml, value))}]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {to_yaml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, float):
        return str(value).removesuffix(".0")
    if isinstance(value, str) and not (_UNQUOTED_YAML.fullmatch(value) and yaml.safe_load(value) == value):
        return json.dumps(value, ensure_ascii=False)
    return str(value)
