"""Parts of a JSON schema that all hold at once, made one: allOf, and what is beside $ref, anyOf and oneOf.

The converter to grammars knows each of these alone only.
"""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final
from urllib.parse import unquote

from .wording import shown

Schema = Mapping[str, Any]
_KEEPS: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "minimum": operator.ge,
    "maximum": operator.le,
    "exclusiveMinimum": operator.gt,
    "exclusiveMaximum": operator.lt,
}
BOUNDS: Final = tuple(_KEEPS)
CONSTANTS: Final = frozenset(("const", "enum"))
_LENGTHS: Final[dict[type, dict[str, Callable[[Any, Any], bool]]]] = {
    str: {"minLength": operator.ge, "maxLength": operator.le},
    list: {"minItems": operator.ge, "maxItems": operator.le},
}
SHAPES: Final = frozenset(  # without one of these a schema allows anything
    "type const enum $ref oneOf anyOf allOf properties additionalProperties required items prefixItems "
    "minItems maxItems pattern format minLength maxLength".split()
)
MERGED: Final = SHAPES | set(BOUNDS)
MOST_PARTS: Final = 200  # alternatives that have each other in them add some with each step
_JOINING: Final = frozenset(("$ref", "allOf", "anyOf", "oneOf"))
_NUMBER: Final = re.compile("0|[1-9][0-9]{0,8}")
KINDS: Final[dict[str, tuple[type, ...]]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "number": (int, float),
    "integer": (int,),
    "boolean": (bool,),
    "null": (type(None),),
}


class ImpossibleError(ValueError):
    """Nothing is of a schema."""


def flat(schema: Any, root: Any, keywords: frozenset[str] = MERGED) -> Schema:
    """The same schema as {"$ref": ...}, as {"anyOf": ...}, or without these, allOf and oneOf.

    What its properties, items and alternatives are is not looked into: they may have any of them.
    root: the schema that references are of. keywords: a part without one of these asks for nothing.
    Raises ImpossibleError where nothing is of all the parts, ValueError where no schema is the same.
    """
    parts = _unique(_parts(schema, keywords))
    at, seen = 0, set()
    while len(parts) > 1 and at < len(parts):
        ref = parts[at].get("$ref")
        if ref is None:
            at += 1
        else:
            parts[at : at + 1] = () if ref in seen else _parts(part_of(root, ref), keywords)
            seen.add(ref)
    unions = list({id(part["anyOf"]): part for part in parts if "anyOf" in part}.values())
    made: Schema = {}
    for part in parts:
        if "anyOf" not in part:
            made = _both(made, part) if made else part
    if not unions:
        return made
    held = [*([made] if made else []), *unions[1:]]
    alternatives = unions[0]["anyOf"]
    return {"anyOf": [{"allOf": [*held, one]} for one in alternatives] if held else alternatives}


def is_of_parts(schema: Any) -> bool:
    """Whether more than one thing holds at once, so that flat() makes one of them."""
    found = MERGED & schema.keys() if isinstance(schema, Mapping) else set()
    return "allOf" in found or (len(found) > 1 and bool(_JOINING & found))


def part_of(root: Any, ref: Any) -> Any:
    """What a reference leads to. Raises ValueError for one that leads nowhere."""
    if ref == "#":
        return root
    if not isinstance(ref, str) or not ref.startswith("#/"):
        raise ValueError(f"$ref {shown(ref, 60)} is no part of it, such as #/$defs/NAME")
    for step in ref.split("/")[1:]:
        name = unquote(step).replace("~1", "/").replace("~0", "~")
        if isinstance(root, dict) and not root.keys().isdisjoint((step, name)):
            root = root[step if step in root else name]
        elif isinstance(root, list) and _NUMBER.fullmatch(name) and int(name) < len(root):
            root = root[int(name)]
        else:
            raise ValueError(f"it has no {shown(ref, 60)}")
    return root


def _unique(parts: Iterator[Schema]) -> list[Schema]:
    found: list[Schema] = []
    names = set()
    for part in parts:
        if part.get("$ref") not in names:
            found.append(part)
        if "$ref" in part:
            names.add(part["$ref"])
    return found


def _parts(schema: Any, keywords: frozenset[str]) -> Iterator[Schema]:
    """Each either a reference, or alternatives, or without these."""
    rest, n_parts = [schema], 0
    while rest:
        part = rest.pop()
        n_parts += 1
        if n_parts > MOST_PARTS:
            raise ValueError(f"more than {MOST_PARTS} parts of it hold at once")
        if part is True:
            continue
        if part is False:
            raise ImpossibleError("a part of it is false, and nothing is of that")
        if not isinstance(part, Mapping):
            raise ValueError(f"{shown(part, 60)} is no schema")
        if not _JOINING & part.keys():
            if keywords & part.keys():
                yield part
            continue
        if "$ref" in part:
            yield {"$ref": part["$ref"]}
        yield from ({"anyOf": part[name]} for name in ("anyOf", "oneOf") if name in part)
        rest.append({name: value for name, value in part.items() if name not in _JOINING})
        rest += reversed(part.get("allOf", ()))


def _both(one: Schema, other: Schema) -> Schema:
    """What is of one and of the other."""
    made = {**one, **other}
    for name in one:
        if name in other and not _is_same(one[name], other[name]):
            if name in _MERGES:
                made[name] = _MERGES[name](one[name], other[name])
            elif name in SHAPES - {"properties", "const", "enum"}:
                both = f"{shown(one[name], 30)} and {shown(other[name], 30)}"
                raise ValueError(
                    f"no grammar holds to both of {name!r}, {both}, as allOf or a reference asks"
                )
    if "properties" in made:
        made["properties"] = _properties(one, other, made.get("required", ()))
    if CONSTANTS & made.keys():
        made["enum"] = _values(one, other, made.get("type"))
        made.pop("const", None)
    return made


def constants(schema: Schema) -> list[Any]:
    """What its const and its enum allow, of its type, its lengths and its bounds."""
    if schema.get("enum") == []:
        raise ImpossibleError("its enum is empty, and nothing is of that")
    parts = [{name: schema[name]} for name in ("const", "enum") if name in schema]
    found = [value for value in _values(parts[0], parts[-1], schema.get("type")) if _is_within(value, schema)]
    if not found:
        raise ImpossibleError("none of its constants is as long, or as large, as it asks for")
    return found


def _is_within(value: Any, schema: Schema) -> bool:
    size = len(value) if isinstance(value, str | list) else value
    asked = _LENGTHS.get(type(value), _KEEPS if _is_number(value) else {})
    return all(holds(size, schema[name]) for name, holds in asked.items() if _is_number(schema.get(name)))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and bool(one == other)


def _properties(one: Schema, other: Schema, required: Any) -> dict[str, Any]:
    """Of both. What one does not name is as its additionalProperties say: false leaves it out."""
    made = {}
    for name in [*one.get("properties", ()), *other.get("properties", ())]:
        schemas = [
            part.get("properties", {}).get(name, part.get("additionalProperties", True))
            for part in (one, other)
        ]
        if False not in schemas:
            made[name] = _of_all(*schemas)
        elif name in required:
            raise ImpossibleError(f"it requires {name!r}, which another part of it does not allow")
    return made


def _of_all(one: Any, other: Any) -> Any:
    if one is False or other is False:
        return False
    if one is True or _is_same(one, other):
        return other
    return one if other is True else {"allOf": [one, other]}


def _values(one: Schema, other: Schema, kinds: Any) -> list[Any]:
    """The constants that both allow."""
    lists = [
        {json.dumps(value, sort_keys=True): value for value in _constants(part)}
        for part in (one, other)
        if CONSTANTS & part.keys()
    ]
    found = [
        value
        for text, value in lists[0].items()
        if all(text in values for values in lists) and is_of(value, kinds)
    ]
    if not found:
        raise ImpossibleError("a constant of one part of it is none of another, or not of its type")
    return found


def _constants(schema: Schema) -> list[Any]:
    return [schema["const"]] if "const" in schema else list(schema["enum"])


def is_of(value: Any, kinds: Any) -> bool:
    if kinds is None:
        return True
    return any(
        (isinstance(value, KINDS.get(kind, (object,))) and isinstance(value, bool) <= (kind == "boolean"))
        or (kind == "integer" and isinstance(value, float) and value.is_integer())
        for kind in dict.fromkeys(_list(kinds))
    )


def _kinds(one: Any, other: Any) -> Any:
    """The types of both; an integer is a number."""
    ones, others = dict.fromkeys(_list(one)), dict.fromkeys(_list(other))
    found = [kind for kind in ones if kind in others or (kind == "integer" and "number" in others)]
    found += [kind for kind in others if kind == "integer" and "number" in ones and kind not in ones]
    if not found:
        raise ImpossibleError(f"nothing has the type {shown(one)} and {shown(other)}")
    return found[0] if len(found) == 1 else found


def _list(kinds: Any) -> list[Any]:
    return list(kinds) if isinstance(kinds, list) else [kinds]


def _names(one: Any, other: Any) -> list[str]:
    return list(dict.fromkeys([*one, *other]))


_MERGES: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "type": _kinds,
    "required": _names,
    "items": _of_all,
    "additionalProperties": _of_all,
    **dict.fromkeys(("minimum", "exclusiveMinimum", "minLength", "minItems"), max),
    **dict.fromkeys(("maximum", "exclusiveMaximum", "maxLength", "maxItems"), min),
}
