"""What the values of a config refer to: artifacts, source files, and functions that the user wrote."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from cluster.paths import list_files
from jobs.frame.fields import kinds_of
from jobs.frame.kinds import Kind
from jobs.frame.sibling_modules import beside, read_siblings


class ConfigValue(NamedTuple):
    """One text in a config."""

    path: str
    """Where it is in the config: `prompts`, `sources.0.path`."""
    text: str


class MarkedInput(NamedTuple):
    """An input that a config sets."""

    path: str
    """Where it is in the config: `init`, `models.before`."""
    value: str
    """The name of a config, `previous`, or a location."""
    kinds: tuple[Kind, ...]
    """The kinds of artifact that the input accepts."""


def marked_inputs(config: Any) -> list[MarkedInput]:
    """Every input that the config sets."""
    inputs: list[MarkedInput] = []
    for field in dataclasses.fields(config):
        if kinds := kinds_of(field):
            values = _texts(getattr(config, field.name), field.name)
            inputs += [MarkedInput(path, text, kinds) for path, text in values]
    return inputs


def marked_sources(config: Any) -> list[str]:
    """The value of every source field: a path, a glob, or `path/file.py:function`."""
    return [text for _, text in _sources(config)]


def marked_functions(config: Any) -> dict[str, str]:
    """`:function` of every `path/file.py:function` in the source fields, by config path."""
    functions = {path: text[len(file_of(text)) :] for path, text in _sources(config)}
    return {path: function for path, function in functions.items() if function}


def match_sources(config: Any) -> dict[str, list[str]]:
    """The URLs of the files that each source field matches, by config path.

    Raises ValueError naming a field that matches nothing.
    """
    urls: dict[str, list[str]] = {}
    for path, text in _sources(config):
        try:
            urls[path] = list_files([file_of(text)])
            if is_user_code(text):  # the modules that it imports from its folder belong to it
                siblings = read_siblings(file_of(text))
                urls[path] += [url for name in siblings for url in list_files([beside(file_of(text), name)])]
        except Exception as error:  # each file system has its own errors: no key, no bucket, no archive
            raise ValueError(f"{path}: {error}") from error
    return urls


def file_of(value: str) -> str:
    """`path/file.py` of `path/file.py:function`; any other value is a path and returned unchanged."""
    path, colon, name = value.rpartition(":")
    return path if colon and path.endswith(".py") and name.isidentifier() else value


def is_user_code(value: str) -> bool:
    """Whether the value is `path/to/file.py:name`."""
    return file_of(value) != value


def _sources(config: Any) -> list[ConfigValue]:
    """The values of all source fields, and of the fields that take a name or user code where they hold user code."""
    user_code = [value for value in _marked(config, "user_code") if is_user_code(value.text)]
    return [*_marked(config, "source"), *user_code]


def _marked(config: Any, mark: str, prefix: str = "") -> Iterator[ConfigValue]:
    """Every text under a field that carries `mark` in its metadata, nested dataclasses included."""
    for field in dataclasses.fields(config):
        value, path = getattr(config, field.name), f"{prefix}{field.name}"
        if mark in field.metadata:
            yield from _texts(value, path)
        elif dataclasses.is_dataclass(value):
            yield from _marked(value, mark, f"{path}.")
        elif isinstance(value, (list, tuple)):
            for index, item in enumerate(value):
                if dataclasses.is_dataclass(item):
                    yield from _marked(item, mark, f"{path}.{index}.")


def _texts(value: Any, path: str) -> Iterator[ConfigValue]:
    """The texts in a value, those in lists and mappings included."""
    if isinstance(value, str):
        yield ConfigValue(path, value)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _texts(item, f"{path}.{key}")
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _texts(item, f"{path}.{index}")
