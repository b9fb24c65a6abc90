"""A user-provided Python program as source text: its file, and the modules in the same folder that it imports.

The source text is sent to the cluster, so that the workers run exactly the code whose fingerprint the command computed.
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
    """A function, or another object, that a user-provided Python file defines, as source text."""

    source: str
    """Source text of the file."""
    path: str
    """Path of the file. Only used in messages."""
    function_name: str
    """Name of the function, or of another object, in the file."""
    modules: Mapping[str, str] = field(default_factory=dict)
    """Source text of each module that the program imports from the folder of the file, by the module's path relative to
    this folder (`pkg/words.py`)."""

    @property
    def name(self) -> str:
        """The program as a config names it: `path/to/file.py:function`."""
        return f"{self.path}:{self.function_name}"


def load_function(program: Program) -> Callable[..., Any]:
    """Run the program's file and return the program's function.

    Raises ValueError when running the file fails, or when the file does not define such a function.
    """
    function = load_object(program)
    if not callable(function):
        raise ValueError(f"{program.path}: {program.function_name} is a {type(function).__name__}, not a function")
    return function


def load_object(program: Program) -> Any:
    """Run the program's file and return the object that `program.function_name` names.

    Raises ValueError when running the file fails, or when the file does not define this name.
    """
    try:
        namespace = _ProgramImporter(program).run_main()
    except Exception as error:
        raise ValueError(f"{program.path} failed when it was run: {type(error).__name__}: {error}") from error
    if program.function_name not in namespace:
        raise ValueError(f"{program.path} does not define {program.function_name!r}")
    return namespace[program.function_name]


def split_function_name(name: str) -> tuple[str, str]:
    """Split `path/to/file.py:function` into path and function. Raises ValueError if the name has another form."""
    path, colon, function = name.rpartition(":")
    if not colon or not path.endswith(".py") or not function.isidentifier():
        raise ValueError(f"{name!r} must have the form path/to/file.py:function")
    return path, function


class _ProgramImporter:
    """Runs a program and its `import` statements.

    A module in the program's folder is preferred to an installed module of the same name, as if the folder came first
    in `sys.path`. Modules of the program are registered in `sys.modules`, where dataclasses and pickle look for the
    module of a class. In `sys.modules` their names have a random prefix, so that two programs can both have a module
    `helpers`, and a module may have the name of a package of Raymill.
    """

    def __init__(self, program: Program) -> None:
        self._program = program
        self._prefix = f"program_{uuid.uuid4().hex[:8]}"
        self._paths = {_module_name(path): path for path in program.modules}
        """Path of each module of the program, by dotted module name."""
        self._packages = {
            ".".join(name.split(".")[:length]) for name in self._paths for length in range(1, len(name.split(".")))
        } | {name for name, path in self._paths.items() if path.endswith("__init__.py")}
        """Dotted names of the program's packages: all folders that contain its modules."""
        self._loaded: dict[str, types.ModuleType] = {}
        """The modules and packages that were loaded, by dotted name without the random prefix."""

    def run_main(self) -> dict[str, Any]:
        """Run the program's file and return its global names."""
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
        """Import a module for the code of the program. Has the arguments of `__import__`, which it replaces."""
        if level:
            name = importlib.util.resolve_name("." * level + name, (globals or {}).get("__package__") or "")
        top = name.partition(".")[0]
        if top not in self._paths and top not in self._packages:
            return builtins.__import__(name, globals, locals, fromlist or (), level=0)
        module = self._load(name)
        for item in fromlist or ():
            submodule = f"{name}.{item}"
            if submodule in self._paths or submodule in self._packages:
                self._load(submodule)
        return module if fromlist else self._loaded[top]

    def _load(self, name: str) -> types.ModuleType:
        """Load a module of the program, after the packages that contain it."""
        if name in self._loaded:
            return self._loaded[name]
        if name not in self._paths and name not in self._packages:
            raise ModuleNotFoundError(f"No module named {name!r} in the folder of {self._program.path}", name=name)
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
        # The user has asked to run this code. `dont_inherit` keeps the `from __future__` imports of user_program.py out
        # of that code.
        exec(compile(source, path, "exec", dont_inherit=True), module.__dict__)


def _module_name(path: str) -> str:
    """Return the dotted name of a module: `pkg.words` for `pkg/words.py`, `pkg` for `pkg/__init__.py`."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
