"""Lists the files that paths and glob patterns match, on any location that fsspec can read."""

import fnmatch
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any, cast

import fsspec
import fsspec.config

from cluster.credentials import reject_credentials
from cluster.retry import with_retries

_LOCAL_PREFIXES = ("file://", "local://", "file:", "local:")


def local_path(url: str) -> str | None:
    """Return the path in a URL that points to the local disk. Returns None for a URL that points elsewhere.

    A local URL is a plain path or starts with one of `_LOCAL_PREFIXES`. In a chained URL such as
    `zip://member::file:///x.zip` the last part decides. The path is returned as it is written, not made absolute.
    """
    last_part = url.rpartition("::")[2]
    prefix = next((prefix for prefix in _LOCAL_PREFIXES if last_part.startswith(prefix)), "")
    return None if "://" in last_part and not prefix else last_part.removeprefix(prefix)


def absolute_url(url: str) -> str:
    """Make the path of a local URL absolute, so that processes with another working directory can use it.

    Other URLs are returned unchanged.
    """
    path = local_path(url)
    return url if path is None else url.removesuffix(path) + os.path.abspath(os.path.expanduser(path))


def list_files(patterns: list[str]) -> list[str]:
    """Return the URLs of all files that match the glob patterns, sorted within each pattern.

    Patterns may be any fsspec URL, including chained URLs such as `zip://member::file://x.whl`. In the pattern of an
    archive's members, `*` also matches slashes. Brackets in a folder or file that exists are part of its name. Raises
    ValueError when a pattern matches no file, names a damaged archive, or contains credentials.
    """
    return [url for url, _ in list_files_with_sizes(patterns)]


def list_files_with_sizes(patterns: list[str]) -> list[tuple[str, int | None]]:
    """Return (URL, size in bytes) of the files that `list_files` returns. The size is None when it is not known."""
    files: list[tuple[str, int | None]] = []
    for pattern in patterns:
        reject_credentials(pattern)
        try:
            matched = _expand_pattern(pattern)
        except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
            raise ValueError(
                f"{pattern!r}: this file is damaged or is not an archive ({error}); download it again"
            ) from error
        if not matched:
            raise ValueError(
                f"{pattern!r} matches no file; check the path (relative paths start at the working directory)"
            )
        files.extend(matched)
    return files


def _expand_pattern(pattern: str) -> list[tuple[str, int | None]]:
    """Return (URL, size in bytes) of the files that one pattern matches, sorted by archive and by path.

    In a chained URL the archive part may be a pattern too, such as `zip://*.jsonl::file://*.zip`.
    """
    member_url, separator, archive_pattern = pattern.partition("::")
    if not separator:
        fs, path = fsspec.core.url_to_fs(pattern)
        fs.invalidate_cache()
        path = _escape_literal_brackets(path, lambda part: with_retries(fs.exists, part))
        entries = cast(dict[str, dict[str, Any]], with_retries(fs.glob, path, detail=True))
        return [
            (fs.unstrip_protocol(name) if "://" in pattern else name, info["size"])
            for name, info in sorted(entries.items())
            if info["type"] == "file" or (info["type"] != "directory" and fs.isfile(name))  # includes links to files
        ]
    urls: list[tuple[str, int | None]] = []
    scheme, _, member_pattern = member_url.partition("://")
    for archive, _ in _expand_pattern(archive_pattern):
        archive_url = archive if "://" in archive else f"file://{os.path.abspath(archive)}"
        fs, _ = with_retries(fsspec.core.url_to_fs, f"{scheme}://::{archive_url}")
        entries = cast(dict[str, dict[str, Any]], fs.find("", detail=True))
        sizes = {str(name).lstrip("/"): info["size"] for name, info in entries.items()}
        names = {*sizes, *(str(parent) for name in sizes for parent in PurePosixPath(name).parents)}
        member_pattern = _escape_literal_brackets(member_pattern, names.__contains__)
        urls += [
            (f"{scheme}://{name}::{archive_url}", size)
            for name, size in sorted(sizes.items())
            if fnmatch.fnmatchcase(name, member_pattern)
        ]
    return urls


def _escape_literal_brackets(path: str, exists: Callable[[str], bool]) -> str:
    """Return the glob pattern with its brackets escaped in the longest part that names an existing folder or file.

    This part begins the path and has no `*` and no `?`. Brackets in other parts are character classes.
    """
    if "[" not in path:
        return path
    components = path.split("/")
    num_literal = next((n for n, one in enumerate(components) if "*" in one or "?" in one), len(components))
    for num_components in range(num_literal, 0, -1):
        literal = "/".join(components[:num_components])
        if "[" in literal and exists(literal):
            return "/".join([literal.replace("[", "[[]"), *components[num_components:]])
    return path
