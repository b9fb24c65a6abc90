"""Cleaning steps: each is a pure function of a batch of texts and of its parameters.

Each step's module holds the frozen dataclass of its parameters (with a `check`) and the function of the same name;
`data/cleaning/recipe.py` lists them by their names in the config.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Outcome(NamedTuple):
    """The result of a step on a batch of texts."""

    texts: list[str]
    reasons: list[str | None]
    """Why a text is dropped (`step/rule`); None keeps it."""
    counts: Mapping[str, int] = {}
    """How often something was changed (`step/change`)."""
    metadata: list[dict[str, Any]] | None = None
    """What the step adds to the metadata of each text's document; None where it adds nothing."""


def judged(texts: list[str], judge: Callable[[str], str | None]) -> Outcome:
    """The outcome of a step that changes no text; `judge` returns the reason why a text is dropped, or None."""
    return Outcome(texts, [judge(text) for text in texts])


def check_share(where: str, share: float) -> None:
    """Raise ValueError for a share outside [0, 1]."""
    if not 0 <= share <= 1:
        raise ValueError(f"{where}: {share} must be between 0 and 1")


def check_shares(where: str, **shares: float | None) -> None:
    """Raise ValueError for a share outside [0, 1] by its name below `where`; None sets no bound."""
    for name, share in shares.items():
        if share is not None:
            check_share(f"{where}.{name}", share)


def check_least(where: str, number: float, least: float) -> None:
    """Raise ValueError for a number below `least`."""
    if number < least:
        raise ValueError(f"{where}: {number} must be at least {least}")


def check_range(where: str, name: str, low: float | None, high: float | None) -> None:
    """Raise ValueError for a `min_{name}` below 0 or above `max_{name}`."""
    check_least(f"{where}.min_{name}", low or 0, 0)
    if high is not None and high < (low or 0):
        raise ValueError(f"{where}.max_{name}: {high} must be at least min_{name} ({low or 0}); null sets no bound")


def is_above(number: float, bound: float | None) -> bool:
    """Whether the number is above the bound; None sets no bound."""
    return bound is not None and number > bound
