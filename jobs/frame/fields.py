"""Declares config fields whose values refer to something outside the config: artifacts, files or user-provided code.

Each constructor below is used like `dataclasses.field` and puts a mark into the field's metadata. `references.py` finds
the marked fields of a config and collects their values. The exception is `list_of_choices`, whose mark says how many
fields each item must set. The mark `user_code` (`model/learning.py`) is for a field that contains either a built-in
name or user-provided code.
"""

import dataclasses
import typing
from typing import Any, Literal

from jobs.frame.kinds import Kind

Meaning = Literal["artifact", "files", "user code"]
"""What a field's value refers to: an artifact, source files, or user-provided code."""

PREVIOUS_STAGE = "previous"
"""The value of an input that refers to an earlier config of the pipeline without naming it.

The value refers to the last config before this one that has a file in the folder and makes a kind of artifact which
the input accepts. For example, in the config of `sft`, `init: previous` refers to the model that `pretrain` makes.
"""


def input_artifact(*kinds: Kind, default: Any = dataclasses.MISSING) -> Any:
    """Declare a config field whose value refers to an artifact of one of these kinds.

    The value is the name of a config in the same folder, `previous`, or the location of an artifact or of a Hugging
    Face folder. In a field of type `dict[str, str]` or `list[str]`, every item refers to an artifact.
    """
    return dataclasses.field(default=default, metadata={"kinds": kinds})


def source_files(default: Any = dataclasses.MISSING) -> Any:
    """Declare a config field of file paths or globs.

    The content of the files is hashed into the artifact's id, but their location is not. For a value such as
    `path/to/verifier.py:function`, the content of the Python file, the content of the modules that it imports from its
    folder, and the name of the function are hashed.
    """
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=lambda: default, metadata={"source": True})
    return dataclasses.field(default=default, metadata={"source": True})


def user_function(default: Any = dataclasses.MISSING) -> Any:
    """Declare a config field of user-provided functions, each written as `path/to/file.py:function`.

    The field is a source field too (see `source_files`), because the functions are read from source files.
    """
    field = source_files(default)
    return dataclasses.field(
        default=field.default, default_factory=field.default_factory, metadata={"source": True, "function": True}
    )


def list_of_choices() -> Any:
    """Declare a config field with a list of dataclass objects, empty by default, such as the steps of a recipe.

    The dataclass has a field with the default null for each choice, and each item of the list must set exactly one of
    these fields. The name of the field that is set tells what the item is, for example `length` in the item
    `- length: {min: 100}`.
    """
    return dataclasses.field(default_factory=list, metadata={"choice": True})


def is_list_of_choices(field: dataclasses.Field[Any]) -> bool:
    """Return whether the field was declared by `list_of_choices`."""
    return "choice" in field.metadata


def accepted_kinds(field: dataclasses.Field[Any]) -> tuple[Kind, ...]:
    """Return the kinds of artifacts that an input field accepts, or an empty tuple for a field that is not an input."""
    return field.metadata.get("kinds", ())


def field_types(schema: type) -> dict[str, Any]:
    """Return the type of each field of a config class.

    The type is in the metadata of a field if omegaconf does not know it, such as `str | list[str]`. The annotation of
    such a field is Any when the program runs.
    """
    annotations = typing.get_type_hints(schema)
    return {field.name: field.metadata.get("type", annotations[field.name]) for field in dataclasses.fields(schema)}


def value_meaning(field: dataclasses.Field[Any]) -> Meaning | None:
    """Return what the field's value refers to, or None for a plain setting."""
    if accepted_kinds(field):
        return "artifact"
    if "function" in field.metadata or "user_code" in field.metadata:
        return "user code"
    return "files" if "source" in field.metadata else None


def user_fields(schema: type) -> list[dataclasses.Field[Any]]:
    """Return the fields of a config class that a user may set.

    The other fields are marked `internal` in their metadata. Raymill sets the internal fields when a run starts.
    """
    return [field for field in dataclasses.fields(schema) if "internal" not in field.metadata]


def config_key(field: dataclasses.Field[Any]) -> str:
    """Return the key of the field in YAML. It differs from the field's name if that would be a keyword of Python."""
    return field.metadata.get("key", field.name)
