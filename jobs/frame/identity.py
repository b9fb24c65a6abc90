"""Which part of a config enters an artifact's identity."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jobs.frame.references import is_user_code

_KNOWN_BY_CONTENT = ("kinds", "source")
"""Marks (of `fields.py`) on fields whose content is identified by the ids of artifacts or the fingerprints of files."""


def changed_fields(config: Any) -> dict[str, Any]:
    """The fields of a config that differ from their defaults as plain values, nested ones likewise, without
    `execution`.

    Only these are hashed into an artifact's id, so that a field added with a default changes no existing id. Inputs
    and sources are left out: their content is hashed elsewhere, and neither their location nor its spelling matters.
    """
    changed: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        if field.name == "execution" or any(mark in field.metadata for mark in _KNOWN_BY_CONTENT):
            continue
        value = getattr(config, field.name)
        if "user_code" in field.metadata and is_user_code(value):
            continue
        if field.default is not dataclasses.MISSING and value == field.default:
            continue
        if field.default_factory is not dataclasses.MISSING and value == field.default_factory():
            continue
        plain = _plain(value)
        # A nested config at its defaults is no change, except where the default is None: `step: {}` turns a step on.
        if plain != {} or not dataclasses.is_dataclass(value) or field.default is None:
            changed[field.name] = plain
    return changed


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return changed_fields(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
