"""What all cleaning steps share: the outcome of a step, and checks of its settings.

A cleaning step is a function of a batch of texts and of the step's settings. Each step has a module with a frozen
dataclass for the settings and a function that is named like the step. The method `check` of the dataclass raises
ValueError when a setting is wrong. `data/cleaning/recipe.py` maps the names that a config uses to these dataclasses and
functions. The steps `exact_duplicates` and `near_duplicates` compare the documents of the whole corpus. They have only
dataclasses here (`data/cleaning/duplicates.py`).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple


class Outcome(NamedTuple):
    """The result of a step for a batch of texts."""

    texts: list[str]
    """The texts after the step, in the order of the batch. The text of a dropped document is ignored."""
    reasons: list[str | None]
    """For each text the reason why it is dropped, as `STEP/RULE`, or None if it is kept."""
    counts: Mapping[str, int] = {}
    """How often the step made each kind of change. The keys are `STEP/CHANGE`. The changed documents and characters are
    not among them: `data.cleaning.recipe.clean` counts them for every step."""
    metadata: list[dict[str, Any]] | None = None
    """For each text the entries that the step adds to the document's metadata. None if the step adds nothing."""


def filter_outcome(texts: list[str], drop_reason: Callable[[str], str | None]) -> Outcome:
    """Return the outcome of a step that only drops texts and does not change them.

    `drop_reason` returns the reason why a text is dropped, or None if the text is kept.
    """
    return Outcome(texts, [drop_reason(text) for text in texts])


def filter_by_language(
    texts: list[str], languages: Sequence[str | None] | None, drop_reason: Callable[[str, str | None], str | None]
) -> Outcome:
    """Return the outcome of a step that only drops texts, by a rule that depends on their languages.

    `languages` has the code of each text's language, and is None if no language is known.
    """
    return Outcome(texts, list(map(drop_reason, texts, languages or [None] * len(texts))))


# The checks of settings. `field_path` is the path in the config, such as `steps[2].length` for the settings of a step
# and `steps[2].length.min_bytes` for one of its fields.


def check_share(field_path: str, share: float) -> None:
    """Raises ValueError unless the share is between 0 and 1."""
    if not 0 <= share <= 1:
        raise ValueError(f"{field_path}: {share} must be between 0 and 1")


def check_shares(field_path: str, **shares: float | None) -> None:
    """Raises ValueError unless every share is None or between 0 and 1. Each keyword is a field below `field_path`."""
    for name, share in shares.items():
        if share is not None:
            check_share(f"{field_path}.{name}", share)


def check_at_least(field_path: str, value: float, minimum: float) -> None:
    """Raises ValueError for a value below `minimum`."""
    if value < minimum:
        raise ValueError(f"{field_path}: {value} must be at least {minimum}")


def check_range(field_path: str, name: str, low: float | None, high: float | None) -> None:
    """Raises ValueError if a minimum is below 0 or above the maximum.

    `low` is the value of the field `min_{name}` and `high` is the value of the field `max_{name}`. None sets no bound.
    """
    check_at_least(f"{field_path}.min_{name}", low or 0, 0)
    if high is not None and high < (low or 0):
        raise ValueError(
            f"{field_path}.max_{name}: {high} must be at least min_{name} ({low or 0}); null turns the maximum off"
        )


def is_above(value: float, maximum: float | None) -> bool:
    """Return whether the value is above the maximum. Nothing is above a maximum of None."""
    return maximum is not None and value > maximum
