"""Programs that the user wrote, `path/to/file.py:name` in a config: how they are read, checked and shipped.

A program travels to the cluster as text, with the modules that it imports from its folder (`sibling_modules.py`).
"""

import ast

from cluster.user_program import Program, split_function_name
from jobs.frame.sibling_modules import parse_source, read_siblings, read_source, sibling_path


def read_function(name: str, parameters: tuple[str, ...]) -> Program:
    """The program of `path/to/file.py:function`; the function may be `async def`.

    Raises ValueError when the file has no such function with these parameters, or imports a module that is neither
    beside it nor installed. The text is parsed here, and run only on the cluster.
    """
    program = read_program(name)
    functions = {
        node.name: node.args
        for node in parse_source(program.source, program.path).body
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    }
    if program.function not in functions:
        names = ", ".join(functions) or "none"
        raise ValueError(f"{program.path} has no function {program.function!r}; it defines {names}")
    arguments = functions[program.function]
    num_positional = len(arguments.posonlyargs) + len(arguments.args)
    num_required = num_positional - len(arguments.defaults)
    if arguments.vararg is None and not num_required <= len(parameters) <= num_positional:
        raise ValueError(f"{program.function} of {program.path} must take ({', '.join(parameters)})")
    return program


def read_verifier(name: str) -> Program:
    """The program of a function that scores completions. Raises ValueError as `read_function` does."""
    return read_function(name, ("prompt", "completion", "record"))


def read_algorithm(name: str) -> str | Program:
    """The name of a built-in RL algorithm, or the program that defines one.

    Raises ValueError as `read_program` does.
    """
    return read_program(name) if name.rpartition(":")[0].endswith(".py") else name


def read_program(name: str) -> Program:
    """The program of `path/to/file.py:name`, with the modules that it imports from its folder.

    Raises ValueError when a file cannot be read, or a module is neither beside the file nor installed.
    """
    path, function = split_function_name(name)
    return Program(read_source(path), path, function, read_siblings(path))


def reject_file_lookups(path: str) -> None:
    """Raises ValueError when a program that is to be shipped, or a module beside it, uses `__file__`.

    Only modules that it imports are shipped, so a data file beside it would be missing on the cluster.
    """
    for name, source in {path.rpartition("/")[2]: read_source(path), **read_siblings(path)}.items():
        for node in ast.walk(parse_source(source, name)):
            if isinstance(node, ast.Name) and node.id == "__file__":
                raise ValueError(
                    f"{sibling_path(path, name)}: line {node.lineno}: __file__ leads nowhere on the cluster: only the "
                    "program and the modules that it imports are shipped. Keep the program's data in such a module "
                    "(WORDS = [...] in words.py), or read the data from a URL or a path that all machines see"
                )
