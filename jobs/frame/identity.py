"""Selects the part of a config that is hashed into an artifact's id."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jobs.frame.references import is_user_code

_HASHED_BY_CONTENT = ("kinds", "source")
"""Metadata keys that mark the fields which refer to artifacts or files (see `fields.py`). `Job.id` hashes the id of the
artifact or the content of the file instead of the value of such a field. The key `user_code` is not among them, because
such a field refers to a file only if its value has the form `file.py:name`."""


def changed_fields(config: Any) -> dict[str, Any]:
    """Return the fields of a config that differ from their defaults: field name -> plain value.

    The plain value of a nested config is again a dictionary of its fields that differ from their defaults.

    `Job.id` hashes these fields. Therefore no existing id changes when a new version of Raymill adds a field with a
    default. The field `execution` is left out, because it does not change the result. Fields that refer to artifacts or
    files are left out too: instead of their values, `Job.id` hashes the ids of the artifacts and the content of the
    files, so their locations do not matter.
    """
    changed: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        if field.name == "execution" or any(mark in field.metadata for mark in _HASHED_BY_CONTENT):
            continue
        value = getattr(config, field.name)
        if "user_code" in field.metadata and is_user_code(value):
            continue
        if field.default is not dataclasses.MISSING and value == field.default:
            continue
        if field.default_factory is not dataclasses.MISSING and value == field.default_factory():
            continue
        plain = _plain(value)
        # A nested config whose fields all have their defaults is left out, because it changes nothing. The exception is
        # a field whose default is None: there the config `step: {}` changes something, because it enables the step.
        if plain != {} or not dataclasses.is_dataclass(value) or field.default is None:
            changed[field.name] = plain
    return changed


def _plain(value: Any) -> Any:
    """Convert a value to dictionaries, lists and scalars. A dataclass object becomes its `changed_fields`."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return changed_fields(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
