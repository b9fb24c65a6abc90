"""Typed values survive a round trip through JSON, and values of another type are rejected."""

import json
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest

from cluster.plain import from_plain, to_plain


class Place(NamedTuple):
    file: str
    offset: int


@dataclass(frozen=True)
class Answer:
    places: list[Place]
    counts: dict[str, int] = field(default_factory=dict)
    shares: dict[int, float] = field(default_factory=dict)
    pair: tuple[int, float] = (0, 0.0)
    names: tuple[str, ...] = ()
    nested: "Answer | None" = None
    anything: Any = None


WHOLE = Answer(
    [Place("a", 1)], {"x": 2}, {3: 0.5}, (4, 0.25), ("n", "m"), Answer([], anything={"as": ["it", "is"]}), [1]
)


def test_a_value_survives_a_round_trip_through_json() -> None:
    assert from_plain(Answer, json.loads(json.dumps(to_plain(WHOLE)))) == WHOLE
    assert from_plain(list[Place], [["b", 2]]) == [Place("b", 2)]
    assert from_plain(int, to_plain(7)) == 7


def test_a_value_of_a_union_is_returned_unchanged() -> None:
    assert from_plain(int | str, "a") == "a"  # pyright: ignore[reportArgumentType]
    assert from_plain(Place | int | None, ["a", 1]) == ["a", 1]  # pyright: ignore[reportArgumentType]
    assert from_plain(Place | None, ["a", 1]) == Place("a", 1)  # pyright: ignore[reportArgumentType]


def test_a_named_tuple_becomes_a_list() -> None:
    assert to_plain(WHOLE)["places"] == [["a", 1]]


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        (Answer, {"places": [], "color": 1}, "Answer: expected the fields places, .*, found places, color"),
        (Answer, {}, "Answer: expected the fields places, "),
        (Answer, [1], "expected .*Answer.*, found list"),
        (Place, ["a"], "Place: expected one value for each of the fields file, offset, found 1 values"),
        (list[int], {"a": 1}, "found dict"),
        (int, {"edges": 1}, "expected int, found dict"),
    ],
)
def test_values_of_another_type_are_rejected(kind: Any, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_plain(kind, value)
