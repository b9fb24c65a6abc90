"""`raymill fields --schema FOLDER`: a JSON Schema of each config, with which editors complete and check the YAML.

Each config file names its schema in its first line, `# yaml-language-server: $schema=../schema/pretrain.json`. Rules
that a type cannot express, such as bounds, are checked by `raymill plan`.
"""

import dataclasses
import types
import typing
from collections.abc import Sequence
from typing import Any, Literal, Union, get_args, get_origin

from cluster.storage import Storage
from jobs.commands.fields import LEGEND, config_named, default_of
from jobs.frame.field_docs import class_doc, field_docs
from jobs.frame.fields import accepted_kinds, is_list_of_choices, user_fields, value_meaning

JsonSchema = dict[str, Any]

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}


def write_schemas(folder: Storage, names: Sequence[str]) -> list[str]:
    """Write `NAME.json` into the folder for each stage, or `pipeline`. Returns the names of the files."""
    files = [f"{name}.json" for name in names]
    for name, file in zip(names, files, strict=True):
        folder.write_json(file, {"$schema": _DIALECT, "title": f"{name}.yaml", **json_schema(config_named(name))})
    return files


def json_schema(config: type, default: Any = None, *, one_of_them: bool = False) -> JsonSchema:
    """The schema of a YAML mapping with the fields of the dataclass.

    `default` is the default value of the field that holds this dataclass; its attributes are then the defaults. With
    `one_of_them` the mapping must set exactly one of the fields that are null by default.
    """
    annotations, docs = typing.get_type_hints(config), field_docs(config)
    fields = user_fields(config)
    properties: dict[str, JsonSchema] = {}
    for field in fields:
        value = default_of(field) if default is None else getattr(default, field.name)
        annotation = annotations[field.name]
        if one_of_them and value is None:
            annotation = _without_null(annotation)
        properties[field.name] = _property(field, annotation, value, docs.get(field.name, ""))
    schema: JsonSchema = {"type": "object", "additionalProperties": False, "properties": properties}
    if doc := class_doc(config):
        schema["description"] = doc
    if required := [field.name for field in fields if default is None and default_of(field) is dataclasses.MISSING]:
        schema["required"] = required
    if one_of_them:
        schema["oneOf"] = [{"required": [field.name]} for field in fields if default_of(field) is None]
    return schema


def _property(field: dataclasses.Field[Any], annotation: Any, value: Any, doc: str) -> JsonSchema:
    """The schema of one field's value, with its docstring as the description."""
    schema = _of_type(annotation, value, one_of_them=is_list_of_choices(field))
    parts = [doc or schema.get("description", "")]
    if meaning := value_meaning(field):
        kinds = f" ({' or '.join(accepted_kinds(field))})" if accepted_kinds(field) else ""
        parts.append(f"{meaning.capitalize()}{kinds}: {LEGEND[meaning]}.")
    if text := " ".join(filter(None, parts)):
        schema["description"] = text
    if value is not dataclasses.MISSING and not dataclasses.is_dataclass(value):
        schema["default"] = value
    return schema


def _of_type(annotation: Any, value: Any, *, one_of_them: bool = False) -> JsonSchema:
    """The schema of a type. `value` is the default, used where the type is a dataclass."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if dataclasses.is_dataclass(annotation):
        default = value if isinstance(value, typing.cast(type, annotation)) else None
        return json_schema(typing.cast(type, annotation), default, one_of_them=one_of_them)
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin in (types.UnionType, Union):
        schemas = [_of_type(one, value, one_of_them=one_of_them) for one in arguments]
        if all(set(schema) == {"type"} for schema in schemas):
            return {"type": [schema["type"] for schema in schemas]}
        return {"anyOf": schemas}
    if origin in (list, tuple):
        return {"type": "array", "items": _of_type(arguments[0], None, one_of_them=one_of_them)}
    if origin is dict:
        values = _of_type(arguments[1], None)
        if arguments[0] is int:
            return {"type": "object", "patternProperties": {r"^\d+$": values}, "additionalProperties": False}
        return {"type": "object", "additionalProperties": values}
    return {"type": _TYPES[annotation]}


def _without_null(annotation: Any) -> Any:
    """`X | None` -> `X`."""
    (kind,) = [one for one in get_args(annotation) if one is not type(None)]
    return kind
