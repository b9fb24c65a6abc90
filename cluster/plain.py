"""Converts typed values to plain values that JSON can represent, and back.

Tasks, results, configs and records are stored in this form. A dataclass becomes a dict. A tuple becomes a list, whether
it is a named tuple or not.
"""

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, get_args, get_origin

T = TypeVar("T")


def to_plain(value: Any) -> Any:
    """Convert a value to dicts, lists and scalars."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    return value


def from_plain(value_type: type[T], value: Any) -> T:
    """Convert a plain value back to `value_type`, the reverse of `to_plain`.

    `value` may have been written to JSON and read again. JSON turns all keys of dicts into strings, so keys of type int
    are converted back. Raises ValueError if `value` is not structured like a plain `value_type`: a list stands in place
    of a dict or a scalar, a field is unknown, a required field is missing. The types of scalars are not checked.
    """
    return typing.cast(T, _convert(value_type, value))


def _convert(value_type: Any, value: Any) -> Any:
    origin, arguments = get_origin(value_type), get_args(value_type)
    if origin in (types.UnionType, typing.Union):
        # Only `X | None` says which type the value has. The values of any other union are returned unchanged.
        members = [member for member in arguments if member is not type(None)]
        return value if value is None or len(members) > 1 else _convert(members[0], value)
    if dataclasses.is_dataclass(value_type):
        return _to_dataclass(typing.cast(type, value_type), value)
    if isinstance(value_type, type) and issubclass(value_type, tuple) and hasattr(value_type, "_fields"):
        return _to_named_tuple(value_type, value)
    if origin in (list, Sequence):
        return [_convert(arguments[0], item) for item in _expect(list | tuple, value_type, value)]
    if origin is tuple:
        items = _expect(list | tuple, value_type, value)
        item_types = [arguments[0]] * len(items) if arguments[1:] == (...,) else arguments
        return tuple(_convert(item_type, item) for item_type, item in zip(item_types, items, strict=True))
    if origin in (dict, Mapping):
        items = _expect(Mapping, value_type, value).items()
        return {(int(key) if arguments[0] is int else key): _convert(arguments[1], item) for key, item in items}
    if value_type in (bool, int, float, str) and isinstance(value, list | tuple | Mapping):
        raise ValueError(f"expected {value_type.__name__}, found {type(value).__name__}")
    return value


def _to_dataclass(value_type: type, value: Any) -> Any:
    field_types = typing.get_type_hints(value_type)
    values = _expect(Mapping, value_type, value)
    try:
        return value_type(**{name: _convert(field_types[name], item) for name, item in values.items()})
    except (KeyError, TypeError) as error:  # the dict has an unknown field, or a required field is missing
        raise ValueError(
            f"{value_type.__name__}: expected the fields {', '.join(field_types)}, found {', '.join(values)}"
        ) from error


def _to_named_tuple(value_type: Any, value: Any) -> Any:
    field_types = typing.get_type_hints(value_type)
    items = _expect(list | tuple, value_type, value)
    names = value_type._fields
    if len(items) != len(names):
        raise ValueError(
            f"{value_type.__name__}: expected one value for each of the fields {', '.join(names)}, found "
            f"{len(items)} values"
        )
    return value_type(*(_convert(field_types[name], item) for name, item in zip(names, items, strict=True)))


def _expect(container_type: Any, value_type: Any, value: Any) -> Any:
    """Return `value` if it is an instance of `container_type`, else raise ValueError with `value_type` in its text."""
    if not isinstance(value, container_type):
        raise ValueError(f"expected {value_type}, found {type(value).__name__}")
    return value
