"""A setting that would have no effect is rejected unless it has its default."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import pytest

from cluster.ignored_settings import reject_ignored


@dataclass(frozen=True)
class Inner:
    size: int = 1


@dataclass(frozen=True)
class Settings:
    count: int = 3
    inner: Inner = field(default_factory=Inner)


def test_defaults_are_accepted() -> None:
    reject_ignored(Settings(), "count", "inner", path="execution", reason="nothing uses them")


@pytest.mark.parametrize(
    ("settings", "path", "message"),
    [
        (Settings(count=4), "execution", "execution.count: 4 would have no effect, because it is off; remove it"),
        (Settings(count=0), "", "count: 0 would have no effect, because it is off; remove it"),
        (Settings(inner=Inner(2)), "", "inner: this setting would have no effect, because it is off; remove it"),
    ],
)
def test_another_value_is_rejected_by_name(settings: Settings, path: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        reject_ignored(settings, "count", "inner", path=path, reason="it is off")
