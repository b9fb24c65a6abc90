"""Typed values as plain ones, which JSON holds, and back: what tasks, answers, configs and records are stored by.

A dataclass becomes an object, a named tuple an array, as does any tuple.
"""

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, get_args, get_origin

T = TypeVar("T")


def to_plain(value: Any) -> Any:
    """The value as dicts, lists and scalars."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    return value


def from_plain(kind: type[T], value: Any) -> T:
    """The value of type `kind` that `to_plain` gave `value`, which may have been through JSON (all keys strings) since.

    Raises ValueError for what no value of that type becomes.
    """
    return typing.cast(T, _typed(kind, value))


def _typed(kind: Any, value: Any) -> Any:
    origin, inside = get_origin(kind), get_args(kind)
    if origin in (types.UnionType, typing.Union):
        (only,) = [member for member in inside if member is not type(None)] if len(inside) == 2 else (Any,)
        return None if value is None else _typed(only, value)
    if dataclasses.is_dataclass(kind):
        return _dataclass(typing.cast(type, kind), value)
    if isinstance(kind, type) and issubclass(kind, tuple) and hasattr(kind, "_fields"):
        return _named_tuple(kind, value)
    if origin in (list, Sequence):
        return [_typed(inside[0], item) for item in _expect(list | tuple, kind, value)]
    if origin is tuple:
        items = _expect(list | tuple, kind, value)
        kinds = [inside[0]] * len(items) if inside[1:] == (...,) else inside
        return tuple(_typed(member, item) for member, item in zip(kinds, items, strict=True))
    if origin in (dict, Mapping):
        items = _expect(Mapping, kind, value).items()
        return {(int(key) if inside[0] is int else key): _typed(inside[1], item) for key, item in items}
    if kind in (bool, int, float, str) and isinstance(value, list | tuple | Mapping):
        raise ValueError(f"expected {kind.__name__}, found {type(value).__name__}")
    return value


def _dataclass(kind: type, value: Any) -> Any:
    annotations = typing.get_type_hints(kind)
    values = _expect(Mapping, kind, value)
    try:
        return kind(**{name: _typed(annotations[name], item) for name, item in values.items()})
    except (KeyError, TypeError) as error:  # a field too many or one too few
        raise ValueError(
            f"{kind.__name__}: its fields are {', '.join(annotations)}, not {', '.join(values)}"
        ) from error


def _named_tuple(kind: Any, value: Any) -> Any:
    annotations = typing.get_type_hints(kind)
    items = _expect(list | tuple, kind, value)
    if len(items) != len(kind._fields):
        raise ValueError(f"{kind.__name__}: its fields are {', '.join(kind._fields)}, not {len(items)} values")
    return kind(*(_typed(annotations[name], item) for name, item in zip(kind._fields, items, strict=True)))


def _expect(container: Any, kind: Any, value: Any) -> Any:
    if not isinstance(value, container):
        raise ValueError(f"expected {kind}, found {type(value).__name__}")
    return value
