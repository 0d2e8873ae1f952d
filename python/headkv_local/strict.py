"""What a strict JSON schema asks for, and the grammar of it does not hold to."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from .grammars import is_too_large
from .merging import BOUNDS, CONSTANTS, KINDS, MERGED, MOST_PARTS, constants, flat, is_of, part_of
from .patterns import is_known_format
from .schemas import MOST_RULES, is_compiled, is_too_long, types

_NOT_HELD: Final = frozenset(
    "multipleOf uniqueItems contains minContains maxContains minProperties maxProperties patternProperties "
    "propertyNames not if then else dependentRequired dependentSchemas unevaluatedItems "
    "unevaluatedProperties".split()
)
_NOT_BESIDE_CONSTANTS: Final = {"pattern", "properties", "required", "items", "prefixItems"}
_NONE: Final = (ValueError, TypeError, AttributeError)  # of what is no schema
_OF_SCHEMAS: Final = ("items", "prefixItems", "anyOf", "additionalProperties")


def require_held(schema: Any) -> None:
    """Raises ValueError for what a schema asks for and its grammar does not hold to.

    What cannot be compiled at all is left to grammars.of_schema().
    """
    if is_too_large(schema):
        return
    rest: list[Any] = [schema]
    seen: dict[int, Any] = {}  # which keeps them, and so their ids
    looked_at: set[int] = set()
    n_parts = 0  # where some are merged they may be without end, and each has all that it is merged of
    while rest:
        given = rest.pop()
        n_parts += 1
        if n_parts > MOST_RULES:
            raise ValueError("it has too many parts")
        if isinstance(given, list):
            rest += given
        if not isinstance(given, Mapping) or id(given) in seen:
            continue
        seen[id(given)] = given
        if not all(_tells_apart(schemas, schema) for schemas in _one_ofs(given, schema, looked_at)):
            raise ValueError("no grammar holds to its 'oneOf', of which more than one may hold: write anyOf")
        try:
            part = flat(given, schema, MERGED | _NOT_HELD)
            if part is not given:
                n_parts += sum(len(held) for held in part.values() if isinstance(held, list | dict))
            if "$ref" in part:
                rest.append(part_of(schema, part["$ref"]))
        except _NONE:
            continue
        if found := sorted(_not_held(part)):
            raise ValueError(f"no grammar holds to its {found[0]!r}: leave that out, or strict")
        named = part.get("properties")  # whatever names those have
        rest += [part[name] for name in _OF_SCHEMAS if name in part]
        rest += named.values() if isinstance(named, Mapping) else ()


def _not_held(part: Mapping[str, Any]) -> set[str]:
    if CONSTANTS & part.keys():  # of which merging.constants() holds lengths and bounds
        return set((_NOT_HELD | _NOT_BESIDE_CONSTANTS) & part.keys())
    kinds = types(part)
    found = {name for name in BOUNDS if name in part and ("integer" not in kinds or "number" in kinds)}
    found |= _NOT_HELD & part.keys()
    if part.get("additionalProperties") is False and not _required(part) <= set(part.get("properties") or ()):
        found.add("required")
    return found | _not_held_of_array(part) | _not_held_of_text(part)


def _required(part: Mapping[str, Any]) -> set[Any]:
    names = part.get("required")
    return {name for name in names if isinstance(name, str)} if isinstance(names, list) else set()


def _not_held_of_array(part: Mapping[str, Any]) -> set[str]:
    """Beside prefixItems: of those there is one of each, and nothing else."""
    first = part.get("prefixItems")
    if not isinstance(first, list):
        return set()
    found = {"items"} if part.get("items", False) is not False else set()
    least, most = part.get("minItems", 0), part.get("maxItems", len(first))
    if type(least) is int and least > len(first):
        found.add("minItems")
    if type(most) is int and most < len(first):
        found.add("maxItems")
    return found


def _not_held_of_text(part: Mapping[str, Any]) -> set[str]:
    """Of a text's keywords. A format that is known holds where a pattern cannot."""
    found, pattern, form = set(), part.get("pattern"), part.get("format")
    if "string" in types(part) and "format" in part and not is_known_format(form):
        found.add("format")
    if is_too_long(part):
        found.add("maxLength")
    if isinstance(pattern, str):
        if not is_compiled(pattern):
            found |= set() if is_known_format(form) else {"pattern"}
        elif form is not None and not (pattern.startswith("^") and pattern.endswith("$")):
            found.add("format")  # one of a whole text is how tools write the format, such as zod
    if isinstance(pattern, str) or is_known_format(form):
        held = (0,) if isinstance(pattern, str) else (0, 1)  # no text of a format is empty
        found |= {"minLength"} if part.get("minLength", 0) not in held else set()
        found |= {"maxLength"} & part.keys()
    return found


def _one_ofs(schema: Any, root: Any, looked_at: set[int]) -> Iterator[list[Any]]:
    """Those that hold of the same as the schema does, each once."""
    rest = [schema]
    while rest:
        part = rest.pop()
        if not isinstance(part, Mapping) or id(part) in looked_at:
            continue
        looked_at.add(id(part))
        rest += part["allOf"] if isinstance(part.get("allOf"), list) else ()
        if isinstance(part.get("oneOf"), list):
            yield part["oneOf"]
        with suppress(ValueError):
            rest.append(part_of(root, part["$ref"]) if "$ref" in part else None)


def _tells_apart(schemas: Sequence[Any], root: Any) -> bool:
    """Whether nothing is of two of them, as far as types, constants and one property with constants say."""
    groups: dict[Any, list[Mapping[str, Any]]] = {kind: [] for kind in KINDS}
    for given in schemas[: MOST_PARTS + 1]:
        try:
            part = flat(given, root)
            part = flat(part_of(root, part["$ref"]), root) if "$ref" in part else part
            kinds = [kind for kind in types(part) if isinstance(kind, str)] or [*groups]
            if CONSTANTS & part.keys():
                kinds = [kind for kind in groups if any(is_of(value, kind) for value in constants(part))]
        except _NONE:  # nothing is of it, or it is refused later
            continue
        for kind in dict.fromkeys("number" if kind == "integer" else kind for kind in kinds):
            groups.setdefault(kind, []).append(part)
    return len(schemas) <= MOST_PARTS and all(len(one) < 2 or _differ(one, root) for one in groups.values())


def _differ(parts: Sequence[Mapping[str, Any]], root: Any) -> bool:
    if _have_nothing_in_common(parts):
        return True
    named = [found if isinstance(found := part.get("properties"), Mapping) else {} for part in parts]
    names = set.intersection(*(_required(part) & set(one) for part, one in zip(parts, named, strict=True)))
    for name in names:
        with suppress(*_NONE):
            if _have_nothing_in_common([flat(one[name], root) for one in named]):
                return True
    return False


def _have_nothing_in_common(parts: Sequence[Mapping[str, Any]]) -> bool:
    """Of their constants."""
    if not all(CONSTANTS & part.keys() for part in parts):
        return False
    values = [{json.dumps(value, sort_keys=True) for value in constants(part)} for part in parts]
    return len(set().union(*values)) == sum(map(len, values))
