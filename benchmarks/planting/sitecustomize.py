"""Causes one fault in the process that calls a given function.

Python imports a module of this name before anything else when its folder is on PYTHONPATH. `RAYMILL_FAULT` gives the
kind, the function and the number of the call; the fault happens once in all processes together.
"""

import contextlib
import functools
import importlib.abc
import importlib.machinery
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

FAULT = json.loads(os.environ.get("RAYMILL_FAULT", "null"))
_LIMIT_BYTES = 256 << 20


def fail(kind: str) -> None:
    """Make this process fail in the way of `kind`. Nothing for `term`, which the driver is sent afterwards."""
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif kind == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif kind == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif kind == "memory":
        exhaust_memory()
    elif kind == "disk":
        fill(Path(FAULT["disk"]))
    elif kind == "raise":
        raise RuntimeError("planted fault")


def memory_group(pid: int | str = "self") -> Path:
    """The folder of a process's memory control group."""
    lines = [line.split(":", 2) for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines()]
    v1 = next((path for _, names, path in lines if "memory" in names.split(",")), None)
    if v1 is not None:
        return Path("/sys/fs/cgroup/memory") / v1.lstrip("/")
    return Path("/sys/fs/cgroup") / next(path for _, names, path in lines if not names).lstrip("/")


def exhaust_memory() -> None:
    """Move this process into a memory control group of its own and use more than its limit."""
    group = memory_group() / f"raymill-fault-{os.getpid()}"
    group.mkdir()
    limit = "memory.limit_in_bytes" if (group / "memory.limit_in_bytes").exists() else "memory.max"
    (group / limit).write_text(str(_LIMIT_BYTES))
    (group / "cgroup.procs").write_text(str(os.getpid()))
    time.sleep(3)  # until the node monitor has seen it there; a container has its group from the start
    held = [bytearray(os.urandom(1 << 20)) for _ in range(4 * (_LIMIT_BYTES >> 20))]
    raise AssertionError(f"{len(held)} MiB fit into a control group of {_LIMIT_BYTES >> 20}")


def fill(folder: Path) -> None:
    """Fill a small file system."""
    with open(folder / ".filler", "wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))


def wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which plants the fault at its n-th call in a process, unless it was planted before."""
    calls = 0

    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == FAULT["call"]:
            try:
                with open(FAULT["planted"], "x") as file:
                    file.write(str(time.time()))
            except FileExistsError:
                return function(*arguments, **named)
            fail(FAULT["kind"])
        return function(*arguments, **named)

    return call


class Planter(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Wraps the function as soon as its module is imported."""

    def __init__(self) -> None:
        self._loader: Any = None

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> Any:
        if name != FAULT["module"] or self._loader is not None:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        assert spec is not None and spec.loader is not None, name
        self._loader, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec: Any) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        *outer, name = FAULT["function"].split(".")
        holder: Any = module
        for part in outer:
            holder = vars(holder)[part]
        setattr(holder, name, wrapped(vars(holder)[name]))


if FAULT is not None:
    sys.meta_path.insert(0, Planter())
