"""Rejects settings that would have no effect. A user who sets one expects an effect, so ignoring it would mislead."""

import dataclasses
from typing import Any


def reject_ignored(settings: Any, *names: str, path: str, reason: str) -> None:
    """Raises ValueError if one of these fields of a config dataclass does not have its default.

    `path` is the path of the settings in the job's config, or empty for the job's config itself. `reason` says why the
    fields have no effect.
    """
    fields = {field.name: field for field in dataclasses.fields(settings)}
    for name in names:
        field, value = fields[name], getattr(settings, name)
        has_factory = field.default_factory is not dataclasses.MISSING
        if value != (field.default_factory() if has_factory else field.default):  # pyright: ignore[reportCallIssue]
            shown = "this setting" if dataclasses.is_dataclass(value) else value
            full_name = f"{path}.{name}" if path else name
            raise ValueError(f"{full_name}: {shown} would have no effect, because {reason}; remove it")
