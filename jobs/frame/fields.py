"""Config fields that hold more than a setting: artifacts that a stage is made from, and source files."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

from cluster.paths import list_files
from jobs.frame.kinds import Kind
from jobs.frame.user_code import beside, read_siblings

Meaning = Literal["artifact", "files", "user code"]
"""What the text in a field names: an artifact, source files, or code that the user wrote."""

PREVIOUS = "previous"
"""The value of an input that takes the last config before this one in the pipeline that makes what it asks for."""


def input_artifact(*kinds: Kind, default: Any = dataclasses.MISSING) -> Any:
    """A config field whose value is an artifact of one of these kinds.

    The value is the name of a config beside this one, `previous`, or the location of an artifact or of a Hugging Face
    folder. With `dict[str, str]` or `list[str]` as the field's type every value is an artifact.
    """
    return dataclasses.field(default=default, metadata={"kinds": kinds})


def source_files(default: Any = dataclasses.MISSING) -> Any:
    """A config field of file paths or globs whose content, not whose place, is part of the identity.

    A value such as `path/to/verifier.py:function` names a function in a file; the file is fingerprinted.
    """
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=lambda: default, metadata={"source": True})
    return dataclasses.field(default=default, metadata={"source": True})


def user_function(default: Any = dataclasses.MISSING) -> Any:
    """A config field of functions that the user wrote, each `path/to/file.py:function`; a source field as well."""
    field = source_files(default)
    return dataclasses.field(
        default=field.default, default_factory=field.default_factory, metadata={"source": True, "function": True}
    )


def list_of_choices() -> Any:
    """A config field of a list of dataclass objects, empty by default. Each item sets exactly one of the fields that
    are null by default, and the name of that field says what the item is."""
    return dataclasses.field(default_factory=list, metadata={"choice": True})


def is_choice(field: dataclasses.Field[Any]) -> bool:
    """Whether it was made by `list_of_choices`."""
    return "choice" in field.metadata


def kinds_of(field: dataclasses.Field[Any]) -> tuple[Kind, ...]:
    """The kinds of artifact that an input takes; none where the field is no input."""
    return field.metadata.get("kinds", ())


def meaning_of(field: dataclasses.Field[Any]) -> Meaning | None:
    """What the text in a field names, where it is more than a setting."""
    if kinds_of(field):
        return "artifact"
    if "function" in field.metadata or "user_code" in field.metadata:
        return "user code"
    return "files" if "source" in field.metadata else None


def is_user_code(value: str) -> bool:
    """Whether the value is `path/to/file.py:name`."""
    return file_of(value) != value


def match_sources(config: Any) -> dict[str, list[str]]:
    """The files that the config's source fields match, by path. Raises ValueError naming one that matches nothing."""
    found: dict[str, list[str]] = {}
    for path, value in _sources(config):
        try:
            found[path] = list_files([file_of(value)])
            if is_user_code(value):  # a program: what it imports from beside it is part of it
                siblings = read_siblings(file_of(value))
                found[path] += [url for name in siblings for url in list_files([beside(file_of(value), name)])]
        except Exception as error:  # every file system has errors of its own: no key, no bucket, no archive
            raise ValueError(f"{path}: {error}") from error
    return found


def _sources(config: Any) -> list[tuple[str, str]]:
    """(path, value) of every source field, and of the fields for a name that hold user code instead."""
    own = [(path, value) for path, value in _marked(config, "user_code") if is_user_code(value)]
    return [*_marked(config, "source"), *own]


def _marked(config: Any, mark: str, prefix: str = "") -> Iterator[tuple[str, str]]:
    """(path, value) of every string under a field that carries `mark` in its metadata, nested dataclasses included."""
    for field in dataclasses.fields(config):
        value, path = getattr(config, field.name), f"{prefix}{field.name}"
        if mark in field.metadata:
            yield from ((at, text) for at, text in _strings(value, path))
        elif dataclasses.is_dataclass(value):
            yield from _marked(value, mark, f"{path}.")
        elif isinstance(value, (list, tuple)):
            for index, item in enumerate(value):
                if dataclasses.is_dataclass(item):
                    yield from _marked(item, mark, f"{path}.{index}.")


class MarkedInput(NamedTuple):
    """An input that a config sets."""

    path: str
    """In the config: `init`, `models.before`."""
    value: str
    kinds: tuple[Kind, ...]
    """That it accepts."""


def marked_inputs(config: Any) -> list[MarkedInput]:
    """Every input that is set."""
    inputs: list[MarkedInput] = []
    for field in dataclasses.fields(config):
        if kinds := kinds_of(field):
            strings = _strings(getattr(config, field.name), field.name)
            inputs += [MarkedInput(path, value, kinds) for path, value in strings]
    return inputs


def marked_sources(config: Any) -> list[str]:
    """The value of every source field: a path, a glob, or `path/file.py:function`."""
    return [value for _, value in _sources(config)]


def _strings(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _strings(item, f"{path}.{key}")
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _strings(item, f"{path}.{index}")


def marked_functions(config: Any) -> dict[str, str]:
    """`:function` of each program, `path/file.py:function`, by config path."""
    named = {path: value[len(file_of(value)) :] for path, value in _sources(config)}
    return {path: function for path, function in named.items() if function}


def file_of(value: str) -> str:
    """`path/file.py:function`, which makes it a program, -> `path/file.py`; any other value is a path as it stands."""
    path, colon, name = value.rpartition(":")
    return path if colon and path.endswith(".py") and name.isidentifier() else value
