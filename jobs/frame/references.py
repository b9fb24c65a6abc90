"""Finds what the values of a config refer to: artifacts, source files, and user-provided functions.

The constructors in `fields.py` have marked the config fields that contain such values. The fields with
the mark `source` are called source fields. Their values are paths of files.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from cluster.paths import list_files
from jobs.frame.fields import accepted_kinds
from jobs.frame.kinds import Kind
from jobs.frame.sibling_modules import read_siblings, sibling_path


class ConfigValue(NamedTuple):
    """One string in a config."""

    path: str
    """The path of the string in the config, such as `prompts` or `sources.0.path`."""
    text: str
    """The string."""


class ConfigInput(NamedTuple):
    """An input of a config, as it is written there."""

    path: str
    """The path of the input in the config, such as `init` or `models.before`."""
    value: str
    """The name of a config, `previous`, or the location of an artifact or of a Hugging Face folder."""
    kinds: tuple[Kind, ...]
    """The kinds of artifacts that the input accepts."""


def find_inputs(config: Any) -> list[ConfigInput]:
    """Return every input of the config. An input that is null is left out."""
    inputs: list[ConfigInput] = []
    for field in dataclasses.fields(config):
        if kinds := accepted_kinds(field):
            values = _strings(getattr(config, field.name), field.name)
            inputs += [ConfigInput(path, text, kinds) for path, text in values]
    return inputs


def find_sources(config: Any) -> list[str]:
    """Return the values of all source fields, and the user-provided code in all other fields.

    A value is a path, a glob, or `path/file.py:function`.
    """
    return [text for _, text in _source_values(config)]


def find_functions(config: Any) -> dict[str, str]:
    """Return the part `:function` of every value `path/file.py:function` in the config.

    The keys are the paths of these values in the config, such as `learning.algorithm`.
    """
    functions = {path: text[len(without_function_name(text)) :] for path, text in _source_values(config)}
    return {path: function for path, function in functions.items() if function}


def match_sources(config: Any) -> dict[str, list[str]]:
    """Return the URLs of the files that each value of `find_sources` matches.

    The keys are the paths of these values in the config, such as `sources.0.path`. For user-provided code the URLs
    include the modules in the same folder that the Python file imports. Raises ValueError if a value matches no file,
    or if a file or module cannot be read.
    """
    urls: dict[str, list[str]] = {}
    for path, text in _source_values(config):
        try:
            urls[path] = list_files([without_function_name(text)])
            if is_user_code(text):
                siblings = read_siblings(without_function_name(text))
                urls[path] += [
                    url for name in siblings for url in list_files([sibling_path(without_function_name(text), name)])
                ]
        except Exception as error:  # every fsspec filesystem raises its own exceptions, such as NoSuchBucket
            raise ValueError(f"{path}: {error}") from error
    return urls


def without_function_name(value: str) -> str:
    """Return `path/file.py` for the value `path/file.py:function`. Returns every other value unchanged."""
    path, colon, name = value.rpartition(":")
    return path if colon and path.endswith(".py") and name.isidentifier() else value


def is_user_code(value: str) -> bool:
    """Return whether the value has the form `path/to/file.py:name`."""
    return without_function_name(value) != value


def _source_values(config: Any) -> list[ConfigValue]:
    """Return the values of all source fields, and the user-provided code in all other fields.

    An example of another field is `learning.algorithm`, whose value is either a built-in name or user-provided code.
    """
    user_code = [value for value in _marked_values(config, "user_code") if is_user_code(value.text)]
    return [*_marked_values(config, "source"), *user_code]


def _marked_values(config: Any, mark: str, prefix: str = "") -> Iterator[ConfigValue]:
    """Yield every string in the fields whose metadata contains `mark`, including the fields of nested dataclasses."""
    for field in dataclasses.fields(config):
        value, path = getattr(config, field.name), f"{prefix}{field.name}"
        if mark in field.metadata:
            yield from _strings(value, path)
        elif dataclasses.is_dataclass(value):
            yield from _marked_values(value, mark, f"{path}.")
        elif isinstance(value, (list, tuple)):
            for index, item in enumerate(value):
                if dataclasses.is_dataclass(item):
                    yield from _marked_values(item, mark, f"{path}.{index}.")


def _strings(value: Any, path: str) -> Iterator[ConfigValue]:
    """Yield the string `value`, or the strings in the list or mapping `value`. `path` is its path in the config."""
    if isinstance(value, str):
        yield ConfigValue(path, value)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _strings(item, f"{path}.{key}")
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _strings(item, f"{path}.{index}")
