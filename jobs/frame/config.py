"""Typed configuration: YAML and `a.b=c` overrides merged into frozen dataclasses, every mistake named before work.

The only file that imports omegaconf. Past this loader there are only typed objects.
"""

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from cluster.credentials import refuse_credentials
from jobs.frame.fields import is_user_code

T = TypeVar("T")

_SECRET_VALUES = (
    re.compile(r"\bAKIA[0-9A-Z]{16}\b"),
    re.compile(r"\bsk-[A-Za-z0-9_-]{20,}"),
    re.compile(r"\bhf_[A-Za-z0-9]{30,}"),
    re.compile(r"\bgh[pousr]_[A-Za-z0-9]{30,}"),
    re.compile(r"\bwandb_v\d_[A-Za-z0-9_]{20,}"),
    re.compile(r"^[0-9a-f]{40}$"),  # a W&B key of the older kind
)
# The marks that input_artifact and source_files of fields.py put on a field.
_KNOWN_BY_CONTENT = ("kinds", "source")
_SECRET_NAMES = re.compile(r"(api_?key|secret|password|passwd|access_?key|auth_?token)$", re.IGNORECASE)


def load_yaml(path: str | Path) -> dict[str, Any]:
    """The plain mapping in a YAML file. Raises ValueError for no file, broken YAML, or no mapping."""
    if not Path(path).is_file():
        raise ValueError(
            f"config {str(path)!r} is not a file; give the path of a YAML file such as configs/tiny/pretrain.yaml"
        )
    try:
        loaded = OmegaConf.to_container(OmegaConf.load(path))
    except Exception as error:  # yaml and omegaconf raise unrelated types; all mean an unreadable file
        raise ValueError(f"config {path}: not readable as YAML ({error})") from error
    if not isinstance(loaded, dict):
        raise ValueError(f"config {path}: expected `field: value` lines, found a {type(loaded).__name__}")
    return typing.cast(dict[str, Any], loaded)


def parse_override(override: str) -> tuple[str, str]:
    """`a.b=c` as (`a.b`, `c`). Raises ValueError for another form."""
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise ValueError(f"override {override!r}: expected field=value, such as optimizer.lr=0.001")
    return key, value


def build(schema: type[T], values: Mapping[str, Any], overrides: Sequence[str] = (), *, where: str = "config") -> T:
    """A `schema` object from the plain `values` and `overrides` (each `a.b=c`; the last one wins).

    Raises ValueError naming the field, the value and the rule: unknown key (with the nearest right name),
    wrong type, missing value, or a secret.
    """
    plain = _merge(values, overrides, where)
    _refuse_interpolation(plain, where)
    _refuse_secrets(plain, where)
    _refuse_unknown_keys(schema, plain, where, "")
    return _to_object(schema, plain, where, "")


def _merge(values: Mapping[str, Any], overrides: Sequence[str], where: str) -> dict[str, Any]:
    merged: Any = OmegaConf.create(dict(values))
    for override in overrides:
        parse_override(override)
        try:
            merged = OmegaConf.merge(merged, OmegaConf.from_dotlist([override]))
        except Exception as error:  # yaml and omegaconf raise unrelated types; all mean an override that does not fit
            reason = str(error).splitlines()[0]
            raise ValueError(f"{where}: override {override!r} cannot be merged ({reason}); check its value") from error
    return typing.cast(dict[str, Any], OmegaConf.to_container(merged))


def _to_object(schema: type[T], plain: Mapping[str, Any], where: str, prefix: str) -> T:
    try:
        built = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), plain))
    except MissingMandatoryValue as error:
        name = f"{prefix}{error.full_key or error.key}"
        raise ValueError(f"{where}: {name} is missing and has no default; add it") from error
    except OmegaConfBaseException as error:
        message = str(error.msg or error).splitlines()[0]
        if "is not a ListConfig" in message:
            message = "one value is given where a list is needed; write [value]"
        raise ValueError(f"{where}: {prefix}{error.full_key or error.key}: {message}") from error
    return typing.cast(T, built)


def changed_fields(config: Any) -> dict[str, Any]:
    """The fields of a dataclass object that differ from their defaults, nested ones likewise, without `execution`.

    This is what enters an artifact's identity: adding a field with a default leaves every old identity as it was.
    Inputs and sources are left out too: what they hold is identity, not where it lies or how it is written.
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
        # A nested config at its defaults is the default; but where the default is None, `step: {}` says something.
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


def _dataclass_in(annotation: Any) -> type | None:
    """The dataclass that an annotation holds: itself, `X | None`, `list[X]` or `dict[str, X]`."""
    if dataclasses.is_dataclass(annotation):
        return typing.cast(type, annotation)
    if get_origin(annotation) in (list, dict, tuple, types.UnionType, typing.Union):
        return next((found for found in map(_dataclass_in, get_args(annotation)) if found), None)
    return None


def _refuse_unknown_keys(schema: type, values: Mapping[str, Any], where: str, prefix: str) -> None:
    annotations = typing.get_type_hints(schema)
    names = [field.name for field in dataclasses.fields(schema)]
    for key, value in values.items():
        if key not in names:
            close = difflib.get_close_matches(str(key), names, n=1, cutoff=0.5)
            hint = f"did you mean {prefix}{close[0]}?" if close else f"the fields here are: {', '.join(names)}"
            raise ValueError(f"{where}: {prefix}{key} is not a field; {hint}")
        inner = _dataclass_in(annotations[key])
        if inner is None:
            continue
        nested_in_mapping = get_origin(annotations[key]) is dict and isinstance(value, Mapping)
        items = value.items() if nested_in_mapping else enumerate(value) if isinstance(value, list) else [(None, value)]
        for index, item in items:
            if isinstance(item, Mapping):
                at = f"{prefix}{key}." if index is None else f"{prefix}{key}[{index}]."
                _refuse_unknown_keys(inner, item, where, at)
                if index is not None:  # inside a list or mapping OmegaConf's own message loses the path
                    _to_object(inner, item, where, at)


def _refuse_interpolation(value: Any, where: str, path: str = "") -> None:
    """Raise ValueError for `${…}`: it could bring a secret of the environment into a config, which is recorded."""
    if isinstance(value, (Mapping, list)):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, item in items:
            _refuse_interpolation(item, where, f"{path}.{key}" if path else str(key))
    elif isinstance(value, str) and "${" in value:
        raise ValueError(f"{where}: {path}: {value!r} is an interpolation, which configs do not have; write the value")


def _refuse_secrets(value: Any, where: str, path: str = "") -> None:
    """Raise ValueError for a value that is or names a secret; the message never repeats it."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            at = f"{path}.{key}" if path else str(key)
            if _SECRET_NAMES.search(str(key)) and isinstance(item, str):
                raise ValueError(f"{where}: {at} looks like a secret; set it in the environment, never in a config")
            _refuse_secrets(item, where, at)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _refuse_secrets(item, where, f"{path}[{index}]")
    elif isinstance(value, str):
        if any(pattern.search(value) for pattern in _SECRET_VALUES):
            raise ValueError(
                f"{where}: {path} holds what looks like a secret; set it in the environment, never in a config"
            )
        try:
            refuse_credentials(value)
        except ValueError as error:
            raise ValueError(f"{where}: {path}: {error}") from error
