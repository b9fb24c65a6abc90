"""Typed configs: YAML and `a.b=c` overrides merged into frozen dataclasses; every mistake is named before any work.

The only file that imports omegaconf. Past this loader there are only typed objects.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, get_args, get_origin

from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from cluster.placement import Execution
from jobs.frame.fields import user_fields
from jobs.frame.secrets import reject_secrets

T = TypeVar("T")

_FORMER_NAMES = {
    "batch_size": "global_batch_size",
    "validation_rows": "validation_samples",
    "lot_prompts": "generation_batch_prompts",
    "heldout_prompts": "held_out_prompts",
    "heldout_interval": "held_out_interval",
    "max_logprob_gap": "max_logprob_difference",
    "mean_logprob_gap": "mean_logprob_difference",
}
"""What a field was called in earlier configs, and what it is called now."""


class Override(NamedTuple):
    """`key=value` of the command line."""

    key: str
    """Path in the config: `optimizer.lr`."""
    value: str
    """YAML text."""


def load_yaml(path: str | Path) -> dict[str, Any]:
    """The plain mapping in a YAML file. Raises ValueError when it is missing, broken, or not a mapping."""
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


def parse_override(override: str) -> Override:
    """Key and value of `a.b=c`. Raises ValueError for any other form."""
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise ValueError(f"override {override!r}: expected field=value, such as optimizer.lr=0.001")
    return Override(key, value)


def build(schema: type[T], values: Mapping[str, Any], overrides: Sequence[str] = (), *, label: str = "config") -> T:
    """A `schema` object from plain `values` and `overrides`, each `a.b=c`; the last one wins.

    Raises ValueError naming the field, the value and the rule: an unknown key (with the nearest right name), a wrong
    type, a missing value, or a secret. `label` names the config in the message.
    """
    plain = _merge(values, overrides, label)
    _refuse_interpolation(plain, label)
    reject_secrets(plain, label)
    _refuse_unknown_keys(schema, plain, label, "")
    return _to_object(schema, plain, label, "")


def find_execution(config: Any) -> Execution | None:
    """The `execution` settings of a config; None where it has none."""
    values = (getattr(config, field.name) for field in dataclasses.fields(config))
    return next((value for value in values if isinstance(value, Execution)), None)


def _merge(values: Mapping[str, Any], overrides: Sequence[str], label: str) -> dict[str, Any]:
    merged: Any = OmegaConf.create(dict(values))
    for override in overrides:
        parse_override(override)
        try:
            merged = OmegaConf.merge(merged, OmegaConf.from_dotlist([override]))
        except Exception as error:  # yaml and omegaconf raise unrelated types; all mean an override that does not fit
            reason = str(error).splitlines()[0]
            raise ValueError(f"{label}: override {override!r} cannot be merged ({reason}); check its value") from error
    return typing.cast(dict[str, Any], OmegaConf.to_container(merged))


def _refuse_interpolation(value: Any, label: str, path: str = "") -> None:
    """Raises ValueError for `${…}`, which could copy a secret from the environment into a config that is recorded."""
    if isinstance(value, (Mapping, list)):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, item in items:
            _refuse_interpolation(item, label, f"{path}.{key}" if path else str(key))
    elif isinstance(value, str) and "${" in value:
        raise ValueError(
            f"{label}: {path}: {value!r} is an interpolation, which configs do not support; write the value"
        )


def _refuse_unknown_keys(schema: type, values: Mapping[str, Any], label: str, prefix: str) -> None:
    annotations = typing.get_type_hints(schema)
    names = [field.name for field in user_fields(schema)]
    for key, value in values.items():
        if key not in names:
            raise ValueError(f"{label}: {prefix}{key} is not a field; {_right_name(str(key), names, prefix)}")
        nested = _dataclass_in(annotations[key])
        if nested is None:
            continue
        is_mapping_of_nested = get_origin(annotations[key]) is dict and isinstance(value, Mapping)
        items = (
            value.items() if is_mapping_of_nested else enumerate(value) if isinstance(value, list) else [(None, value)]
        )
        for index, item in items:
            if isinstance(item, Mapping):
                item_prefix = f"{prefix}{key}." if index is None else f"{prefix}{key}[{index}]."
                _refuse_unknown_keys(nested, item, label, item_prefix)
                if index is not None:  # inside a list or mapping OmegaConf's own message loses the path
                    _to_object(nested, item, label, item_prefix)


def _right_name(key: str, names: Sequence[str], prefix: str) -> str:
    """What to write instead of an unknown key."""
    if (renamed := _FORMER_NAMES.get(key)) in names:
        return f"it is called {prefix}{renamed} now"
    nearest = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
    return f"did you mean {prefix}{nearest[0]}?" if nearest else f"the fields here are: {', '.join(names)}"


def _dataclass_in(annotation: Any) -> type | None:
    """The dataclass that an annotation holds: itself, `X | None`, `list[X]` or `dict[str, X]`."""
    if dataclasses.is_dataclass(annotation):
        return typing.cast(type, annotation)
    if get_origin(annotation) in (list, dict, tuple, types.UnionType, typing.Union):
        return next((nested for nested in map(_dataclass_in, get_args(annotation)) if nested), None)
    return None


def _to_object(schema: type[T], plain: Mapping[str, Any], label: str, prefix: str) -> T:
    try:
        built = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), plain))
    except MissingMandatoryValue as error:
        name = f"{prefix}{error.full_key or error.key}"
        raise ValueError(f"{label}: {name} is missing and has no default; add it") from error
    except OmegaConfBaseException as error:
        message = str(error.msg or error).splitlines()[0]
        if "is not a ListConfig" in message:
            message = "one value is given where a list is needed; write [value]"
        raise ValueError(f"{label}: {prefix}{error.full_key or error.key}: {message}") from error
    return typing.cast(T, built)
