"""A small cache of the current user on this machine, which maps strings to JSON values and is kept between commands.

Only store values that can be computed again. If the cache is missing, damaged, full or not writable, commands take
longer, but it is not an error. The files are in `$XDG_CACHE_HOME/raymill`, or in `~/.cache/raymill` if the variable is
not set. They may be removed at any time.
"""

import contextlib
import json
import logging
import os
import threading
from pathlib import Path
from typing import Any

_MAX_BYTES = 32 << 20
"""A file larger than this is removed after it is read. The values that are stored later begin a new file."""

log = logging.getLogger(__name__)


class UserCache:
    """A mapping from strings to JSON values in a JSONL file. Several processes may use it at the same time."""

    def __init__(self, name: str) -> None:
        """`name` is the name of the cache file without its extension."""
        self._name = name
        self._lock = threading.Lock()
        self._path: Path | None = None
        """The cache file that was read. None before the first read, or if there is no folder for it."""
        self._values: dict[str, Any] = {}

    def get(self, key: str) -> Any | None:
        """Return the last value that was stored under a key; None if there is none."""
        with self._lock:
            self._load()
            return self._values.get(key)

    def put(self, key: str, value: Any) -> None:
        """Store a value under a key, for this process and later ones."""
        # The line also starts with a line break, because the last line of the file may have been cut off by a kill.
        line = ("\n" + json.dumps([key, value]) + "\n").encode()
        with self._lock:
            self._load()
            self._values[key] = value
            if self._path is None:
                return
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
                try:
                    os.write(file, line)  # a single small append is not interleaved with appends of other processes
                finally:
                    os.close(file)
            except OSError as error:
                log.debug("the cache file %s cannot be written: %s", self._path, error)

    def _load(self) -> None:
        """Read the file, unless this process has read it already. Reads again if `XDG_CACHE_HOME` has changed."""
        folder = _folder()
        path = folder and folder / f"{self._name}.jsonl"
        if path is None or path == self._path:
            return
        self._path, self._values = path, {}
        try:
            lines = path.read_bytes().split(b"\n")
        except OSError:
            return
        for line in filter(None, lines):
            with contextlib.suppress(ValueError, TypeError):  # the line was cut off by a kill or a full disk
                key, value = json.loads(line)
                self._values[key] = value
        with contextlib.suppress(OSError):
            if path.stat().st_size > _MAX_BYTES:
                path.unlink()


def _folder() -> Path | None:
    """Return the folder of the cache; None for a user without a home folder, as in some containers.

    Without a folder nothing is kept after the process has ended.
    """
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "raymill" if os.path.isabs(base) else None
