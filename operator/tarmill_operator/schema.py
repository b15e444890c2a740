"""OpenAPI schemas from specs: one property for each field, with its help, default, choices and bounds (pure).

Everything has a bound, since the API server refuses CEL rules over what might be endless
(https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/#validation-rules).
"""

from __future__ import annotations

from typing import Any

from tarmill.spec_base import Option, camel, option_of
from tarmill.values import Field, fields

Schema = dict[str, Any]

SIZE_PATTERN = r"^[0-9]+(\.[0-9]+)?([kKmMgGtT]i?)?[bB]?$"
DURATION_PATTERN = r"^[0-9]+(\.[0-9]+)?(ms|s|m|h|d)?$"
MAX_TEXT = 4096
MAX_SCRIPT = 262_144
MAX_ITEMS = 128
_LONG_TEXTS = frozenset({"script", "reduce_script"})


def properties_of(kind: type[Any]) -> dict[str, Schema]:
    """Give the schema of each field of a spec, by its name in files; of none that belongs to a command line."""
    return {
        camel(field.name): field_schema(field, option_of(field)) for field in fields(kind) if not option_of(field).local
    }


def object_schema(kind: type[Any], description: str, **more: Schema) -> Schema:
    """Make an object of a spec's fields; every field has a default, so the object has one too."""
    return {
        "type": "object",
        "description": description,
        "default": {},
        "properties": {**properties_of(kind), **more},
    }


def field_schema(field: Field, known: Option) -> Schema:
    """Make the schema of one field."""
    schema = {"description": known.file_help or known.help, **_type_of(field, known)}
    if known.choices:
        of_each = schema["items"] if schema.get("type") == "array" else schema
        of_each["enum"] = list(known.choices)
    default = None if field.required else field.make_default()
    if default not in (None, "", (), {}) and not known.hidden:  # the runner knows better, by the script's path
        schema["default"] = default
    return schema


def _type_of(field: Field, known: Option) -> Schema:
    base = field.annotation.partition("[")[0]
    if known.unit:
        pattern = SIZE_PATTERN if known.unit == "bytes" else DURATION_PATTERN
        return {"x-kubernetes-int-or-string": True, "pattern": pattern, "maxLength": 32}
    if known.numeric:
        return {"x-kubernetes-int-or-string": True, "maxLength": MAX_TEXT}
    match base:
        case "str":
            return {"type": "string", "maxLength": MAX_SCRIPT if field.name in _LONG_TEXTS else MAX_TEXT}
        case "bool":
            return {"type": "boolean"}
        case "int":
            return {"type": "integer", "format": "int64"}
        case "float":
            return {"type": "number"}
        case "tuple":
            return {
                "type": "array",
                "maxItems": MAX_ITEMS,
                "items": {"type": "string", "maxLength": MAX_TEXT},
                "x-kubernetes-list-type": "atomic",
            }
        case "dict":
            return {
                "type": "object",
                "maxProperties": MAX_ITEMS,
                "additionalProperties": {"type": "string", "maxLength": MAX_TEXT},
                "x-kubernetes-map-type": "atomic",
            }
    raise AssertionError(f"{field.name}: no schema for {field.annotation}")
