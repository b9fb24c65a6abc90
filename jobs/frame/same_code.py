"""Identifies the version and the source files of Raymill that run.

A submitted job compares its version and source files with those of the command that submitted the job. Artifacts
record a hash of the source files.
"""

import hashlib
import os
from importlib.metadata import version as package_version
from pathlib import Path


def code_digest() -> str:
    """Return a hash of Raymill's source files."""
    digest = hashlib.sha256()
    root = Path(__file__).parents[2]
    for package in ("actors", "cluster", "data", "jobs", "model"):
        for path in sorted((root / package).rglob("*.py")):
            digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


SUBMITTED_VERSION_VARIABLE = "RAYMILL_SUBMITTED_VERSION"
"""Name of the environment variable that tells a submitted job which version of Raymill submitted it."""

_SUBMITTED_CODE = "RAYMILL_SUBMITTED_CODE"
"""Name of the environment variable that tells a submitted job the `code_digest` of the Raymill that submitted it."""


def submission_variables(*, with_digest: bool = True) -> dict[str, str]:
    """Return environment variables for a job: name -> value. `require_same_code` reads them in the submitted job.

    `raymill submit` includes the digest: the job must run the same source files. `raymill manifest` leaves the digest
    out, because the image may be built later from different source files of the same version.
    """
    digest = {_SUBMITTED_CODE: code_digest()} if with_digest else {}
    return {SUBMITTED_VERSION_VARIABLE: package_version("raymill"), **digest}


def require_same_code() -> None:
    """Raises ValueError in a submitted job whose Raymill differs from the Raymill that submitted the job.

    Compares the versions, and also the source files if the job has the environment variable with their digest. Does
    nothing in a process that is not a submitted job.
    """
    submitted_version, this_version = os.environ.get(SUBMITTED_VERSION_VARIABLE), package_version("raymill")
    submitted_code = os.environ.get(_SUBMITTED_CODE)
    if submitted_version and submitted_version != this_version:
        raise ValueError(
            f"the job was submitted by raymill {submitted_version}, but the cluster runs raymill {this_version}; "
            "install the same version on both"
        )
    if submitted_code and submitted_code != (this_code := code_digest()):
        raise ValueError(
            f"the job was submitted by raymill {submitted_version} with source files {submitted_code[:12]}, but the "
            f"cluster's raymill {this_version} has source files {this_code[:12]}; install the same source files on both"
        )
