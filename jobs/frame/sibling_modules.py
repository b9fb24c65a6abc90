"""Finds and reads the modules that a user-provided Python file imports from its own folder.

If an imported module is neither in this folder nor installed, the import fails when the file is executed, which may be
hours into a run. Therefore Raymill raises an error as soon as it reads a file that imports such a module.
"""

import ast
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TypeGuard

import fsspec

_REPOSITORY = Path(__file__).resolve().parents[2]


class Import(NamedTuple):
    """A module that a Python file imports."""

    name: str
    """The dotted name of the module, such as `scoring.rules`."""
    is_required: bool
    """Whether a missing module is an error. False if the import is inside `try … except ImportError` or inside
    `if TYPE_CHECKING`. False also for the name `a.b` of `from a import b`, because `b` may be a function."""


def read_siblings(path: str) -> dict[str, str]:
    """Return the source text of every module in the folder of `path` that the file at `path` imports.

    Modules that these modules import are included. The keys are the paths of the modules' files relative to the folder,
    in sorted order. Raises ValueError if an imported module is neither in the folder nor installed.
    """
    main = path.rpartition("/")[2]
    sources: dict[str, str] = {}
    pending = [(main, read_source(path))]
    while pending:
        importer, source = pending.pop()
        for imported in _imports(parse_source(source, importer), importer):
            for file in _module_files(path, imported, importer):
                if file not in sources and file != main:
                    sources[file] = read_source(sibling_path(path, file))
                    pending.append((file, sources[file]))
    return dict(sorted(sources.items()))


def sibling_path(path: str, name: str) -> str:
    """Return the path or URL of the file `name` in the folder of `path`."""
    folder, slash, _ = path.rpartition("/")
    return f"{folder}{slash}{name}"


def read_source(path: str) -> str:
    """Return the source text of a Python file. Raises ValueError if the file cannot be read."""
    try:
        fs, fs_path = fsspec.core.url_to_fs(path)
        text: str = fs.read_text(fs_path, encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as a Python file ({error})") from error
    return text


def parse_source(source: str, path: str) -> ast.Module:
    """Parse the source text of the Python file `path`. Raises ValueError for a syntax error."""
    try:
        return ast.parse(source, path)
    except SyntaxError as error:
        raise ValueError(f"{path} cannot be read as a Python file ({error})") from error


def _imports(tree: ast.Module, file: str) -> Iterator[Import]:
    """Yield every import in a file. `from a import b` yields both `a` and `a.b`, because `a.b` may be a module.

    `file` is the path of the file relative to the folder of the user-provided file. Raises ValueError for a relative
    import that leaves this folder.
    """
    optional: set[ast.AST] = set()
    for node in ast.walk(tree):
        if _is_optional(node):
            optional.update(child for statement in node.body for child in ast.walk(statement))
    package = file.split("/")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node not in optional) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level > len(package):
                raise ValueError(
                    f"{file}: line {node.lineno}: this relative import leaves the folder of the file; write the name "
                    "of the module without leading dots"
                )
            base = package[: len(package) - node.level + 1] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            yield Import(name, node not in optional)
            yield from (Import(f"{name}.{alias.name}", False) for alias in node.names)


def _is_optional(node: ast.AST) -> TypeGuard[ast.Try | ast.If]:
    """Return whether the node is a statement whose body may import modules that are missing."""
    if isinstance(node, ast.Try):
        return any(_catches_import_error(handler) for handler in node.handlers)
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def _catches_import_error(handler: ast.ExceptHandler) -> bool:
    caught = "" if handler.type is None else ast.unparse(handler.type)
    return not caught or any(name in caught for name in ("ImportError", "ModuleNotFoundError", "Exception"))


def _module_files(path: str, imported: Import, importer: str) -> list[str]:
    """Return the files of an imported module in the folder of `path`, beginning with the `__init__.py` of its packages.

    Returns no files for an installed module, unless the folder has a module of the same name. For a missing module that
    is not required, only the files of its packages are returned. Raises ValueError for a missing module that is
    required. As in Python, an installed package takes precedence over a folder without `__init__.py`. `importer` is the
    file that imports the module.
    """
    files: list[str] = []
    parts = imported.name.split(".")
    for length in range(1, len(parts) + 1):
        module = "/".join(parts[:length])
        candidates = [file for file in (f"{module}/__init__.py", f"{module}.py") if _exists(sibling_path(path, file))]
        is_folder = not candidates and _exists(sibling_path(path, module))
        if length == 1 and not candidates and _is_installed(parts[0]):
            return []
        if not candidates and not is_folder:
            if imported.is_required:
                raise ValueError(
                    f"{path}: {importer} imports {imported.name!r}, which is neither in the folder of the file nor "
                    "installed; put the module into this folder, from which it is shipped, or install it here and on "
                    "the cluster"
                )
            break
        files += candidates[:1]
    return files


def _exists(url: str) -> bool:
    fs, path = fsspec.core.url_to_fs(url)
    return bool(fs.exists(path))


def _is_installed(package: str) -> bool:
    """Return whether a package is installed on this machine.

    A package in the working directory can be imported here, but does not count as installed, because the cluster would
    not have it. Exceptions are the packages of Raymill and packages in a `site-packages` folder.
    """
    if package in sys.builtin_module_names or package in sys.stdlib_module_names:
        return True
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):  # ValueError is raised for a module that is in sys.modules without a spec
        return package in sys.modules
    if spec is None:
        return False
    paths = [Path(path).resolve() for path in (spec.submodule_search_locations or [spec.origin or "/"])]
    working_directory = Path.cwd()
    return any(
        not path.is_relative_to(working_directory)
        or "site-packages" in path.parts
        or path.is_relative_to(_REPOSITORY / package)
        for path in paths
    )
