"""Programs of the user's own, `path/to/file.py:name` in a config: what is read, checked, shipped and hashed.

With the file go the modules in its folder that it imports, and those that they import. A module that is neither there
nor installed would fail on the first completion, hours into a run, so it is refused here.
"""

import ast
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TypeGuard

import fsspec

from actors.program import Program, split_name

_HOME = Path(__file__).resolve().parents[2]


def read_function(name: str, parameters: tuple[str, ...]) -> Program:
    """The program of `path/to/file.py:function`, for a function that may be `async def`.

    Raises ValueError when the file has no such function of these parameters, or imports a module that is neither beside
    it nor installed. The text is parsed, not run: it runs on the cluster.
    """
    program = read_program(name)
    functions = {
        node.name: node.args
        for node in _parse(program.source, program.path).body
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    }
    if program.function not in functions:
        names = ", ".join(functions) or "none"
        raise ValueError(f"{program.path} has no function {program.function!r}; it defines {names}")
    arguments = functions[program.function]
    most = len(arguments.posonlyargs) + len(arguments.args)
    if arguments.vararg is None and not most - len(arguments.defaults) <= len(parameters) <= most:
        raise ValueError(f"{program.function} of {program.path} must take ({', '.join(parameters)})")
    return program


def read_verifier(name: str) -> Program:
    """The program of a function that scores completions. Raises ValueError as `read_function` does."""
    return read_function(name, ("prompt", "completion", "record"))


def read_algorithm(name: str) -> str | Program:
    """The name of an RL algorithm of the table, or the program that defines one. Raises as `read_program` does."""
    return read_program(name) if name.rpartition(":")[0].endswith(".py") else name


def read_program(name: str) -> Program:
    """The program of `path/to/file.py:name`, with the modules that it imports from its folder.

    Raises ValueError when a file cannot be read, or a module is neither beside the file nor installed.
    """
    path, function = split_name(name)
    return Program(_read(path), path, function, read_siblings(path))


def read_siblings(path: str) -> dict[str, str]:
    """Source text of every module in the file's folder that it imports, directly or not, by its path there, sorted.

    Raises ValueError for a module that is neither there nor installed.
    """
    main = path.rpartition("/")[2]
    sources: dict[str, str] = {}
    pending = [(main, _read(path))]
    while pending:
        where, source = pending.pop()
        for name, is_required in _imported(_parse(source, where), where):
            for file in _find(path, name, where, is_required=is_required):
                if file not in sources and file != main:
                    sources[file] = _read(beside(path, file))
                    pending.append((file, sources[file]))
    return dict(sorted(sources.items()))


def refuse_file_lookups(path: str) -> None:
    """Raises ValueError for a program that uses `__file__`, because only the modules that it imports are shipped."""
    for name, source in {path.rpartition("/")[2]: _read(path), **read_siblings(path)}.items():
        for node in ast.walk(_parse(source, name)):
            if isinstance(node, ast.Name) and node.id == "__file__":
                raise ValueError(
                    f"{beside(path, name)}: line {node.lineno}: __file__ leads nowhere on the cluster, where "
                    "a program comes with the modules that it imports and with no other file; keep its data in such a "
                    "module (WORDS = [...] in words.py), or read them from a URL or a path that all machines see"
                )


def beside(path: str, name: str) -> str:
    """The path or URL of a file in the folder of another."""
    folder, slash, _ = path.rpartition("/")
    return f"{folder}{slash}{name}"


def _imported(tree: ast.Module, where: str) -> Iterator[tuple[str, bool]]:
    """(dotted name, whether it is required) of every import; one in a try block or for types alone is not required.

    `from a import b` gives both `a` and `a.b`, because b may be a module.
    """
    optional: set[ast.AST] = set()
    for node in ast.walk(tree):
        if _is_optional(node):
            optional.update(child for statement in node.body for child in ast.walk(statement))
    package = where.split("/")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node not in optional) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level > len(package):
                raise ValueError(
                    f"{where}: line {node.lineno}: a relative import beyond its folder; name the module without dots"
                )
            base = package[: len(package) - node.level + 1] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            yield name, node not in optional
            yield from ((f"{name}.{alias.name}", False) for alias in node.names)


def _is_optional(node: ast.AST) -> TypeGuard[ast.Try | ast.If]:
    """Whether what the node's body imports may be missing."""
    if isinstance(node, ast.Try):
        return any(_catches_import(handler) for handler in node.handlers)
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def _catches_import(handler: ast.ExceptHandler) -> bool:
    caught = "" if handler.type is None else ast.unparse(handler.type)
    return not caught or any(name in caught for name in ("ImportError", "ModuleNotFoundError", "Exception"))


def _find(path: str, name: str, where: str, *, is_required: bool) -> list[str]:
    """The files of a module in the program's folder, after those of its packages; none for an installed module.

    As in Python, an installed package takes precedence over a folder without `__init__.py`.
    """
    files: list[str] = []
    parts = name.split(".")
    for length in range(1, len(parts) + 1):
        at = "/".join(parts[:length])
        here = [file for file in (f"{at}/__init__.py", f"{at}.py") if _exists(beside(path, file))]
        is_folder = not here and _exists(beside(path, at))
        if length == 1 and not here and _is_installed(parts[0]):
            return []
        if not here and not is_folder:
            if is_required:
                raise ValueError(
                    f"{path}: {where} imports {name!r}, which is neither beside it nor installed; put the "
                    "module into the file's folder, which is shipped, or install it here and on the cluster"
                )
            break
        files += here[:1]
    return files


def _exists(url: str) -> bool:
    fs, place = fsspec.core.url_to_fs(url)
    return bool(fs.exists(place))


def _is_installed(top: str) -> bool:
    """Whether the cluster may have the module too, which it has not where only the working directory has it."""
    if top in sys.builtin_module_names or top in sys.stdlib_module_names:
        return True
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):  # found in sys.modules without a spec
        return top in sys.modules
    if spec is None:
        return False
    places = [Path(place).resolve() for place in (spec.submodule_search_locations or [spec.origin or "/"])]
    here = Path.cwd()
    return any(
        not place.is_relative_to(here) or "site-packages" in place.parts or place.is_relative_to(_HOME / top)
        for place in places
    )


def _read(path: str) -> str:
    try:
        fs, place = fsspec.core.url_to_fs(path)
        text: str = fs.read_text(place, encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as a Python file ({error})") from error
    return text


def _parse(source: str, path: str) -> ast.Module:
    try:
        return ast.parse(source, path)
    except SyntaxError as error:
        raise ValueError(f"{path} cannot be read as a Python file ({error})") from error
