"""A directory on any fsspec location: where artifacts, checkpoints and shards live.

Everything that Raymill writes goes through `Storage`, so that a laptop's folder and an S3 prefix behave alike: a name
becomes visible only when all of its bytes are there, and requests that fail for a moment (500, 503, a dropped
connection) are tried again.
"""

import contextlib
import errno
import hashlib
import io
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, cast

import fsspec
import fsspec.config
from fsspec.implementations.local import LocalFileSystem

from cluster.credentials import reject_credentials
from cluster.paths import absolute_url
from cluster.progress import working
from cluster.retry import BLOCK_BYTES, RETRY_WAITS_S, with_retries

_VERSION_KEYS = ("size", "ETag", "etag", "LastModified", "last_modified", "mtime", "updated", "created")
"""The keys under which file systems give the size, the checksum and the time of the last write of a file."""


@dataclass(frozen=True)
class Storage:
    """A directory on any fsspec location (`runs/tiny`, `s3://bucket/runs`)."""

    url: str

    def __post_init__(self) -> None:
        reject_credentials(self.url)
        object.__setattr__(
            self, "url", absolute_url(self.url)
        )  # workers have other working directories than the driver

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
        return {"url": self.url}  # a file system object has sockets and event loops, which do not pickle

    def __setstate__(self, state: dict[str, str]) -> None:
        object.__setattr__(self, "url", state["url"])

    def path(self, name: str) -> str:
        return f"{self.root}/{name}"

    def exists(self, name: str = "") -> bool:
        """Whether there is a file, or a directory: on an object store a prefix with at least one file below.

        Raises OSError when the store does not tell, rather than returning False.
        """
        path = self.path(name) if name else self.root
        try:
            info = with_retries(self.fs.info, path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return self.is_local or info["type"] != "directory" or bool(self._file_infos(path))

    def _file_infos(self, path: str) -> dict[str, dict[str, Any]]:
        """The file system's description of every file below a path, by path; directory markers are left out."""
        self.fs.invalidate_cache(path)
        infos = cast(dict[str, dict[str, Any]], with_retries(self.fs.find, path, detail=True))
        return {
            name: info for name, info in infos.items() if info["type"] != "directory" and not str(name).endswith("/")
        }

    def open(self, name: str, mode: str = "rb", *, read_ahead: bool = False) -> Any:
        """A file handle; writing through it is not atomic, so prefer `write_bytes` or `writing` for what others read.

        `read_ahead` is for reading a whole file of an object store: blocks of 8 MiB, the next one fetched while one is
        being used, with up to 32 MiB held. Without it a read fetches little more than it asks for.
        """
        if self.is_local and "r" not in mode:
            os.makedirs(os.path.dirname(self.path(name)), exist_ok=True)
        options: dict[str, Any] = {}
        if self.fs.async_impl and "r" in mode:
            options = (
                {"cache_type": "background", "block_size": BLOCK_BYTES, "cache_options": {"maxblocks": 4}}
                if read_ahead
                else {"cache_type": "readahead", "block_size": 256 << 10}
            )
        return with_retries(self.fs.open, self.path(name), mode, **options)

    def read_bytes(self, name: str, start: int | None = None, stop: int | None = None) -> bytes:
        """The bytes of a file, or those from `start` up to `stop`."""
        return cast(bytes, with_retries(self.fs.cat_file, self.path(name), start=start, end=stop))

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write `name` atomically: a reader sees all of the bytes or none, also after a kill."""
        if not self.is_local:
            with_retries(self.fs.pipe_file, self.path(name), data)  # a put is atomic on object stores
            return
        with self.writing(name) as file:
            file.write(data)

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[BinaryIO]:
        """A file handle whose content becomes `name` when the block ends, or is discarded when the block raises.

        Local: a temporary file beside it, synced and renamed. Object store: a multipart upload in parts of 8 MiB,
        completed at the end (parts of a killed process stay until the bucket's lifecycle rule removes them). Other file
        systems get all bytes from memory at the end.
        """
        path = self.path(name)
        if self.is_local:
            with _writing_beside(path) as file:
                yield file
        elif self.fs.async_impl:
            with _uploading(self.fs, path) as file:
                yield file
        else:
            buffer = io.BytesIO()
            yield buffer
            with_retries(self.fs.pipe_file, path, buffer.getvalue())

    def create_bytes(self, name: str, data: bytes) -> bool:
        """Write `name` atomically unless it exists; True when this call wrote it. At most one of several callers does.

        On an object store the answer to a put may be lost and the put repeated, so a file that holds exactly these
        bytes counts as written by this call. Competing writers must therefore write different bytes.
        """
        if not self.is_local:
            try:
                with_retries(self.fs.pipe_file, self.path(name), data, mode="create")
            except OSError as error:
                if not _is_taken(error):
                    raise
                return self.fs.async_impl and self.read_bytes(name) == data
            return True
        path = self.path(name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        partial = f"{path}.{uuid.uuid4().hex[:8]}.partial"
        Path(partial).write_bytes(data)
        try:
            os.link(partial, path)  # unlike a rename it fails where the name is taken
        except FileExistsError:
            return False
        finally:
            os.remove(partial)
        return True

    def copy(self, name: str, target: "Storage", target_name: str | None = None) -> None:
        """Copy a file into another storage, under the same name unless `target_name` is given; atomic like a write.

        Within one object store the server copies; otherwise the bytes go through this process block by block.
        """
        target_name = target_name or name
        if self.fs.async_impl and self.fs is target.fs:
            with_retries(self.fs.cp_file, self.path(name), target.path(target_name))
            return
        with self.open(name, read_ahead=True) as source, target.writing(target_name) as file:
            shutil.copyfileobj(source, file, BLOCK_BYTES)

    def read_json(self, name: str) -> Any:
        return json.loads(self.read_bytes(name))

    def write_json(self, name: str, value: Any) -> None:
        text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        self.write_bytes(name, text.encode())

    def read_jsonl(self, name: str) -> list[Any]:
        """The values of a file that has one JSON value per line."""
        # Not splitlines, which also splits at U+2028 and the like: JSON allows them inside a string.
        return [json.loads(line) for line in self.read_bytes(name).split(b"\n") if line]

    def write_jsonl(self, name: str, values: Iterable[Any]) -> None:
        """Write one JSON value per line, atomically."""
        self.write_bytes(name, b"".join(map(json_line, values)))

    def glob(self, pattern: str) -> list[str]:
        """Sorted names below this directory that match; names are relative to it."""
        self.fs.invalidate_cache(self.root)
        paths = cast(list[str], with_retries(self.fs.glob, self.path(pattern)))
        return sorted(path[len(self.root) + 1 :] for path in paths)

    def files(self) -> list[str]:
        """Sorted names of every file below this directory, except partly written ones."""
        names = (path[len(self.root) + 1 :] for path in self._file_infos(self.root))
        return sorted(name for name in names if not name.endswith(".partial"))

    def num_bytes(self) -> int:
        """Size in bytes of everything below this directory."""
        return sum(info["size"] or 0 for info in self._file_infos(self.root).values())

    def remove(self, name: str = "") -> None:
        """Remove a file, or this whole directory without a name; nothing happens where there is none."""
        path = self.path(name) if name else self.root
        for _ in RETRY_WAITS_S:
            if not self.exists(name):
                return
            with contextlib.suppress(FileNotFoundError):  # another process was faster
                with_retries(self.fs.rm, path, recursive=True)
            if self.is_local:
                return
            # s3fs does not tell which keys of a bulk delete the store has refused: check again.
        if self.exists(name):
            raise OSError(errno.EIO, f"{path}: the store did not remove all of it")

    def local(self) -> Path:
        """This directory on the local disk: itself, or a downloaded copy for programs that read only local files.

        A copy is reused as long as the listing is unchanged (names, sizes, versions).
        """
        if self.is_local:
            return Path(self.root)
        key = hashlib.sha256(json.dumps([self.url, self._listing()]).encode()).hexdigest()[:16]
        target = Path(tempfile.gettempdir()) / f"raymill-{os.getuid()}" / key
        if not target.exists():
            partial = target.with_name(f"{key}.{uuid.uuid4().hex[:8]}")
            with working(f"fetching {self.url}"):
                with_retries(self.fs.get, self.root + "/", str(partial) + "/", recursive=True)
            try:
                partial.rename(target)
            except OSError:  # another process on this node was first
                shutil.rmtree(partial)
        return target

    def _listing(self) -> list[list[str]]:
        """Name, size and version of every file, as far as the file system tells."""
        return [
            [name, *(str(info[key]) for key in _VERSION_KEYS if key in info)]
            for name, info in sorted(self._file_infos(self.root).items())
        ]

    def put_folder(self, folder: Path, name: str = "") -> None:
        """Copy every file of a local folder here, or below `name`; config.json last, as it marks a whole model."""
        source = Storage(str(folder))
        with working(f"copying to {self.url}"):
            for file in sorted(source.files(), key=lambda file: (Path(file).name == "config.json", file)):
                source.copy(file, self, f"{name}/{file}" if name else file)

    def check_writable(self) -> None:
        """Raises ValueError when nothing can be written here (permission, no space, no bucket). Leaves no trace."""
        probe = f".probe-{uuid.uuid4().hex[:8]}"
        new_folders = _missing_folders(self.root) if self.is_local else []
        try:
            self.write_bytes(probe, b"raymill")
            with_retries(self.fs.rm, self.path(probe))
            if self.is_local and shutil.disk_usage(self.root).free < 2**28:
                raise ValueError(f"store: less than 256 MiB is free at {self.url}; free space or give another location")
        except OSError as error:
            raise ValueError(
                f"store: cannot write to {self.url} ({error}); give a location with permission and free space"
            ) from error
        finally:
            for folder in new_folders:
                with contextlib.suppress(OSError):  # not created after all, or another process writes there by now
                    os.rmdir(folder)


def json_line(value: Any) -> bytes:
    """A value as a line of a JSONL file."""
    # A lone surrogate (in a file's name, or a message that quotes one) has no UTF-8, but JSON can escape it.
    return (json.dumps(value, ensure_ascii=False) + "\n").encode(errors="backslashreplace")


def _missing_folders(path: str) -> list[str]:
    """The folders that have to be created for `path` to exist, innermost first."""
    return [str(folder) for folder in (Path(path), *Path(path).parents) if not os.path.exists(folder)]


@contextlib.contextmanager
def _writing_beside(path: str) -> Iterator[BinaryIO]:
    """A temporary local file that is renamed to `path` once all of it is on the disk."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    partial = f"{path}.{uuid.uuid4().hex[:8]}.partial"
    try:
        with open(partial, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        if os.path.exists(partial):
            os.remove(partial)


@contextlib.contextmanager
def _uploading(fs: fsspec.AbstractFileSystem, path: str) -> Iterator[BinaryIO]:
    """A file on an object store that is committed when the block ends and discarded when it raises."""
    file: Any = fs.open(path, "wb", block_size=BLOCK_BYTES, autocommit=False)
    try:
        yield file
        file.close()
        _commit(fs, file, path)
    except BaseException:
        file.closed = True  # otherwise it is committed when it is garbage-collected
        file.discard()
        raise


def _commit(fs: fsspec.AbstractFileSystem, file: Any, path: str) -> None:
    """Complete an upload. One whose completion succeeded although its answer was lost is not found any more."""
    try:
        with_retries(file.commit)
    except FileNotFoundError:
        if not file.parts or str(with_retries(fs.info, path)["ETag"]).strip('"') != _etag(file.parts):
            raise


def _etag(parts: list[dict[str, Any]]) -> str:
    """The ETag that S3 gives an object of these parts: the MD5 of their MD5 sums, and their number."""
    digests = b"".join(bytes.fromhex(part["ETag"].strip('"')) for part in parts)
    return f"{hashlib.md5(digests).hexdigest()}-{len(parts)}"


def _is_taken(error: OSError) -> bool:
    """Whether a store refused to create a file because it exists."""
    from botocore.exceptions import ClientError

    cause = error.__cause__  # s3fs gives EINVAL for a store whose answer does not repeat the condition
    return isinstance(error, FileExistsError) or (
        isinstance(cause, ClientError) and cause.response["Error"]["Code"] == "PreconditionFailed"
    )
