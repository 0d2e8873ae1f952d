"""llama_cpp's converter of JSON schemas to grammars, mended where its grammar takes what the schema does not.

Strings have no control characters, which JSON only knows escaped; nothing that a pattern's dot, classes and
\\d stand for ends a string; names and constants may have quotes; integers keep to their bounds. Importing it
mends it for all.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import count
from typing import Any, Final

from llama_cpp import llama_grammar

from .members import PLAIN, rule_of, written
from .merging import BOUNDS, CONSTANTS, SHAPES, ImpossibleError, constants, flat, is_of_parts, part_of
from .patterns import FORMATS, plain, require_pattern
from .wording import shown

_LOWEST, _HIGHEST = "minimum", "maximum"
_MOST: Final = 10**16 - 1  # the converter's integers have 16 digits at most
_NOTHING: Final = r"[^\U00000000-\U0010FFFF]"  # a rule that no text is of
_OF_OBJECTS: Final = {"properties", "additionalProperties", "required"}
_ANY: Final = {"type": ["object", "array", "string", "number", "boolean", "null"]}
MOST_TIMES: Final = 2000  # that something may be repeated: the parser writes it out
MOST_RULES: Final = 20_000  # of a grammar, with those that parentheses and repetitions become
MOST_BYTES: Final = 2**20  # of a grammar
TOO_MANY: Final = "it has too many rules, with those that its repetitions become"
TOO_LARGE: Final = "it is too large"


def is_too_long(schema: Mapping[str, Any]) -> bool:
    """A text of it may be longer than a grammar can count."""
    return type(schema.get("maxLength")) is int and schema["maxLength"] > MOST_TIMES


def types(schema: Mapping[str, Any]) -> list[Any]:
    found = schema.get("type")
    return list(found) if isinstance(found, list) else [found]


def _range(schema: Mapping[str, Any]) -> tuple[int, int] | None:
    """Of the integers that it allows; None where it has no bounds."""
    given = {name: schema[name] for name in BOUNDS if type(schema.get(name)) in (int, float)}
    if not given:
        return None
    lows = [math.ceil(given.get(_LOWEST, -_MOST)), math.floor(given.get("exclusiveMinimum", -_MOST - 1)) + 1]
    highs = [math.floor(given.get(_HIGHEST, _MOST)), math.ceil(given.get("exclusiveMaximum", _MOST + 1)) - 1]
    low, high = max(*lows, -_MOST), min(*highs, _MOST)
    if low > high:
        raise ImpossibleError(f"no integer is from {low} to {high}")
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


def _require_order(least: Any, most: Any, what: str) -> None:
    if type(least) is int and type(most) is int and least > most:
        raise ImpossibleError(f"nothing has at least {least} {what} and at most {most}")


def _of_array(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """With items that the converter knows, where there may be any or none; prefixItems have none behind."""
    items = schema.get("items", {})
    if "prefixItems" in schema:
        return {name: value for name, value in schema.items() if name != "items"}
    if not {"items", "minItems", "maxItems"} & schema.keys():
        return schema
    most = 0 if items is False else schema.get("maxItems")
    _require_order(schema.get("minItems"), most, "items")
    if most == 0:
        return {"const": []}
    return {**schema, "items": _ANY} if items in ({}, True) else schema


def _of_object(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """With a property for each name that is required, which may be anything where it may be there."""
    names = schema.get("required")
    if not isinstance(names, list):  # early drafts had a boolean
        return {name: value for name, value in schema.items() if name != "required"}
    named, others = schema.get("properties", {}), schema.get("additionalProperties")
    if others is False or not set(names) - set(named):
        return schema
    other = {} if others in (None, True) else others
    opened = {} if "properties" in schema or others is not None else {"additionalProperties": True}
    return {**schema, **opened, "properties": {**named, **{n: other for n in names if n not in named}}}


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


def _resolve_refs(self: Any, schema: Any, url: str) -> Any:
    """What a conversion begins with: raises ValueError for a reference that leads nowhere."""
    self._root, self._rules_of_parts, self._kept = schema, {"#": "root"}, []
    self._numbers = count()
    self._names, self._n_of_name, self._n_bytes, self._has_root = {}, Counter(), 0, False
    rest = [schema]
    while rest:
        part = rest.pop()
        rest += part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
        if isinstance(part, dict) and "$ref" in part:
            part_of(schema, part["$ref"])
    return schema


def _resolve_ref(self: Any, ref: str) -> str:
    return _rule_of(self, ref, part_of(self._root, ref))


def _rule_of(self: Any, key: Any, schema: Any) -> str:
    """A rule of its own for each part that is referred to, which may refer to itself."""
    rules: dict[Any, str] = self._rules_of_parts
    if key not in rules:
        name = rules[key] = self._add_rule(
            f"part-{next(self._numbers)}", _NOTHING
        )  # a property may have that name
        try:
            self._rules[name] = self.visit(schema, name)
        except ImpossibleError:
            del rules[key]
            raise
    return rules[key]


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


def _own(name: str) -> str:
    return f"{name}-" if name in llama_grammar.RESERVED_NAMES else name or "root"


_convert: Final = llama_grammar.SchemaConverter.visit


def _visit(self: Any, schema: Any, name: str) -> Any:
    """A rule of the schema. Without a name it is the first one, or one of a property with the name ""."""
    name = _word(name)  # those that are reserved are words
    if not name:
        name, self._has_root = "empty" if self._has_root else "", True
    given, schema = schema, flat(schema, self._root)
    if is_of_parts(given) and "$ref" not in schema:  # it may come again within itself
        self._kept.append(given)  # and so its id
        return self._add_rule(_own(name), _rule_of(self, id(given), schema))
    if "$ref" in schema:
        return _convert(self, schema, name)
    if "anyOf" in schema:
        return _of_union(self, schema["anyOf"], name)
    if "required" in schema:
        schema = _of_object(schema)
    if not SHAPES & schema.keys():
        schema = _ANY
    kinds = schema.get("type")
    if CONSTANTS & schema.keys():
        return _convert(self, {"enum": constants(schema)}, name)
    if isinstance(kinds, list):  # of which each keeps the rest of the schema
        return _of_union(self, [{**schema, "type": kind} for kind in dict.fromkeys(kinds)], name)
    if kinds is None and _OF_OBJECTS & schema.keys():
        schema = {**schema, "type": "object"}
    elif kinds in ("array", None):
        schema = _of_array(schema)
    if kinds == "integer" and (found := _range(schema)) is not None:
        return self._add_rule(
            _own(name), f"({_integers(*found)}) {self._add_rule('space', llama_grammar.SPACE_RULE)}"
        )
    return _of_text(self, schema, name)


def _of_union(self: Any, schemas: Any, name: str) -> Any:
    """Of those that something can be of."""
    rules, reason = [], ImpossibleError("nothing is of no alternatives")
    for n, schema in enumerate(schemas):
        try:
            rules.append(self.visit(schema, f"{name or 'alternative'}-{n}"))
        except ImpossibleError as error:
            reason = error
    if not rules:
        raise reason
    return self._add_rule(_own(name), " | ".join(rules))


def _of_text(self: Any, schema: Mapping[str, Any], name: str) -> Any:
    """With the pattern of its format, and without what no grammar holds to: that is left to the model."""
    rest = dict(schema)
    if {"minLength", "maxLength"} & schema.keys():
        rest.setdefault("type", "string")
    if rest.get("type") == "string":
        _require_order(schema.get("minLength"), schema.get("maxLength"), "characters")
    pattern, form = rest.pop("pattern", None), rest.get("format")
    if is_too_long(rest):
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


def is_compiled(pattern: str) -> bool:
    """Whether a grammar holds to a pattern."""
    converter = llama_grammar.SchemaConverter(
        prop_order={}, allow_fetch=False, dotall=False, raw_pattern=False
    )
    converter.resolve_refs({}, "")
    try:  # past _of_text(), which goes on without it
        _convert(converter, {"type": "string", "pattern": plain(pattern)}, "text")
    except (ValueError, AssertionError, IndexError, RecursionError):
        return False
    return True


def _of_constant(self: Any, value: Any) -> str:
    return str(self._format_literal(written(value)))


_ESCAPED: Final = r'"\\" (["\\/bfnrt] | "u" [0-9a-fA-F]{4})'
llama_grammar.SchemaConverter.visit = _visit
llama_grammar.SchemaConverter._add_rule = _add_rule
llama_grammar.SchemaConverter.resolve_refs = _resolve_refs
llama_grammar.SchemaConverter._resolve_ref = _resolve_ref
llama_grammar.SchemaConverter._build_object_rule = rule_of
llama_grammar.SchemaConverter._generate_constant_rule = _of_constant
llama_grammar._build_repetition = _repetition
llama_grammar.PRIMITIVE_RULES["char"] = llama_grammar.BuiltinRule(rf"[^{PLAIN}] | {_ESCAPED}")
llama_grammar.DOT = llama_grammar.DOTALL = rf"[^{PLAIN}]"
llama_grammar.GRAMMAR_LITERAL_ESCAPE_RE = re.compile(r'[\r\n"\\]')
llama_grammar.GRAMMAR_LITERAL_ESCAPES = {**llama_grammar.GRAMMAR_LITERAL_ESCAPES, "\\": "\\\\"}
