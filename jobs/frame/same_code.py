"""Which code made an artifact, and whether a job runs the code that it was submitted by."""

import hashlib
import os
from importlib.metadata import version as package_version
from pathlib import Path


def code_digest() -> str:
    """A hash over Raymill's own sources, to tell afterwards which code made an artifact."""
    digest = hashlib.sha256()
    root = Path(__file__).parents[2]
    for package in ("actors", "cluster", "data", "jobs", "model"):
        for path in sorted((root / package).rglob("*.py")):
            digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


SUBMITTED_VERSION = "RAYMILL_SUBMITTED_VERSION"
"""The variable in which a job finds the version of Raymill that submitted it."""

_SUBMITTED_CODE = "RAYMILL_SUBMITTED_CODE"


def code_variables(*, with_digest: bool = True) -> dict[str, str]:
    """The variables by which `require_same_code` knows, in a job, the Raymill that has submitted it.

    With the digest of its sources for a job that is sent at once. A manifest is a file that is kept, and its image is
    built from any checkout of the version, so there the version alone must agree.
    """
    digest = {_SUBMITTED_CODE: code_digest()} if with_digest else {}
    return {SUBMITTED_VERSION: package_version("raymill"), **digest}


def require_same_code() -> None:
    """Raises ValueError when this process was submitted by another Raymill than it runs."""
    theirs, ours = os.environ.get(SUBMITTED_VERSION), package_version("raymill")
    code, own_code = os.environ.get(_SUBMITTED_CODE), code_digest()
    if theirs and theirs != ours:
        raise ValueError(
            f"submitted by raymill {theirs}, but the cluster runs {ours}; install the same version on both"
        )
    if code and code != own_code:
        raise ValueError(
            f"submitted by raymill {theirs} with sources {code[:12]}, but the cluster's raymill {ours} has sources "
            f"{own_code[:12]}; install the same sources on both"
        )
