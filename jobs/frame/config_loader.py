"""Loads configs: merges a YAML file and overrides such as `optimizer.lr=0.001` into a frozen dataclass.

Every error names the field and says what is allowed. Only this file imports omegaconf, so the rest of Raymill works
with typed objects.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, get_args, get_origin

from omegaconf import ListConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from cluster.placement import Execution
from jobs.frame.fields import config_key, field_types, user_fields
from jobs.frame.secrets import reject_secrets

T = TypeVar("T")

_RENAMED_FIELDS = {
    "batch_size": "global_batch_size",
    "validation_rows": "validation_samples",
    "partitions": "part_tasks",
    "lot_prompts": "generation_batch_prompts",
    "heldout_prompts": "held_out_prompts",
    "heldout_interval": "held_out_interval",
    "max_logprob_gap": "max_logprob_difference",
    "mean_logprob_gap": "mean_logprob_difference",
}
"""Old name of a field -> its present name. If a config contains an old name, the error message gives the present
name."""


class Override(NamedTuple):
    """One `key=value` argument of the command line."""

    key: str
    """The path of the field in the config, such as `optimizer.lr`."""
    value: str
    """The value as YAML text."""


def load_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML file and return its content as plain dictionaries and lists.

    Raises ValueError if the file is missing, is not valid YAML, or does not contain a mapping.
    """
    if not Path(path).is_file():
        raise ValueError(
            f"config {str(path)!r} is not a file; pass the path of a YAML file such as configs/tiny/pretrain.yaml"
        )
    try:
        loaded = OmegaConf.to_container(OmegaConf.load(path))
    except Exception as error:  # yaml and omegaconf raise exceptions without a common base class
        raise ValueError(f"config {path}: not readable as YAML ({error})") from error
    if not isinstance(loaded, dict):
        raise ValueError(f"config {path}: expected `field: value` lines, found a {type(loaded).__name__}")
    return typing.cast(dict[str, Any], loaded)


def parse_override(override: str) -> Override:
    """Split an argument such as `optimizer.lr=0.001` at the first `=`. Raises ValueError if it has no key or no `=`."""
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise ValueError(f"override {override!r}: expected field=value, such as optimizer.lr=0.001")
    return Override(key, value)


def build(schema: type[T], values: Mapping[str, Any], overrides: Sequence[str] = (), *, label: str = "config") -> T:
    """Build an object of the dataclass `schema` from plain `values` and `overrides`.

    An override such as `optimizer.lr=0.001` replaces a value. If two overrides set the same field, the later one is
    used.

    Raises ValueError for an unknown field (the message suggests the most similar name), a value of the wrong type, a
    missing value, or a value that looks like a secret. Each message begins with `label`, which tells the user which
    config is wrong.
    """
    plain = _merge(values, overrides, label)
    _reject_interpolation(plain, label)
    reject_secrets(plain, label)
    _check_shape(schema, plain, label, "")
    return _to_object(schema, plain, label, "")


def find_execution(config: Any) -> Execution | None:
    """Return the `execution` settings of a config, or None if the config has no field `execution`."""
    values = (getattr(config, field.name) for field in dataclasses.fields(config))
    return next((value for value in values if isinstance(value, Execution)), None)


def _merge(values: Mapping[str, Any], overrides: Sequence[str], label: str) -> dict[str, Any]:
    """Return `values` with the overrides applied, as plain dictionaries and lists."""
    merged: Any = OmegaConf.create(dict(values))
    for override in overrides:
        key = parse_override(override).key
        try:
            change = OmegaConf.from_dotlist([override])
            if _changes_shape(OmegaConf.select(merged, key), OmegaConf.select(change, key)):
                OmegaConf.update(merged, key, OmegaConf.select(change, key), merge=False)  # `_check_shape` judges it
            else:
                merged = OmegaConf.merge(merged, change)
        except Exception as error:  # yaml and omegaconf raise exceptions without a common base class
            reason = str(error).splitlines()[0]
            raise ValueError(f"{label}: override {override!r} cannot be merged ({reason}); check its value") from error
    return typing.cast(dict[str, Any], OmegaConf.to_container(merged))


def _changes_shape(before: Any, after: Any) -> bool:
    """Return whether two values have different shapes, so that they cannot be merged.

    Null and a missing value have no shape.
    """
    return before is not None and after is not None and _shape_of_value(before) != _shape_of_value(after)


def _reject_interpolation(value: Any, label: str, path: str = "") -> None:
    """Raises ValueError if the text `${` occurs in any value, at any depth.

    The reason is that omegaconf would interpolate such a value, and this could copy a secret from the environment into
    the recorded config. `path` is the path of `value` in the config, or empty for the config itself.
    """
    if isinstance(value, (Mapping, list)):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, item in items:
            _reject_interpolation(item, label, f"{path}.{key}" if path else str(key))
    elif isinstance(value, str) and "${" in value:
        raise ValueError(
            f"{label}: {path}: {value!r} is an interpolation, which configs do not support; write the value itself"
        )


def _check_shape(annotation: Any, value: Any, label: str, path: str) -> None:
    """Raises ValueError for an unknown field, and for a value of a wrong shape, such as a mapping instead of a list.

    `value` is compared with its type `annotation` at any depth. `path` is the path of `value` in the config, such as
    `sources[0].path`, or empty for the config itself. The types of single values are not checked here, and neither is
    null, because the errors that omegaconf raises for them name the field.
    """
    annotation = _without_null(annotation)
    if value is None or annotation is Any:
        return
    actual = _shape_of_value(value)
    if get_origin(annotation) is types.UnionType and actual in map(_shape_of_type, get_args(annotation)):
        annotation = next(option for option in get_args(annotation) if _shape_of_type(option) == actual)
    required = _shape_of_type(annotation)
    if actual != required:
        remedy = {"list": "[value]", "mapping": "{name: value}", "single value": "one value without brackets"}[required]
        if dataclasses.is_dataclass(annotation) and value in [field.name for field in dataclasses.fields(annotation)]:
            remedy = f"{{{value}: {{}}}}"  # such as a cleaning step without settings
        raise ValueError(f"{label}: {path}: must be a {required}, but is a {actual}; write {remedy}")
    if dataclasses.is_dataclass(annotation):
        _check_fields(typing.cast(type, annotation), value, label, f"{path}." if path else "")
    elif (item_type := _item_type(annotation)) is not None:
        _check_items(item_type, value, label, path)


def _check_fields(schema: type, values: Mapping[str, Any], label: str, prefix: str) -> None:
    """Raises ValueError for a key of `values` that is not a field of `schema`, and for the errors of `_check_shape`.

    `prefix` is the path of `values` in the config, ending in a dot, or empty for the config itself.
    """
    annotations = field_types(schema)
    fields = {config_key(field): field for field in user_fields(schema)}
    for key, value in values.items():
        if key not in fields:
            raise ValueError(f"{label}: {prefix}{key} is not a field; {_suggest_name(str(key), list(fields), prefix)}")
        _check_shape(annotations[fields[key].name], value, label, f"{prefix}{key}")


def _check_items(item_type: Any, items: Mapping[str, Any] | list[Any], label: str, path: str) -> None:
    """Raises ValueError for an invalid item of a list or of a mapping. `path` is the path of `items` in the config."""
    if isinstance(items, Mapping):
        item_by_path = {f"{path}.{key}": item for key, item in items.items()}
    else:
        item_by_path = {f"{path}[{index}]": item for index, item in enumerate(items)}
    for item_path, item in item_by_path.items():
        _check_shape(item_type, item, label, item_path)
        if dataclasses.is_dataclass(item_type) and item is not None:
            # Converted only to raise an error that names the item; omegaconf's own would not.
            _to_object(typing.cast(type, item_type), item, label, f"{item_path}.")


def _without_null(annotation: Any) -> Any:
    """Return X for the annotation `X | None`, and any other annotation unchanged."""
    if get_origin(annotation) in (types.UnionType, typing.Union) and types.NoneType in get_args(annotation):
        return next(option for option in get_args(annotation) if option is not types.NoneType)
    return annotation


def _shape_of_type(annotation: Any) -> str:
    """Return what a value of this type is in YAML: `list`, `mapping` or `single value`."""
    container = get_origin(annotation) or annotation
    if container in (list, tuple):
        return "list"
    return "mapping" if container is dict or dataclasses.is_dataclass(container) else "single value"


def _item_type(annotation: Any) -> Any | None:
    """Return X for `list[X]`, `dict[str, X]` and `tuple[X, ...]`. None for any other type."""
    container, arguments = get_origin(annotation), get_args(annotation)
    if container is list or (container is tuple and arguments[-1:] == (...,)):
        return arguments[0]
    return arguments[1] if container is dict else None


def _shape_of_value(value: Any) -> str:
    """Return whether a value, which may be one of omegaconf, is a `list`, a `mapping` or a `single value`."""
    if isinstance(value, (list, ListConfig)):
        return "list"
    return "mapping" if isinstance(value, Mapping) else "single value"


def _suggest_name(key: str, names: Sequence[str], prefix: str) -> str:
    """Return the part of an error message that says which field name to write instead of `key`."""
    if (renamed := _RENAMED_FIELDS.get(key)) in names:
        return f"it is called {prefix}{renamed} now"
    nearest = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
    return f"did you mean {prefix}{nearest[0]}?" if nearest else f"the fields here are: {', '.join(names)}"


def _to_object(schema: type[T], plain: Mapping[str, Any], label: str, prefix: str) -> T:
    """Convert plain values to an object of `schema`. Raises ValueError for a missing value or a wrong type.

    `prefix` is the path of `plain` in the config, ending in a dot, or empty for the config itself.
    """
    try:
        built = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), _by_field_name(schema, plain)))
    except MissingMandatoryValue as error:
        name = f"{prefix}{error.full_key or error.key}"
        raise ValueError(f"{label}: {name} is missing and has no default; add it") from error
    except OmegaConfBaseException as error:
        message = str(error.msg or error).splitlines()[0]
        raise ValueError(f"{label}: {prefix}{error.full_key or error.key}: {message}") from error
    return typing.cast(T, built)


def _by_field_name(annotation: Any, value: Any) -> Any:
    """Return a plain value of a type with the keys of YAML (`config_key`) replaced by the names of the fields."""
    annotation = _without_null(annotation)
    if isinstance(value, Mapping) and dataclasses.is_dataclass(annotation):
        types_by_name = field_types(typing.cast(type, annotation))
        names = {config_key(field): field.name for field in dataclasses.fields(annotation)}
        return {names[key]: _by_field_name(types_by_name[names[key]], item) for key, item in value.items()}
    item_type = _item_type(annotation)
    if item_type is None or value is None:
        return value
    if isinstance(value, Mapping):
        return {key: _by_field_name(item_type, item) for key, item in value.items()}
    return [_by_field_name(item_type, item) for item in value]
