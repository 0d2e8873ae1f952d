"""llama_cpp's converter of JSON schemas to grammars, mended where its grammar takes what the schema does not.

Strings have no control characters, which JSON only knows escaped; nothing that a pattern's dot, classes and
\\d stand for ends a string; names and constants may have quotes; integers keep to their bounds. Importing it
mends it for all.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, Final

from llama_cpp import llama_grammar

from .patterns import FORMATS, is_known_format, plain, require_pattern
from .wording import shown

_LOWEST, _HIGHEST = "minimum", "maximum"
_BOUNDS: Final = (_LOWEST, _HIGHEST, "exclusiveMinimum", "exclusiveMaximum")
_NOT_HELD: Final = frozenset(
    "multipleOf uniqueItems contains minContains maxContains minProperties maxProperties patternProperties "
    "propertyNames not if then else dependentRequired dependentSchemas unevaluatedItems "
    "unevaluatedProperties".split()
)
_OF_OTHERS: Final = ("properties", "enum", "const", "default", "examples")  # names and values, no schemas
_MOST: Final = 10**16 - 1  # the converter's integers have 16 digits at most
_PLAIN: Final = r"\"\\\x00-\x1F\x7F"  # what ends a string or has to be escaped, in a class of a grammar
_OF_OBJECTS: Final = {"properties", "additionalProperties", "allOf"}
_ANY: Final = {"type": ["object", "array", "string", "number", "boolean", "null"]}
_SHAPES: Final = frozenset(  # without one of these a schema allows anything
    "type const enum $ref $whole oneOf anyOf allOf properties additionalProperties items prefixItems "
    "minItems maxItems pattern format minLength maxLength".split()
)
MOST_TIMES: Final = 2000  # that something may be repeated: the parser writes it out
MOST_RULES: Final = 20_000  # of a grammar, with those that parentheses and repetitions become
MOST_BYTES: Final = 2**20  # of a grammar
TOO_MANY: Final = "it has too many rules, with those that its repetitions become"
TOO_LARGE: Final = "it is too large"


def require_held(schema: Any) -> None:
    """Raises ValueError for what a schema asks for and its grammar does not hold to."""
    rest = [schema]
    while rest:
        part = rest.pop()
        if isinstance(part, list):
            rest += part
        elif isinstance(part, dict):
            of_numbers = {name for name in _BOUNDS if name in part and "integer" not in _types(part)}
            if found := sorted(of_numbers | _NOT_HELD & part.keys() | _not_held_of_text(part)):
                raise ValueError(f"no grammar holds to its {found[0]!r}: leave that out, or strict")
            named = part.get("properties")  # whatever names those have
            rest += [value for name, value in part.items() if name not in _OF_OTHERS]
            rest += named.values() if isinstance(named, dict) else ()


def _is_too_long(schema: Mapping[str, Any]) -> bool:
    """A text of it may be longer than a grammar can count."""
    return type(schema.get("maxLength")) is int and schema["maxLength"] > MOST_TIMES


def _not_held_of_text(schema: Mapping[str, Any]) -> set[str]:
    """Of a text's keywords; a format that is known holds where a pattern cannot."""
    found, pattern = set(), schema.get("pattern")
    if "string" in _types(schema) and "format" in schema and not is_known_format(schema["format"]):
        found.add("format")
    if _is_too_long(schema):
        found.add("maxLength")
    if isinstance(pattern, str) and not is_known_format(schema.get("format")):
        try:
            llama_grammar.json_schema_to_gbnf(json.dumps({"type": "string", "pattern": plain(pattern)}))
        except (ValueError, AssertionError, IndexError):
            found.add("pattern")
    return found


def _types(schema: Mapping[str, Any]) -> list[Any]:
    found = schema.get("type")
    return list(found) if isinstance(found, list) else [found]


def _range(schema: Mapping[str, Any]) -> tuple[int, int] | None:
    """Of the integers that it allows; None where it has no bounds."""
    given = {name: schema[name] for name in _BOUNDS if type(schema.get(name)) in (int, float)}
    if not given:
        return None
    lows = [math.ceil(given.get(_LOWEST, -_MOST)), math.floor(given.get("exclusiveMinimum", -_MOST - 1)) + 1]
    highs = [math.floor(given.get(_HIGHEST, _MOST)), math.ceil(given.get("exclusiveMaximum", _MOST + 1)) - 1]
    low, high = max(*lows, -_MOST), min(*highs, _MOST)
    if low > high:
        raise ValueError(f"no integer is from {low} to {high}")
    return low, high


def _integers(low: int, high: int) -> str:
    """A rule of those from low to high."""
    found = [f'"-" {rule}' for rule in _naturals(max(1, -high), -low)]
    return " | ".join([*found, *_naturals(max(0, low), high)])


def _naturals(low: int, high: int) -> Iterator[str]:
    for n_digits in range(len(str(low)), len(str(max(low, high))) + 1):
        first = max(low, 10 ** (n_digits - 1) if n_digits > 1 else 0)
        last = min(high, 10**n_digits - 1)
        if first <= last:
            yield from _digits(str(first), str(last))


def _digits(low: str, high: str) -> Iterator[str]:
    """Of numbers of as many digits."""
    rest = len(low) - 1
    if not rest or (low[1:] == "0" * rest and high[1:] == "9" * rest):
        yield f"[{low[0]}-{high[0]}]" + f" [0-9]{{{rest}}}" * (rest > 0)
    elif low[0] == high[0]:
        yield from (f'"{low[0]}" {rule}' for rule in _digits(low[1:], high[1:]))
    else:  # those with the first digit of low, of high, and what is between
        border = str(int(low[0]) + 1), str(int(high[0]) - 1)
        yield from (f'"{low[0]}" {rule}' for rule in _digits(low[1:], "9" * rest))
        if border[0] <= border[1]:
            yield from _digits(border[0] + "0" * rest, border[1] + "9" * rest)
        yield from (f'"{high[0]}" {rule}' for rule in _digits("0" * rest, high[1:]))


def _of_array(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """With items that the converter knows, where there may be any or none."""
    items = schema.get("items", {})
    if "prefixItems" in schema or not {"items", "minItems", "maxItems"} & schema.keys():
        return schema
    if items is False or schema.get("maxItems") == 0:
        return {"const": []}
    return {**schema, "items": _ANY} if items in ({}, True) else schema


def _repetition(
    item: str,
    least: int,
    most: int | None,
    separator_rule: str | None = None,
    item_rule_is_literal: bool = False,
) -> str:
    """As grammars write it: the converter's own is nested as deep as there are items."""
    if most == 0:
        return ""
    if separator_rule:
        rest = _repetition(f"({separator_rule} {item})", max(0, least - 1), most and most - 1)
        found = f"{item} {rest}"
        return found if least else f"({found})?"
    if most == 1:
        return item if least else f"{item}?"
    if most is None and least < 2:
        return item + "*+"[least]
    return f"{item}{{{least},{'' if most is None else most}}}"


_resolve: Final = llama_grammar.SchemaConverter.resolve_refs


def _resolve_refs(self: Any, schema: Any, url: str) -> Any:
    """Where all of a schema is a reference, the converter looks no further into it. It begins with this."""
    self._rules_of_parts, self._names, self._n_of_name = {}, {}, Counter()
    self._n_bytes, self._has_root = 0, False
    rest = [schema]
    while rest:
        part = rest.pop()
        rest += part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
        if isinstance(part, dict) and part.get("$ref") == "#":
            part["$whole"] = part.pop("$ref")
        elif isinstance(part, dict) and "$ref" in part:
            _require_part(schema, part["$ref"])
    if isinstance(schema, dict) and "$ref" in schema:
        schema["anyOf"] = [{"$ref": schema.pop("$ref")}]
    return _resolve(self, schema, url)


def _require_part(schema: Any, ref: Any) -> None:
    """Raises ValueError for a reference that leads nowhere."""
    if not isinstance(ref, str) or not ref.startswith("#/"):
        raise ValueError(f"$ref {shown(ref, 60)} is no part of it, such as #/$defs/NAME")
    for name in ref.split("/")[1:]:
        if not isinstance(schema, dict) or name not in schema:
            raise ValueError(f"it has no {shown(ref, 60)}")
        schema = schema[name]


def _resolve_ref(self: Any, ref: str) -> str:
    """A rule of its own for each part that is referred to, which may refer to itself."""
    rules: dict[str, str] = self._rules_of_parts
    if ref not in rules:
        rules[ref] = self._add_rule(f"part-{len(rules)}", "")  # a property may have that name
        self._rules[rules[ref]] = self.visit(self._refs[ref], rules[ref])
    return rules[ref]


def _add_rule(self: Any, name: str, rule: str) -> str:
    """As the converter's, but no further than a grammar may go: types that nest grow with their power."""
    name = key = _word(name)
    if self._rules.get(name) == rule:
        return name
    if (name, rule) not in self._names:
        while key in self._rules:
            key = f"{name}{self._n_of_name[name]}"
            self._n_of_name[name] += 1
        self._names[name, rule] = key
        self._rules[key] = rule
        self._n_bytes += len(f"{key} ::= {rule}\n")
        if len(self._rules) > MOST_RULES:
            raise ValueError(TOO_MANY)
        if self._n_bytes > MOST_BYTES:
            raise ValueError(TOO_LARGE)
    return str(self._names[name, rule])


def _word(name: str) -> str:
    return str(llama_grammar.INVALID_RULE_CHARS_RE.sub("-", name))


_convert: Final = llama_grammar.SchemaConverter.visit


def _visit(self: Any, schema: Any, name: str) -> Any:
    """A rule of the schema. Without a name it is the first one, or one of a property with the name ""."""
    name = _word(name)  # those that are reserved are words
    if not name:
        name, self._has_root = "empty" if self._has_root else "", True
    if schema is False:
        raise ValueError("a part of it is false, and nothing is of that")
    schema = {} if schema is True else schema
    if not isinstance(schema, Mapping):
        raise ValueError(f"{shown(schema, 60)} is no schema")
    if "$whole" in schema:
        return "root"
    if not _SHAPES & schema.keys():
        schema = _ANY
    if not {"$ref", "oneOf", "anyOf"} & schema.keys():
        kinds = schema.get("type")
        if {"const", "enum"} & schema.keys():
            return _convert(self, {key: value for key, value in schema.items() if key != "type"}, name)
        if isinstance(kinds, list):  # of which each keeps the rest of the schema
            return _convert(
                self, {"anyOf": [{**schema, "type": kind} for kind in dict.fromkeys(kinds)]}, name
            )
        if kinds == "array" or (kinds is None and not _OF_OBJECTS & schema.keys()):
            schema = _of_array(schema)
        if kinds == "integer" and (found := _range(schema)) is not None:
            own = f"{name}-" if name in llama_grammar.RESERVED_NAMES else name or "root"
            return self._add_rule(
                own, f"({_integers(*found)}) {self._add_rule('space', llama_grammar.SPACE_RULE)}"
            )
        return _of_text(self, schema, name)
    return _convert(self, schema, name)


def _of_text(self: Any, schema: Mapping[str, Any], name: str) -> Any:
    """With the pattern of its format, and without what no grammar holds to: that is left to the model."""
    rest = dict(schema)
    pattern, form = rest.pop("pattern", None), rest.get("format")
    if _is_too_long(rest):
        del rest["maxLength"]
    if isinstance(pattern, str):
        require_pattern(pattern)
    elif pattern is not None:
        raise ValueError(f"{shown(pattern, 60)} is no pattern")
    for one in (pattern, FORMATS.get(form) if isinstance(form, str) else None):
        if one is not None:
            with suppress(ValueError, AssertionError, IndexError):
                return _convert(self, {**rest, "pattern": plain(one)}, name)
    return _convert(self, rest, name)


_ESCAPED: Final = r'"\\" (["\\/bfnrt] | "u" [0-9a-fA-F]{4})'
llama_grammar.SchemaConverter.visit = _visit
llama_grammar.SchemaConverter._add_rule = _add_rule
llama_grammar.SchemaConverter.resolve_refs = _resolve_refs
llama_grammar.SchemaConverter._resolve_ref = _resolve_ref
llama_grammar._build_repetition = _repetition
llama_grammar.PRIMITIVE_RULES["char"] = llama_grammar.BuiltinRule(rf"[^{_PLAIN}] | {_ESCAPED}")
llama_grammar.DOT = llama_grammar.DOTALL = rf"[^{_PLAIN}]"
llama_grammar.GRAMMAR_LITERAL_ESCAPE_RE = re.compile(r'[\r\n"\\]')
llama_grammar.GRAMMAR_LITERAL_ESCAPES = {**llama_grammar.GRAMMAR_LITERAL_ESCAPES, "\\": "\\\\"}
