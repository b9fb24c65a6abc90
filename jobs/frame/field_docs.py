"""The docstrings under the fields of a config, read from its source for `raymill fields` and the JSON Schemas."""

import ast
import dataclasses
import inspect
import textwrap


def field_docs(schema: type) -> dict[str, str]:
    """The docstring of every documented field of a dataclass, inherited ones included, each on one line."""
    docs: dict[str, str] = {}
    for base in reversed(schema.__mro__):
        if dataclasses.is_dataclass(base):
            docs |= _docs_in_source(base)
    return docs


def class_doc(schema: type) -> str:
    """The dataclass's own docstring on one line; empty where it has none."""
    doc = schema.__doc__ or ""
    return "" if doc.startswith(f"{schema.__name__}(") else _one_line(doc)  # `Name(field: int)` is dataclass's own


def _docs_in_source(schema: type) -> dict[str, str]:
    """The string literal after each `field: type = default` in the class's own source, by field name."""
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
