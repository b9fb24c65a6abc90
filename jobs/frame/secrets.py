"""Rejects config values that look like secrets, because configs are written into the records of artifacts."""

import re
from collections.abc import Mapping
from typing import Any

from cluster.credentials import reject_credentials

_SECRET_VALUES = (
    re.compile(r"\bAKIA[0-9A-Z]{16}\b"),
    re.compile(r"\bsk-[A-Za-z0-9_-]{20,}"),
    re.compile(r"\bhf_[A-Za-z0-9]{30,}"),
    re.compile(r"\bgh[pousr]_[A-Za-z0-9]{30,}"),
    re.compile(r"\bwandb_v\d_[A-Za-z0-9_]{20,}"),
    re.compile(r"^[0-9a-f]{40}$"),  # a W&B key of the older format
)
_SECRET_FIELD_NAME = re.compile(r"(api_?key|secret|password|passwd|access_?key|auth_?token)$", re.IGNORECASE)
_SECRET_VARIABLE_NAME = re.compile(
    r"(^|_)(API_?)?(KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|PWD|PAT)(_|$)|ACCESS_KEY"
)


def reject_secrets(value: Any, label: str, path: str = "") -> None:
    """Raises ValueError if a value looks like a secret, or if its field has a name such as `api_key` or `password`.

    If `value` is a mapping or a list, every value in it is checked, at any depth. `path` is the path of `value` in the
    config, or empty for the config itself. The error message begins with `label` and does not contain the secret.
    """
    if isinstance(value, Mapping):
        for key, item in value.items():
            item_path = f"{path}.{key}" if path else str(key)
            if _SECRET_FIELD_NAME.search(str(key)) and isinstance(item, str):
                raise ValueError(
                    f"{label}: {item_path} looks like a secret; set it as an environment variable, never in a config"
                )
            reject_secrets(item, label, item_path)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            reject_secrets(item, label, f"{path}[{index}]")
    elif isinstance(value, str):
        if any(pattern.search(value) for pattern in _SECRET_VALUES):
            raise ValueError(
                f"{label}: {path} has a value that looks like a secret; set it as an environment variable, never in a "
                "config"
            )
        try:
            reject_credentials(value)
        except ValueError as error:
            raise ValueError(f"{label}: {path}: {error}") from error


def is_secret_variable(name: str) -> bool:
    """Return whether an environment variable with this name is likely to contain a secret."""
    return _SECRET_VARIABLE_NAME.search(name.upper()) is not None
