"""What this user's machine has found out before: small facts by key, kept between commands.

Only what can be found out again goes here: a cache that is missing, torn, full or not writable costs time and is never
an error. Files lie in `$XDG_CACHE_HOME/raymill`, else `~/.cache/raymill`, and may be removed at any time.
"""

import contextlib
import json
import logging
import os
import threading
from pathlib import Path
from typing import Any

_MAX_BYTES = 32 << 20
"""A file that has grown beyond this is begun anew."""

log = logging.getLogger(__name__)


class UserCache:
    """A mapping from strings to JSON values in a file of lines; any number of processes may use it at once."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._path: Path | None = None
        self._known: dict[str, Any] = {}

    def get(self, key: str) -> Any | None:
        """The value last put under a key; None where there is none."""
        with self._lock:
            self._load()
            return self._known.get(key)

    def put(self, key: str, value: Any) -> None:
        """Keep a value for this and later processes."""
        # With a line break before it too, so that it is whole also behind a line that a kill has torn.
        line = ("\n" + json.dumps([key, value]) + "\n").encode()
        with self._lock:
            self._load()
            self._known[key] = value
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
        """Read the file once in a process; read it again where the environment names another folder."""
        folder = _folder()
        path = folder and folder / f"{self._name}.jsonl"
        if path is None or path == self._path:
            return
        self._path, self._known = path, {}
        try:
            lines = path.read_bytes().split(b"\n")
        except OSError:
            return
        for line in filter(None, lines):
            with contextlib.suppress(ValueError, TypeError):  # torn by a kill or a full disk
                key, value = json.loads(line)
                self._known[key] = value
        with contextlib.suppress(OSError):
            if path.stat().st_size > _MAX_BYTES:
                path.unlink()


def _folder() -> Path | None:
    """None for a user without a home, as in some containers: then nothing is kept beyond the process."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(home) / "raymill" if os.path.isabs(home) else None
