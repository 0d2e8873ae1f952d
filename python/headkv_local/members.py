"""What an object of a JSON schema has in it, as rules of a grammar.

Those of llama_cpp's converter leave out the comma before further names, and let those be names that the
schema has, with any value.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any, Final

from llama_cpp.llama_grammar import PRIMITIVE_RULES

from .merging import ImpossibleError
from .patterns import letter

PLAIN: Final = r"\"\\\x00-\x1F\x7F"  # what ends a string or has to be escaped, in a class of a grammar
_ESCAPES: Final = {'"': '"', "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}


def written(value: Any) -> str:
    """As a model writes it: letters as they are, for a choice between their numbers is no choice."""
    found = json.dumps(value, ensure_ascii=False, allow_nan=False)
    try:
        found.encode()
    except UnicodeEncodeError:  # half a character, which only its number can say
        return json.dumps(value)
    return found


def rule_of(
    converter: Any,
    properties: Collection[tuple[str, Any]],
    required: Collection[str],
    name: str,
    additional: Any,
) -> str:
    """Those that it must have, those that it may have, and then what has other names, each in its order."""
    prefix, order = f"{name}-" if name else "", converter._prop_order
    musts: list[str] = []
    mays: list[str] = []
    for key, schema in sorted(properties, key=lambda one: order.get(one[0], len(order))):
        try:
            value = converter.visit(schema, f"{prefix}{key}")
        except ImpossibleError:  # it may only be left out
            if key in required:
                raise
            continue
        pair = f'{converter._format_literal(written(key))} space ":" space {value}'
        (musts if key in required else mays).append(converter._add_rule(f"{prefix}{key}-kv", pair))
    rest, first = "", []
    with suppress(ImpossibleError):  # then there are no others
        if additional is True or isinstance(additional, Mapping):
            value = converter.visit({} if additional is True else additional, f"{prefix}additional-value")
            key = _other_name(converter, f"{prefix}additional-name", [key for key, _ in properties])
            pair = converter._add_rule(f"{prefix}additional-kv", f'{key} ":" space {value}')
            rest = f'("," space {pair})*'
            first.append(f"{pair} {rest}")
    for pair in reversed(mays):
        first.append(f"{pair} {rest}")
        rest = converter._add_rule(f"{prefix}rest", f'("," space {pair})? {rest}')
    inner = ' "," space '.join(musts) + f" {rest}" if musts else f"({' | '.join(first)})?" if first else ""
    return f'"{{" space {inner} "}}" space'


def _other_name(converter: Any, name: str, names: Collection[str]) -> str:
    if not names:
        return str(converter._add_primitive("string", PRIMITIVE_RULES["string"]))
    other = _other_text(converter, name, names)
    return str(converter._add_rule(f"{name}-string", rf'"\"" {other} "\"" space'))


def _other_text(converter: Any, name: str, texts: Collection[str]) -> str:
    r"""A rule of all texts but these. Until it is another one it has no \u, which may spell any of them."""
    char = converter._add_primitive("char", PRIMITIVE_RULES["char"])
    begun: list[dict[str, int]] = [{}]  # what may come next of these texts, and where that leads
    ends = set()
    for text in texts:
        at = 0
        for c in text:
            if c not in begun[at]:
                begun[at][c] = len(begun)
                begun.append({})
            at = begun[at][c]
        ends.add(at)
    rules = [""] * len(begun)
    for at, following in reversed(list(enumerate(begun))):  # those that others lead to come first
        plain = "".join(letter(ord(c)) for c in following if written(c) == f'"{c}"')
        escapes = "".join(letter(ord(key)) for key, meant in _ESCAPES.items() if meant not in following)
        found = [rf"[^{PLAIN}{plain}] {char}*", *([rf'"\\" [{escapes}] {char}*'] if escapes else ())]
        found += [f"{converter._format_literal(written(c)[1:-1])} {rules[to]}" for c, to in following.items()]
        rules[at] = str(converter._add_rule(name, f"({' | '.join(found)}){'' if at in ends else '?'}"))
    return rules[0]
