"""JSON schemas of values, made of their types, so that the description cannot differ from what is said."""

from __future__ import annotations

from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, get_args, get_origin

import attrs

_Schema = dict[str, Any]

_PLAIN: Mapping[Any, _Schema] = {
    str: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    NoneType: {"type": "null"},
}


def schemas(kind: type, **moments: tuple[str, ...]) -> dict[str, _Schema]:
    """The schema of the attrs class *kind*, and of those in it, by name.

    :param moments: name of a class → its fields that are shown as RFC 3339 has it.
    """
    found: dict[str, _Schema] = {}
    _add(kind, found, moments)
    return found


def _add(kind: type, found: dict[str, _Schema], moments: Mapping[str, tuple[str, ...]]) -> _Schema:
    if kind.__name__ not in found:
        found[kind.__name__] = {}
        properties = {
            each.name: {"type": "string", "format": "date-time"}
            if each.name in moments.get(kind.__name__, ())
            else _of(each.type, found, moments)
            for each in attrs.fields(attrs.resolve_types(kind))
        }
        found[kind.__name__] |= {
            "type": "object",
            "properties": properties,
            "required": list(properties),
            "additionalProperties": False,
        }
    return {"$ref": f"#/components/schemas/{kind.__name__}"}


def _of(kind: Any, found: dict[str, _Schema], moments: Mapping[str, tuple[str, ...]]) -> _Schema:
    if kind in _PLAIN:
        return dict(_PLAIN[kind])
    if attrs.has(kind):
        return _add(kind, found, moments)
    origin, inner = get_origin(kind), get_args(kind)
    if origin is UnionType:
        return {"anyOf": [_of(each, found, moments) for each in inner]}
    if origin is tuple:
        return {"type": "array", "items": _of(inner[0], found, moments)}
    assert origin is Mapping, f"no schema is known for {kind}"
    return {"type": "object", "additionalProperties": _of(inner[1], found, moments)}
