"""Paths and globs on any fsspec location, expanded to URLs of files."""

import fnmatch
import os
import tarfile
import zipfile
from typing import Any, cast

import fsspec
import fsspec.config

from cluster.credentials import reject_credentials
from cluster.retry import with_retries

_LOCAL = ("file://", "local://", "file:", "local:")


def local_path(url: str) -> str | None:
    """The local path that a URL ends in, as it is written; None for a URL of another store.

    Local are plain paths and those after `file://`, also as the last link of a chain (`zip://member::file:///x.zip`).
    """
    link = url.rpartition("::")[2]
    prefix = next((prefix for prefix in _LOCAL if link.startswith(prefix)), "")
    return None if "://" in link and not prefix else link.removeprefix(prefix)


def absolute_url(url: str) -> str:
    """The URL with its local path made absolute, for processes with another working directory; others unchanged."""
    path = local_path(url)
    return url if path is None else url.removesuffix(path) + os.path.abspath(os.path.expanduser(path))


def list_files(patterns: list[str]) -> list[str]:
    """Sorted URLs of all files that the globs match, on any fsspec URL (also `zip://member::file://x.whl`).

    Raises ValueError for a pattern that matches nothing, whose archive cannot be read, or that carries credentials.
    """
    return [url for url, _ in list_files_with_sizes(patterns)]


def list_files_with_sizes(patterns: list[str]) -> list[tuple[str, int | None]]:
    """`list_files`, each URL with its size in bytes; None where the listing does not tell."""
    files: list[tuple[str, int | None]] = []
    for pattern in patterns:
        reject_credentials(pattern)
        try:
            matched = _expand_one(pattern)
        except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
            raise ValueError(
                f"{pattern!r}: its archive is damaged or no archive at all ({error}); fetch it again"
            ) from error
        if not matched:
            raise ValueError(
                f"{pattern!r} matches no file; check the path (relative ones start at the working directory)"
            )
        files.extend(matched)
    return files


def _expand_one(pattern: str) -> list[tuple[str, int | None]]:
    """Sorted (URL, size) of the files that one pattern matches; the archives of a chain may be a pattern too."""
    member, chain, container = pattern.partition("::")
    if not chain:
        fs, path = fsspec.core.url_to_fs(pattern)
        fs.invalidate_cache()
        entries = cast(dict[str, dict[str, Any]], with_retries(fs.glob, path, detail=True))
        return [
            (fs.unstrip_protocol(name) if "://" in pattern else name, info["size"])
            for name, info in sorted(entries.items())
            if info["type"] == "file" or (info["type"] != "directory" and fs.isfile(name))  # a link to a file
        ]
    urls: list[tuple[str, int | None]] = []
    scheme, _, inner = member.partition("://")
    for outer, _ in _expand_one(container):
        outer_url = outer if "://" in outer else f"file://{os.path.abspath(outer)}"
        fs, _ = with_retries(fsspec.core.url_to_fs, f"{scheme}://::{outer_url}")
        entries = cast(dict[str, dict[str, Any]], fs.find("", detail=True))
        sizes = {str(name).lstrip("/"): info["size"] for name, info in entries.items()}
        urls += [
            (f"{scheme}://{name}::{outer_url}", size)
            for name, size in sorted(sizes.items())
            if fnmatch.fnmatchcase(name, inner)
        ]
    return urls
