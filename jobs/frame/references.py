"""What the values of a config refer to: artifacts, source files, and functions that the user wrote."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from cluster.paths import list_files
from jobs.frame.fields import accepted_kinds
from jobs.frame.kinds import Kind
from jobs.frame.sibling_modules import read_siblings, sibling_path


class ConfigValue(NamedTuple):
    """One text in a config."""

    path: str
    """Where it is in the config: `prompts`, `sources.0.path`."""
    text: str


class ConfigInput(NamedTuple):
    """An input that a config sets."""

    path: str
    """Where it is in the config: `init`, `models.before`."""
    value: str
    """The name of a config, `previous`, or a location."""
    kinds: tuple[Kind, ...]
    """The kinds of artifact that the input accepts."""


def find_inputs(config: Any) -> list[ConfigInput]:
    """Every input that the config sets."""
    inputs: list[ConfigInput] = []
    for field in dataclasses.fields(config):
        if kinds := accepted_kinds(field):
            values = _texts(getattr(config, field.name), field.name)
            inputs += [ConfigInput(path, text, kinds) for path, text in values]
    return inputs


def find_sources(config: Any) -> list[str]:
    """The value of every source field: a path, a glob, or `path/file.py:function`."""
    return [text for _, text in _sources(config)]


def find_functions(config: Any) -> dict[str, str]:
    """`:function` of every `path/file.py:function` in the source fields, by config path."""
    functions = {path: text[len(without_function_name(text)) :] for path, text in _sources(config)}
    return {path: function for path, function in functions.items() if function}


def match_sources(config: Any) -> dict[str, list[str]]:
    """The URLs of the files that each source field matches, by config path.

    Raises ValueError naming a field that matches nothing.
    """
    urls: dict[str, list[str]] = {}
    for path, text in _sources(config):
        try:
            urls[path] = list_files([without_function_name(text)])
            if is_user_code(text):  # the modules that it imports from its folder belong to it
                siblings = read_siblings(without_function_name(text))
                urls[path] += [
                    url for name in siblings for url in list_files([sibling_path(without_function_name(text), name)])
                ]
        except Exception as error:  # each file system has its own errors: no key, no bucket, no archive
            raise ValueError(f"{path}: {error}") from error
    return urls


def without_function_name(value: str) -> str:
    """`path/file.py` of `path/file.py:function`; any other value is a path and returned unchanged."""
    path, colon, name = value.rpartition(":")
    return path if colon and path.endswith(".py") and name.isidentifier() else value


def is_user_code(value: str) -> bool:
    """Whether the value is `path/to/file.py:name`."""
    return without_function_name(value) != value


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
