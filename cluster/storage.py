"""A directory on any fsspec location: where artifacts, checkpoints and shards live.

Everything that Raymill writes goes through `Storage`, so that a laptop's folder and an S3 prefix behave alike:
a name becomes visible only when all of its bytes are there.
"""

import contextlib
import fnmatch
import hashlib
import json
import os
import re
import shutil
import tarfile
import tempfile
import uuid
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

_URL = re.compile(r"([a-z][a-z0-9+.-]*)://(\S*?)(?=::|\s|$)", re.IGNORECASE)  # one link of a chain a::b::c
_NO_USERS = ("http", "https", "s3", "s3a", "gs", "gcs")
"""Schemes of which no user's name belongs into a URL: what stands before the @ is a token or a key."""
_SIGNATURE = re.compile(
    r"[?&;#](x-(amz|goog)-(signature|credential|security-token)|awsaccesskeyid|sig|signature|(access_|auth_)?token|"
    r"(api_?|access_?|secret_?)?key|secret|password|passwd|pwd)=",
    re.IGNORECASE,
)


def refuse_credentials(url: str) -> None:
    """Raise ValueError for a URL that carries a password, a token or a signature; the message does not repeat it."""
    if any(_carries_credentials(*link.groups()) for link in _URL.finditer(url)):
        raise ValueError(
            "a URL must not carry credentials (scheme://user:secret@host, ?token=…): give them in the environment "
            "(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, …), where they are neither stored nor shipped"
        )


def _carries_credentials(scheme: str, rest: str) -> bool:
    scheme, authority = scheme.lower(), re.split(r"[/?#]", rest, maxsplit=1)[0]
    user, at, _ = authority.rpartition("@")
    if at and (":" in user or scheme in _NO_USERS):
        return True
    # A secret may hold a slash, so that the @ comes late; s3 takes arn:…, and a web host may have a port.
    _, colon, after = authority.partition(":")
    has_secret = colon and not authority.startswith("arn:") and not (scheme.startswith("http") and after.isdigit())
    if has_secret and scheme in _NO_USERS and "@" in rest:
        return True
    return bool(_SIGNATURE.search(rest))


_VERSION_KEYS = ("size", "ETag", "etag", "LastModified", "last_modified", "mtime", "updated", "created")
"""What file systems call the size, the checksum and the time of the last write of a file."""


@dataclass(frozen=True)
class Storage:
    """A directory on any fsspec location (`runs/tiny`, `s3://bucket/runs`)."""

    url: str

    def __post_init__(self) -> None:
        refuse_credentials(self.url)
        if "://" not in self.url:  # workers have other working directories than the driver
            object.__setattr__(self, "url", os.path.abspath(self.url))

    @cached_property
    def _located(self) -> tuple[fsspec.AbstractFileSystem, str]:
        fs, root = fsspec.core.url_to_fs(self.url)
        return fs, root.rstrip("/")

    @property
    def fs(self) -> fsspec.AbstractFileSystem:
        return self._located[0]

    @property
    def root(self) -> str:
        """The directory's path inside `fs`."""
        return self._located[1]

    @property
    def is_local(self) -> bool:
        return isinstance(self.fs, LocalFileSystem)

    def __truediv__(self, name: str) -> "Storage":
        return Storage(f"{self.url.rstrip('/')}/{name}")

    def __getstate__(self) -> dict[str, str]:
        return {"url": self.url}  # a file system object (sockets, event loops) must not travel between processes

    def __setstate__(self, state: dict[str, str]) -> None:
        object.__setattr__(self, "url", state["url"])

    def path(self, name: str) -> str:
        return f"{self.root}/{name}"

    def exists(self, name: str = "") -> bool:
        # Without invalidation an object store answers from a listing it made before another process wrote.
        self.fs.invalidate_cache(self.root)
        return self.fs.exists(self.path(name) if name else self.root)

    def open(self, name: str, mode: str = "rb") -> Any:
        """A file handle; writing through it is not atomic, so prefer `write_bytes` for what others read."""
        if self.is_local and "r" not in mode:
            os.makedirs(os.path.dirname(self.path(name)), exist_ok=True)
        return self.fs.open(self.path(name), mode)

    def read_bytes(self, name: str) -> bytes:
        return cast(bytes, self.fs.cat_file(self.path(name)))

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write `name` at once: a reader sees all of the bytes or none, also after a kill."""
        path = self.path(name)
        if not self.is_local:
            self.fs.pipe_file(path, data)  # a put is atomic on object stores
            return
        os.makedirs(os.path.dirname(path), exist_ok=True)
        partial = f"{path}.{uuid.uuid4().hex[:8]}.partial"
        try:
            with open(partial, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            if os.path.exists(partial):
                os.remove(partial)

    def create_bytes(self, name: str, data: bytes) -> bool:
        """Write `name` at once unless it is there already; whether this call wrote it, also against other writers."""
        path = self.path(name)
        try:
            if not self.is_local:
                self.fs.pipe_file(path, data, mode="create")
                return True
            os.makedirs(os.path.dirname(path), exist_ok=True)
            partial = f"{path}.{uuid.uuid4().hex[:8]}.partial"
            Path(partial).write_bytes(data)
            try:
                os.link(partial, path)  # unlike a rename it fails where the name is taken
            finally:
                os.remove(partial)
            return True
        except FileExistsError:
            return False

    def read_json(self, name: str) -> Any:
        return json.loads(self.read_bytes(name))

    def write_json(self, name: str, value: Any) -> None:
        text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        self.write_bytes(name, text.encode())

    def read_jsonl(self, name: str) -> list[Any]:
        """One value a line."""
        # Not splitlines, which also cuts at U+2028 and the like: JSON lets them stand inside a string.
        return [json.loads(line) for line in self.read_bytes(name).split(b"\n") if line]

    def write_jsonl(self, name: str, values: Iterable[Any]) -> None:
        """One value a line, all of them or none."""
        text = "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values)
        # A lone surrogate (of a file's name, or in a reason that quotes one) has no UTF-8, but JSON can escape it.
        self.write_bytes(name, text.encode(errors="backslashreplace"))

    def glob(self, pattern: str) -> list[str]:
        """Sorted names below this directory that match; names are relative to it."""
        self.fs.invalidate_cache(self.root)
        return sorted(path[len(self.root) + 1 :] for path in map(str, self.fs.glob(self.path(pattern))))

    def files(self) -> list[str]:
        """Sorted names of every file below this directory, half-written ones left out."""
        self.fs.invalidate_cache(self.root)
        names = (str(path)[len(self.root) + 1 :] for path in self.fs.find(self.root))
        return sorted(name for name in names if not name.endswith(".partial"))

    def remove(self, name: str = "") -> None:
        """Remove a file or a whole directory below this one; nothing happens where there is none."""
        path = self.path(name) if name else self.root
        if self.fs.exists(path):
            self.fs.rm(path, recursive=True)

    def local(self) -> Path:
        """This directory on the local disk: itself, or a copy fetched for programs that read only files.

        A copy serves as long as the listing stays as it was: a file that was changed in place is fetched anew.
        """
        if self.is_local:
            return Path(self.root)
        key = hashlib.sha256(json.dumps([self.url, self._listing()]).encode()).hexdigest()[:16]
        target = Path(tempfile.gettempdir()) / f"raymill-{os.getuid()}" / key
        if not target.exists():
            partial = target.with_name(f"{key}.{uuid.uuid4().hex[:8]}")
            self.fs.get(self.root + "/", str(partial) + "/", recursive=True)
            try:
                partial.rename(target)
            except OSError:  # another process on this node was first
                shutil.rmtree(partial)
        return target

    def _listing(self) -> list[list[str]]:
        """Name, size and whatever the file system tells of the version of every file."""
        self.fs.invalidate_cache(self.root)
        found = cast(dict[str, dict[str, Any]], self.fs.find(self.root, detail=True))
        return [
            [name, *(str(info[key]) for key in _VERSION_KEYS if key in info)] for name, info in sorted(found.items())
        ]

    def put_folder(self, folder: Path, name: str = "") -> None:
        """Copy every file of a local folder here, or below `name`; config.json, which makes it a model, comes last."""
        source = Storage(str(folder))
        for file in sorted(source.files(), key=lambda file: (Path(file).name == "config.json", file)):
            self.write_bytes(f"{name}/{file}" if name else file, source.read_bytes(file))

    def check_writable(self) -> None:
        """Raise ValueError when nothing can be written here (permission, no space, no such bucket); leave no trace."""
        probe = f".probe-{uuid.uuid4().hex[:8]}"
        made = _missing_folders(self.root) if self.is_local else []
        try:
            self.write_bytes(probe, b"raymill")
            self.fs.rm(self.path(probe))
            if self.is_local and shutil.disk_usage(self.root).free < 2**28:
                raise ValueError(f"store: less than 256 MiB is free at {self.url}; free space or give another location")
        except OSError as error:
            raise ValueError(
                f"store: cannot write to {self.url} ({error}); give a location with permission and free space"
            ) from error
        finally:
            for folder in made:
                with contextlib.suppress(OSError):  # not made after all, or another process writes there by now
                    os.rmdir(folder)


def _missing_folders(path: str) -> list[str]:
    """The folders that have to be made for `path` to stand, innermost first."""
    return [str(folder) for folder in (Path(path), *Path(path).parents) if not os.path.exists(folder)]


def expand(patterns: list[str]) -> list[str]:
    """Sorted URLs of all files that the globs match, on any fsspec URL (also `zip://member::file://x.whl`).

    Raises ValueError naming the pattern that matches nothing or whose archive is none, or for one with credentials.
    """
    found: list[str] = []
    for pattern in patterns:
        refuse_credentials(pattern)
        try:
            matched = _expand_one(pattern)
        except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
            raise ValueError(
                f"{pattern!r}: a file that it looks into is no archive or a damaged one ({error}); fetch it anew"
            ) from error
        if not matched:
            raise ValueError(
                f"{pattern!r} matches no file; check the path (relative ones start at the working directory)"
            )
        found.extend(matched)
    return found


def _expand_one(pattern: str) -> list[str]:
    member, chain, container = pattern.partition("::")
    if not chain:
        fs, path = fsspec.core.url_to_fs(pattern)
        return [
            fs.unstrip_protocol(name) if "://" in pattern else name
            for name in sorted(map(str, fs.glob(path)))
            if fs.isfile(name)
        ]
    urls: list[str] = []
    scheme, _, inner = member.partition("://")
    for outer in _expand_one(container):
        outer_url = outer if "://" in outer else f"file://{os.path.abspath(outer)}"
        fs, _ = fsspec.core.url_to_fs(f"{scheme}://::{outer_url}")
        names = (str(name).lstrip("/") for name in fs.find(""))
        urls += [f"{scheme}://{name}::{outer_url}" for name in sorted(names) if fnmatch.fnmatchcase(name, inner)]
    return urls


def fingerprint(url: str) -> str:
    """Identity of one file's content: its sha256, or the ETag where an object store already keeps one."""
    fs, path = fsspec.core.url_to_fs(url)
    etag = fs.info(path).get("ETag")
    if etag:
        return f"etag:{str(etag).strip(chr(34))}"
    digest = hashlib.sha256()
    with fs.open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return f"sha256:{digest.hexdigest()}"
