"""Config fields that hold more than a setting: input artifacts, source files and functions of the user.

Each constructor below marks the field in its metadata; `references.py` collects the values of marked fields.
"""

import dataclasses
from typing import Any, Literal

from jobs.frame.kinds import Kind

Meaning = Literal["artifact", "files", "user code"]
"""What the text in a field names: an artifact, source files, or code that the user wrote."""

PREVIOUS = "previous"
"""Value of an input: the last config before this one in the pipeline that makes an accepted kind."""


def input_artifact(*kinds: Kind, default: Any = dataclasses.MISSING) -> Any:
    """A config field whose value is an artifact of one of these kinds.

    The value is the name of a config beside this one, `previous`, or the location of an artifact or of a Hugging Face
    folder. With `dict[str, str]` or `list[str]` as the field's type every value is an artifact.
    """
    return dataclasses.field(default=default, metadata={"kinds": kinds})


def source_files(default: Any = dataclasses.MISSING) -> Any:
    """A config field of file paths or globs. The files' content is part of the identity, their location is not.

    A value such as `path/to/verifier.py:function` names a function in a file; the file is fingerprinted.
    """
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=lambda: default, metadata={"source": True})
    return dataclasses.field(default=default, metadata={"source": True})


def user_function(default: Any = dataclasses.MISSING) -> Any:
    """A config field of functions that the user wrote, each `path/to/file.py:function`; also a source field."""
    field = source_files(default)
    return dataclasses.field(
        default=field.default, default_factory=field.default_factory, metadata={"source": True, "function": True}
    )


def list_of_choices() -> Any:
    """A config field with a list of dataclass objects, empty by default. Each item sets exactly one of the fields that
    are null by default, and the name of that field says what the item is."""
    return dataclasses.field(default_factory=list, metadata={"choice": True})


def is_choice(field: dataclasses.Field[Any]) -> bool:
    """Whether `list_of_choices` made the field."""
    return "choice" in field.metadata


def accepted_kinds(field: dataclasses.Field[Any]) -> tuple[Kind, ...]:
    """The kinds of artifact that an input accepts; empty for a field that is not an input."""
    return field.metadata.get("kinds", ())


def meaning_of(field: dataclasses.Field[Any]) -> Meaning | None:
    """What the text in a field names; None for a plain setting."""
    if accepted_kinds(field):
        return "artifact"
    if "function" in field.metadata or "user_code" in field.metadata:
        return "user code"
    return "files" if "source" in field.metadata else None


def user_fields(schema: type) -> list[dataclasses.Field[Any]]:
    """The fields of a config that a user may set; those marked `internal` are filled in when a run starts."""
    return [field for field in dataclasses.fields(schema) if "internal" not in field.metadata]
