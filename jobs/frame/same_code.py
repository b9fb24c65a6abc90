"""Which code of Raymill runs: recorded in artifacts, and compared between a submitted job and its submitter."""

import hashlib
import os
from importlib.metadata import version as package_version
from pathlib import Path


def code_digest() -> str:
    """A hash over Raymill's source files, by which an artifact records the code that made it."""
    digest = hashlib.sha256()
    root = Path(__file__).parents[2]
    for package in ("actors", "cluster", "data", "jobs", "model"):
        for path in sorted((root / package).rglob("*.py")):
            digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


SUBMITTED_VERSION = "RAYMILL_SUBMITTED_VERSION"
"""Environment variable that holds, in a submitted job, the version of Raymill that submitted it."""

_SUBMITTED_CODE = "RAYMILL_SUBMITTED_CODE"


def code_variables(*, with_digest: bool = True) -> dict[str, str]:
    """Environment variables for a job, with which `require_same_code` recognizes the Raymill that submitted it.

    A job that is sent at once must run the same sources, hence the digest. A manifest is a file that is kept, and its
    image may be built from another checkout of the same version, so there only the version must agree.
    """
    digest = {_SUBMITTED_CODE: code_digest()} if with_digest else {}
    return {SUBMITTED_VERSION: package_version("raymill"), **digest}


def require_same_code() -> None:
    """Raises ValueError in a job that runs another version or other sources of Raymill than those that submitted it."""
    submitted_version, this_version = os.environ.get(SUBMITTED_VERSION), package_version("raymill")
    submitted_code = os.environ.get(_SUBMITTED_CODE)
    if submitted_version and submitted_version != this_version:
        raise ValueError(
            f"submitted by raymill {submitted_version}, but the cluster runs {this_version}; "
            "install the same version on both"
        )
    if submitted_code and submitted_code != (this_code := code_digest()):
        raise ValueError(
            f"submitted by raymill {submitted_version} with sources {submitted_code[:12]}, but the cluster's raymill "
            f"{this_version} has sources {this_code[:12]}; install the same sources on both"
        )
