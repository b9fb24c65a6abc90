"""A directory on any fsspec location, which contains artifacts, checkpoints and shards.

Everything that Raymill writes goes through `Storage`, so that a local folder and an S3 prefix behave alike. A file
becomes visible only after all of its bytes are written, unless it is written through `open`. Requests that fail with a
transient error (HTTP status 500 or 503, a dropped connection) are repeated.
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
from cluster.progress import show_activity
from cluster.retry import BLOCK_BYTES, with_retries

_REMOVE_ATTEMPTS = 3  # for a store that leaves keys undeleted without an error
_VERSION_KEYS = ("size", "ETag", "etag", "LastModified", "last_modified", "mtime", "updated", "created")
"""Keys of fsspec's file information that change when a file is written: size, checksum, and time of the last write."""


@dataclass(frozen=True)
class Storage:
    """A directory on any fsspec location (`runs/tiny`, `s3://bucket/runs`)."""

    url: str
    """URL of the directory. The path of a local directory is made absolute."""

    def __post_init__(self) -> None:
        reject_credentials(self.url)
        # Absolute, because workers have other working directories than the driver.
        object.__setattr__(self, "url", absolute_url(self.url))

    @cached_property
    def _fs_and_root(self) -> tuple[fsspec.AbstractFileSystem, str]:
        fs, root = fsspec.core.url_to_fs(self.url)
        return fs, root.rstrip("/")

    @property
    def fs(self) -> fsspec.AbstractFileSystem:
        return self._fs_and_root[0]

    @property
    def root(self) -> str:
        """Path of this directory inside `fs`."""
        return self._fs_and_root[1]

    @property
    def is_local(self) -> bool:
        return isinstance(self.fs, LocalFileSystem)

    def __truediv__(self, name: str) -> "Storage":
        """Return the directory `name` below this one."""
        return Storage(f"{self.url.rstrip('/')}/{name}")

    def __getstate__(self) -> dict[str, str]:
        return {"url": self.url}  # a file system object contains sockets and event loops, which cannot be pickled

    def __setstate__(self, state: dict[str, str]) -> None:
        object.__setattr__(self, "url", state["url"])

    def path(self, name: str) -> str:
        """Return the path of a file inside `fs`."""
        return f"{self.root}/{name}"

    def exists(self, name: str = "") -> bool:
        """Whether a file or directory exists. Without a name: whether this directory exists.

        On an object store a directory exists when there is at least one file below its prefix. Raises OSError when the
        store fails to answer.
        """
        path = self.path(name) if name else self.root
        try:
            info = with_retries(self.fs.info, path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return self.is_local or info["type"] != "directory" or bool(self._file_infos(path))

    def _file_infos(self, path: str) -> dict[str, dict[str, Any]]:
        """Return fsspec's information on every file below a path, by path. Directories are left out."""
        self.fs.invalidate_cache(path)
        infos = cast(dict[str, dict[str, Any]], with_retries(self.fs.find, path, detail=True))
        return {
            name: info for name, info in infos.items() if info["type"] != "directory" and not str(name).endswith("/")
        }

    def open(self, name: str, mode: str = "rb", *, prefetch: bool = False) -> Any:
        """Open a file.

        Writing through this handle is not atomic. Use `write_bytes` or `writing` for files that other processes read.

        Set `prefetch` if you read a file of an object store from beginning to end. Blocks of 8 MiB are then fetched in
        the background while earlier blocks are processed, and up to 32 MiB are kept in memory. Without it, a read
        fetches little more than the requested bytes.
        """
        if self.is_local and "r" not in mode:
            os.makedirs(os.path.dirname(self.path(name)), exist_ok=True)
        options: dict[str, Any] = {}
        if self.fs.async_impl and "r" in mode:
            options = (
                {"cache_type": "background", "block_size": BLOCK_BYTES, "cache_options": {"maxblocks": 4}}
                if prefetch
                else {"cache_type": "readahead", "block_size": 256 << 10}
            )
        return with_retries(self.fs.open, self.path(name), mode, **options)

    def read_bytes(self, name: str, start: int | None = None, stop: int | None = None) -> bytes:
        """Return the bytes of a file, or only the bytes from `start` up to and without `stop`."""
        return cast(bytes, with_retries(self.fs.cat_file, self.path(name), start=start, end=stop))

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write a file atomically: a reader sees all of the bytes or none, even if this process is killed."""
        if not self.is_local:
            with_retries(self.fs.pipe_file, self.path(name), data)  # writing an object is atomic on object stores
            return
        with self.writing(name) as file:
            file.write(data)

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[BinaryIO]:
        """Open a file for writing that becomes visible as `name` at the end of the block.

        If the block raises, the content is discarded and an existing file stays as it was. On a local disk the content
        is written to a temporary file in the same folder, which is synced and renamed at the end. On an object store it
        is a multipart upload in parts of 8 MiB, which is completed at the end. If the process is killed, uploaded parts
        remain until a lifecycle rule of the bucket removes them. For other file systems the content is kept in memory
        and written at the end.
        """
        path = self.path(name)
        if self.is_local:
            with _writing_local(path) as file:
                yield file
        elif self.fs.async_impl:
            with _writing_multipart(self.fs, path) as file:
                yield file
        else:
            buffer = io.BytesIO()
            yield buffer
            with_retries(self.fs.pipe_file, path, buffer.getvalue())

    def create_bytes(self, name: str, data: bytes) -> bool:
        """Create a file atomically. Returns False if the file already exists.

        If several processes create the same file, the call returns True in exactly one of them. On an object store the
        response to a request may be lost and the request repeated. Therefore an existing file with exactly these bytes
        counts as created by this call, and competing processes must write different bytes.
        """
        if not self.is_local:
            try:
                with_retries(self.fs.pipe_file, self.path(name), data, mode="create")
            except OSError as error:
                if not _is_exists_error(error):
                    raise
                return self.fs.async_impl and self.read_bytes(name) == data
            return True
        path = self.path(name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        partial = f"{path}.{uuid.uuid4().hex[:8]}.partial"
        Path(partial).write_bytes(data)
        try:
            os.link(partial, path)  # unlike a rename, a link fails if the target exists
        except FileExistsError:
            return False
        finally:
            os.remove(partial)
        return True

    def copy(self, name: str, target: "Storage", target_name: str | None = None) -> None:
        """Copy a file atomically into another storage. `target_name` is its new name if it differs from `name`.

        Within one object store the server copies the file. Otherwise this process reads and writes it block by block.
        """
        target_name = target_name or name
        if self.fs.async_impl and self.fs is target.fs:
            with_retries(self.fs.cp_file, self.path(name), target.path(target_name))
            return
        with self.open(name, prefetch=True) as source, target.writing(target_name) as file:
            shutil.copyfileobj(source, file, BLOCK_BYTES)

    def read_json(self, name: str) -> Any:
        """Return the value in a JSON file."""
        return json.loads(self.read_bytes(name))

    def write_json(self, name: str, value: Any) -> None:
        """Write a value as a JSON file, atomically."""
        text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        self.write_bytes(name, text.encode())

    def read_jsonl(self, name: str) -> list[Any]:
        """Return the values of a file that has one JSON value per line."""
        # Not `splitlines`, which also splits at characters such as U+2028 that JSON strings may contain.
        return [json.loads(line) for line in self.read_bytes(name).split(b"\n") if line]

    def write_jsonl(self, name: str, values: Iterable[Any]) -> None:
        """Write one JSON value per line, atomically."""
        self.write_bytes(name, b"".join(map(json_line, values)))

    def glob(self, pattern: str) -> list[str]:
        """Return the names below this directory that match a pattern, sorted and relative to this directory."""
        self.fs.invalidate_cache(self.root)
        paths = cast(list[str], with_retries(self.fs.glob, self.path(pattern)))
        return sorted(path[len(self.root) + 1 :] for path in paths)

    def files(self) -> list[str]:
        """Return the names of all files below this directory, sorted. Partly written files are left out."""
        names = (path[len(self.root) + 1 :] for path in self._file_infos(self.root))
        return sorted(name for name in names if not name.endswith(".partial"))

    def num_bytes(self) -> int:
        """Return the total size in bytes of all files below this directory."""
        return sum(info["size"] or 0 for info in self._file_infos(self.root).values())

    def remove(self, name: str = "") -> None:
        """Remove a file or directory, or without a name this directory. Does nothing if it does not exist."""
        path = self.path(name) if name else self.root
        for _ in range(_REMOVE_ATTEMPTS):
            if not self.exists(name):
                return
            with contextlib.suppress(FileNotFoundError):  # another process has removed it
                with_retries(self.fs.rm, path, recursive=True)
            if self.is_local:
                return
            # s3fs does not report keys that the store failed to delete in a bulk request. Check and delete again.
        if self.exists(name):
            raise OSError(errno.EIO, f"{path}: the store did not remove all files")

    def local(self) -> Path:
        """Return this directory as a folder on the local disk, for libraries that only read local files.

        A local directory is returned itself. Any other directory is downloaded to a temporary folder. The download is
        reused by later calls while names, sizes and versions of the files are unchanged.
        """
        if self.is_local:
            return Path(self.root)
        key = hashlib.sha256(json.dumps([self.url, self._listing()]).encode()).hexdigest()[:16]
        target = Path(tempfile.gettempdir()) / f"raymill-{os.getuid()}" / key
        if not target.exists():
            partial = target.with_name(f"{key}.{uuid.uuid4().hex[:8]}")
            with show_activity(f"downloading {self.url}"):
                with_retries(self.fs.get, self.root + "/", str(partial) + "/", recursive=True)
            try:
                partial.rename(target)
            except OSError:  # another process on this node has downloaded it first
                shutil.rmtree(partial)
        return target

    def _listing(self) -> list[list[str]]:
        """Return name, size and version of every file, as far as the file system knows them."""
        return [
            [name, *(str(info[key]) for key in _VERSION_KEYS if key in info)]
            for name, info in sorted(self._file_infos(self.root).items())
        ]

    def put_folder(self, folder: Path, name: str = "") -> None:
        """Copy all files of a local folder into this directory, or into the directory `name` below it.

        `config.json` is copied last, because a model folder counts as complete when this file exists.
        """
        source = Storage(str(folder))
        with show_activity(f"copying to {self.url}"):
            for file in sorted(source.files(), key=lambda file: (Path(file).name == "config.json", file)):
                source.copy(file, self, f"{name}/{file}" if name else file)

    def check_writable(self) -> None:
        """Raises ValueError when this directory cannot be written: no permission, no free space, or no such bucket.

        Files and folders that the check creates are removed again.
        """
        probe = f".probe-{uuid.uuid4().hex[:8]}"
        new_folders = _missing_folders(self.root) if self.is_local else []
        try:
            self.write_bytes(probe, b"raymill")
            with_retries(self.fs.rm, self.path(probe))
            if self.is_local and shutil.disk_usage(self.root).free < 2**28:
                raise ValueError(f"store: less than 256 MiB is free at {self.url}; free space or use another location")
        except OSError as error:
            raise ValueError(
                f"store: cannot write to {self.url} ({error}); use a location with write permission and free space"
            ) from error
        finally:
            for folder in new_folders:
                with contextlib.suppress(OSError):  # the folder was not created, or another process writes to it now
                    os.rmdir(folder)


def json_line(value: Any) -> bytes:
    """Encode a value as a line of a JSONL file."""
    # A lone surrogate cannot be encoded as UTF-8, but JSON can escape it. File names, and messages that quote them, may
    # contain lone surrogates.
    return (json.dumps(value, ensure_ascii=False) + "\n").encode(errors="backslashreplace")


def _missing_folders(path: str) -> list[str]:
    """Of `path` and its parent folders, return those that do not exist yet, innermost first."""
    return [str(folder) for folder in (Path(path), *Path(path).parents) if not os.path.exists(folder)]


@contextlib.contextmanager
def _writing_local(path: str) -> Iterator[BinaryIO]:
    """Open a temporary local file that is renamed to `path` at the end of the block.

    File and name are on the disk when the block has ended.
    """
    os.makedirs(os.path.dirname(path), exist_ok=True)
    partial = f"{path}.{uuid.uuid4().hex[:8]}.partial"
    try:
        with open(partial, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        folder = os.open(os.path.dirname(path), os.O_RDONLY)
        try:
            os.fsync(folder)  # otherwise a crash of the machine could undo the rename
        finally:
            os.close(folder)
    finally:
        if os.path.exists(partial):
            os.remove(partial)


@contextlib.contextmanager
def _writing_multipart(fs: fsspec.AbstractFileSystem, path: str) -> Iterator[BinaryIO]:
    """Open a multipart upload that is completed at the end of the block, or discarded if the block raises."""
    file: Any = fs.open(path, "wb", block_size=BLOCK_BYTES, autocommit=False)
    try:
        yield file
        file.close()
        _complete_upload(fs, file, path)
    except BaseException:
        file.closed = True  # otherwise garbage collection of the file object would complete the upload
        file.discard()
        raise


def _complete_upload(fs: fsspec.AbstractFileSystem, file: Any, path: str) -> None:
    """Complete a multipart upload.

    If the response to the request is lost, the repeated request fails with FileNotFoundError, because the first request
    has ended the upload. So after this error, the upload is complete if the object has the ETag of the uploaded parts.
    """
    try:
        with_retries(file.commit)
    except FileNotFoundError:
        if not file.parts or str(with_retries(fs.info, path)["ETag"]).strip('"') != _etag(file.parts):
            raise


def _etag(parts: list[dict[str, Any]]) -> str:
    """Return the ETag of an S3 object with these parts: the MD5 of the parts' MD5 digests, and the number of parts."""
    digests = b"".join(bytes.fromhex(part["ETag"].strip('"')) for part in parts)
    return f"{hashlib.md5(digests).hexdigest()}-{len(parts)}"


def _is_exists_error(error: OSError) -> bool:
    """Whether a store did not create a file because the file exists."""
    from botocore.exceptions import ClientError

    # s3fs raises EINVAL instead of FileExistsError if the response of the store does not name the failed condition.
    cause = error.__cause__
    return isinstance(error, FileExistsError) or (
        isinstance(cause, ClientError) and cause.response["Error"]["Code"] == "PreconditionFailed"
    )
