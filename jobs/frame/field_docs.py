"""Reads the docstrings under the fields of a config class, which `raymill fields` and the JSON Schemas show."""

import ast
import dataclasses
import inspect
import textwrap


def field_docs(schema: type) -> dict[str, str]:
    """Return the docstrings of the fields of a dataclass: field name -> docstring as one line.

    Inherited fields are included. Fields without a docstring are left out.
    """
    docs: dict[str, str] = {}
    for base in reversed(schema.__mro__):
        if dataclasses.is_dataclass(base):
            docs |= _docs_in_source(base)
    return docs


def class_doc(schema: type) -> str:
    """Return the docstring of a dataclass as one line, or an empty string if the class has no docstring in its
    source."""
    doc = schema.__doc__ or ""
    is_generated = doc.startswith(f"{schema.__name__}(")  # `dataclass` generates a docstring such as `Name(field: int)`
    return "" if is_generated else _one_line(doc)


def _docs_in_source(schema: type) -> dict[str, str]:
    """Return the docstrings of the fields that the class itself defines: field name -> docstring as one line.

    A docstring is the string literal after `field: type = default` in the source of the class.
    """
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(schema))).body
    assert isinstance(definition, ast.ClassDef)
    docs: dict[str, str] = {}
    for field, below in zip(definition.body, definition.body[1:], strict=False):
        match field, below:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(doc))),
            ):
                docs[name] = _one_line(doc)
    return docs


def _one_line(text: str) -> str:
    return " ".join(text.split())
