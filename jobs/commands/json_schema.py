"""The command `raymill fields --schema FOLDER`. It writes a JSON Schema of each config.

Editors use the schemas to complete and check YAML files. The first line of a config file is a comment that tells the
editor the path of the schema, such as `# yaml-language-server: $schema=../schema/pretrain.json`. A schema does not
contain all rules, for example no bounds of numbers. `raymill plan` checks these other rules.
"""

import dataclasses
import types
import typing
from collections.abc import Sequence
from typing import Any, Literal, Union, get_args, get_origin

from cluster.storage import Storage
from jobs.commands.fields import MEANING_TEXTS, default_value, find_config_class
from jobs.frame.field_docs import class_doc, field_docs
from jobs.frame.fields import accepted_kinds, config_key, field_types, is_list_of_choices, user_fields, value_meaning

JsonSchema = dict[str, Any]

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
# Python type of a field -> name of the type in a JSON Schema.
_JSON_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}


def write_schemas(folder: Storage, names: Sequence[str]) -> list[str]:
    """Write `NAME.json` to the folder for each name. Returns the file names.

    A name is the name of a stage or `pipeline`.
    """
    files = [f"{name}.json" for name in names]
    for name, file in zip(names, files, strict=True):
        folder.write_json(file, {"$schema": _DIALECT, "title": f"{name}.yaml", **json_schema(find_config_class(name))})
    return files


def json_schema(config_class: type, default: Any = None, *, is_choice: bool = False) -> JsonSchema:
    """Return the schema of a YAML mapping with the fields of a config dataclass.

    If `config_class` is nested in another config, `default` is the default value of the field that contains it, and the
    attributes of this value are the defaults of the fields of `config_class`. If `default` is None, the defaults in
    `config_class` are used. If `is_choice` is true, the mapping must set exactly one of the fields whose default is
    null (see `list_of_choices`).
    """
    annotations, docs = field_types(config_class), field_docs(config_class)
    fields = user_fields(config_class)
    properties: dict[str, JsonSchema] = {}
    for field in fields:
        value = default_value(field) if default is None else getattr(default, field.name)
        annotation = annotations[field.name]
        if is_choice and value is None:
            annotation = _without_null(annotation)
        properties[config_key(field)] = _property(field, annotation, value, docs.get(field.name, ""))
    schema: JsonSchema = {"type": "object", "additionalProperties": False, "properties": properties}
    if doc := class_doc(config_class):
        schema["description"] = doc
    if required := [
        config_key(field) for field in fields if default is None and default_value(field) is dataclasses.MISSING
    ]:
        schema["required"] = required
    if is_choice:
        schema["oneOf"] = [{"required": [config_key(field)]} for field in fields if default_value(field) is None]
    return schema


def _property(field: dataclasses.Field[Any], annotation: Any, value: Any, doc: str) -> JsonSchema:
    """Return the schema of a field's value.

    `annotation` is the type of the value, and `value` is the default of the field. `value` is `dataclasses.MISSING` if
    the field has no default. The schema's description contains `doc`, the docstring of the field.
    """
    schema = _type_schema(annotation, value, is_choice=is_list_of_choices(field))
    sentences = [doc or schema.get("description", "")]
    if meaning := value_meaning(field):
        kinds = f" ({' or '.join(accepted_kinds(field))})" if accepted_kinds(field) else ""
        sentences.append(f"{meaning.capitalize()}{kinds}: {MEANING_TEXTS[meaning]}.")
    if description := " ".join(filter(None, sentences)):
        schema["description"] = description
    if value is not dataclasses.MISSING and not dataclasses.is_dataclass(value):
        schema["default"] = value
    return schema


def _type_schema(annotation: Any, default: Any, *, is_choice: bool = False) -> JsonSchema:
    """Return the schema of a type.

    `default` and `is_choice` are used only for a dataclass in the type (see `json_schema`).
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    if dataclasses.is_dataclass(annotation):
        class_default = default if isinstance(default, typing.cast(type, annotation)) else None
        return json_schema(typing.cast(type, annotation), class_default, is_choice=is_choice)
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin in (types.UnionType, Union):
        schemas = [_type_schema(argument, default, is_choice=is_choice) for argument in arguments]
        if all(set(schema) == {"type"} for schema in schemas):
            return {"type": [schema["type"] for schema in schemas]}
        return {"anyOf": schemas}
    if origin in (list, tuple):
        return {"type": "array", "items": _type_schema(arguments[0], None, is_choice=is_choice)}
    if origin is dict:
        values = _type_schema(arguments[1], None)
        if arguments[0] is int:
            return {"type": "object", "patternProperties": {r"^\d+$": values}, "additionalProperties": False}
        return {"type": "object", "additionalProperties": values}
    return {"type": _JSON_TYPES[annotation]}


def _without_null(annotation: Any) -> Any:
    """Return X for the type `X | None`."""
    (without_null,) = [argument for argument in get_args(annotation) if argument is not type(None)]
    return without_null
