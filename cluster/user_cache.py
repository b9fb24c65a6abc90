"""A small cache of the user's on this machine, kept between commands: strings to JSON values.

Only values that can be computed again belong here: a cache that is missing, damaged, full or not writable costs time
and is never an error. Its files are in `$XDG_CACHE_HOME/raymill`, else `~/.cache/raymill`, and may be removed any time.
"""

import contextlib
import json
import logging
import os
import threading
from pathlib import Path
from typing import Any

_MAX_BYTES = 32 << 20
"""A file that has grown beyond this is started afresh."""

log = logging.getLogger(__name__)


class UserCache:
    """A mapping from strings to JSON values in a file of lines; any number of processes may use it at once."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._path: Path | None = None
        self._values: dict[str, Any] = {}

    def get(self, key: str) -> Any | None:
        """The value last put under a key; None where there is none."""
        with self._lock:
            self._load()
            return self._values.get(key)

    def put(self, key: str, value: Any) -> None:
        """Store a value for this and later processes."""
        # A line break comes first too, so that the line stays readable after one that a kill cut off.
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
                    os.write(file, line)  # one append of a few hundred bytes does not mix with another process's
                finally:
                    os.close(file)
            except OSError as error:
                log.debug("%s is not written: %s", self._path, error)

    def _load(self) -> None:
        """Read the file once per process, and again when the environment names another folder."""
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
            with contextlib.suppress(ValueError, TypeError):  # cut off by a kill or a full disk
                key, value = json.loads(line)
                self._values[key] = value
        with contextlib.suppress(OSError):
            if path.stat().st_size > _MAX_BYTES:
                path.unlink()


def _folder() -> Path | None:
    """The folder of the cache; None for a user without a home, as in some containers: then nothing is kept."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(home) / "raymill" if os.path.isabs(home) else None
