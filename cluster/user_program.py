"""A program of the user's own as text: its file, and the modules beside it that it imports.

It travels as text, so that the cluster runs what was fingerprinted on the machine of the command.
"""

import builtins
import importlib.util
import sys
import types
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Program:
    """What a Python file of the user's defines under one name, as text that travels to the cluster."""

    source: str
    path: str
    """Of the file, for messages."""
    function: str
    """Name of a function, or of another object that the file defines."""
    modules: Mapping[str, str] = field(default_factory=dict)
    """Source text of each module that it imports from its folder, by the path from there: `pkg/words.py`."""

    @property
    def name(self) -> str:
        """`path/to/file.py:function`, as a config names it."""
        return f"{self.path}:{self.function}"


def load_function(program: Program) -> Callable[..., Any]:
    """The program's function. Raises ValueError when the file does not run or does not define it as a function."""
    function = load_object(program)
    if not callable(function):
        raise ValueError(f"{program.path}: {program.function} is a {type(function).__name__}, not a function")
    return function


def load_object(program: Program) -> Any:
    """What the program's file defines under its name. Raises ValueError when it does not run or does not define it."""
    try:
        defined = _Imports(program).run_main()
    except Exception as error:
        raise ValueError(f"{program.path} does not run: {type(error).__name__}: {error}") from error
    if program.function not in defined:
        raise ValueError(f"{program.path} does not define {program.function!r}")
    return defined[program.function]


def split_function_name(name: str) -> tuple[str, str]:
    """`path/to/file.py:function` as its two parts. Raises ValueError for another form."""
    path, colon, function = name.rpartition(":")
    if not colon or not path.endswith(".py") or not function.isidentifier():
        raise ValueError(f"{name!r} must have the form path/to/file.py:function")
    return path, function


class _Imports:
    """The import statement inside one program: modules in its folder come first, as if the folder led `sys.path`.

    Their names in `sys.modules` (where dataclasses and pickle look for a class's module) have a prefix of the program,
    so that they are never confused with another program's `helpers` or with our packages.
    """

    def __init__(self, program: Program) -> None:
        self._program = program
        self._prefix = f"program_{uuid.uuid4().hex[:8]}"
        self._paths = {_dotted(path): path for path in program.modules}
        self._packages = {
            ".".join(name.split(".")[:length]) for name in self._paths for length in range(1, len(name.split(".")))
        } | {name for name, path in self._paths.items() if path.endswith("__init__.py")}
        self._loaded: dict[str, types.ModuleType] = {}

    def run_main(self) -> dict[str, Any]:
        """Everything that the program's file defines."""
        module = self._new_module(self._prefix, package="", path=self._program.path)
        self._run(module, self._program.source, self._program.path)
        return module.__dict__

    def __call__(
        self,
        name: str,
        globals: Mapping[str, Any] | None = None,
        locals: Mapping[str, Any] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> types.ModuleType:
        """`__import__` for the code of the program."""
        if level:
            name = importlib.util.resolve_name("." * level + name, (globals or {}).get("__package__") or "")
        top = name.partition(".")[0]
        if top not in self._paths and top not in self._packages:
            return builtins.__import__(name, globals, locals, fromlist or (), level=0)
        module = self._load(name)
        for item in fromlist or ():
            below = f"{name}.{item}"
            if below in self._paths or below in self._packages:
                self._load(below)
        return module if fromlist else self._loaded[top]

    def _load(self, name: str) -> types.ModuleType:
        """The module in the program's folder; the packages that contain it are loaded first."""
        if name in self._loaded:
            return self._loaded[name]
        if name not in self._paths and name not in self._packages:
            raise ModuleNotFoundError(f"No module named {name!r} beside {self._program.path}", name=name)
        parent, _, last = name.rpartition(".")
        package = self._load(parent) if parent else None
        path = self._paths.get(name, "")
        module = self._new_module(
            f"{self._prefix}.{name}", package=name if name in self._packages else parent, path=path or name
        )
        self._loaded[name] = module
        try:
            self._run(module, self._program.modules[path] if path else "", path or name)
        except BaseException:
            del self._loaded[name]
            raise
        if package is not None:
            setattr(package, last, module)
        return module

    def _new_module(self, name: str, *, package: str, path: str) -> types.ModuleType:
        module = types.ModuleType(name)
        module.__dict__.update(
            __package__=package, __file__=path, __builtins__={**builtins.__dict__, "__import__": self}
        )
        sys.modules[name] = module
        return module

    def _run(self, module: types.ModuleType, source: str, path: str) -> None:
        # The user asked to run this program; `dont_inherit` keeps this file's `from __future__` out of it.
        exec(compile(source, path, "exec", dont_inherit=True), module.__dict__)


def _dotted(path: str) -> str:
    """`pkg/words.py` -> `pkg.words`; `pkg/__init__.py` -> `pkg`."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
