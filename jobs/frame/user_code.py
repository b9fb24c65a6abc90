"""Reads and checks user-provided code, which a config names as `path/to/file.py:name`.

A program is such a file and the name of a function or object in the file. The file is sent to the cluster as text, with
the modules that it imports from its folder (`sibling_modules.py`).
"""

import ast

from cluster.user_program import Program, split_function_name
from jobs.frame.sibling_modules import parse_source, read_siblings, read_source, sibling_path


def read_function(name: str, parameters: tuple[str, ...], *, options: tuple[str, ...] = ()) -> Program:
    """Read the program of a function `path/to/file.py:function`, which may be an `async def` function.

    `parameters` are the names of the positional arguments that Raymill passes. Only their number is compared with the
    function's own parameters. `options` are the arguments that Raymill passes by name to a function that has parameters
    of these names. Raises ValueError if the file has no such function, if the function cannot be called with these
    arguments, or if the file imports a module that is neither in its folder nor installed. The file is only parsed
    here; it is executed on the cluster.
    """
    program = read_program(name)
    functions = {
        node.name: node.args
        for node in parse_source(program.source, program.path).body
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    }
    if program.function_name not in functions:
        names = ", ".join(functions) or "no function"
        raise ValueError(f"{program.path} has no function {program.function_name!r}; it defines {names}")
    if not _accepts(functions[program.function_name], len(parameters), options):
        optional = f", may have a parameter named {' or '.join(options)}," if options else ""
        raise ValueError(
            f"the function {program.function_name} in {program.path} must accept the parameters "
            f"({', '.join(parameters)}){optional} and must not need others"
        )
    return program


def _accepts(arguments: ast.arguments, num_passed: int, options: tuple[str, ...]) -> bool:
    """Return whether a function with these parameters accepts `num_passed` positional arguments and the options.

    An option may be any parameter after the positional arguments that can be passed by name.
    """
    positional = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args)]
    num_required = len(positional) - len(arguments.defaults)
    if set(options) & set(positional[: max(num_passed, len(arguments.posonlyargs))]):
        return False
    accepts_all = arguments.vararg is not None or num_passed <= len(positional)
    missing = positional[num_passed:num_required]
    keywords = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    missing += [argument.arg for argument, default in keywords if default is None]
    return accepts_all and set(missing) <= set(options)


def read_verifier_program(name: str) -> Program:
    """Read the program of a verifier, a function that scores completions. Raises ValueError as `read_function` does."""
    return read_function(name, ("prompt", "completion", "record"), options=("truncated",))


def read_algorithm_program(name: str) -> str | Program:
    """Return the program of an RL algorithm if `name` is user-provided code (`path/to/file.py:NAME`).

    Otherwise `name` is the name of a built-in algorithm and is returned unchanged. Raises ValueError as `read_program`
    does.
    """
    return read_program(name) if name.rpartition(":")[0].endswith(".py") else name


def read_program(name: str) -> Program:
    """Read the program `path/to/file.py:name`, with the modules that the file imports from its folder.

    Raises ValueError if a file cannot be read, or if an imported module is neither in the folder nor installed.
    """
    path, function = split_function_name(name)
    return Program(read_source(path), path, function, read_siblings(path))


def reject_file_lookups(path: str) -> None:
    """Raises ValueError if the Python file at `path`, or a module that it imports from its folder, uses `__file__`.

    The reason is that code uses `__file__` to find data files in its own folder. These files would be missing on the
    cluster, because only Python modules are shipped.
    """
    for name, source in {path.rpartition("/")[2]: read_source(path), **read_siblings(path)}.items():
        for node in ast.walk(parse_source(source, name)):
            if isinstance(node, ast.Name) and node.id == "__file__":
                raise ValueError(
                    f"{sibling_path(path, name)}: line {node.lineno}: __file__ leads nowhere on the cluster: only the "
                    "program and the modules that it imports are shipped. Keep the program's data in such a module "
                    "(WORDS = [...] in words.py), or read the data from a URL or a path that all machines see"
                )
