"""Patterns and formats of JSON schemas, written as llama_cpp's converter to grammars can take them.

What they stand for is the inside of a JSON string: no quote, no backslash, no control character ends it.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Final

from .wording import shown

Range = tuple[int, int]
"""Of code points, both included."""

_LAST: Final = 0x10FFFF
_NEVER: Final = ((0, 0x1F), (0x22, 0x22), (0x5C, 0x5C), (0x7F, 0x7F), (0xD800, 0xDFFF))  # within a string
_SETS: Final = {"d": "0-9", "w": "A-Za-z0-9_", "s": " "}
_SYMBOL: Final = re.compile(r"\\.|\(\?:|\(\?|\[(?:\\.|[^\]\\])+(?P<closed>\])?|[*+?}]\?|.", re.DOTALL)
_ITEM: Final = re.compile(r"\\.|.", re.DOTALL)
_ELSEWHERE: Final = re.compile(r"\\[pPuxcZzkG]|\(\?[<'P]")  # what other languages write, and Python does not

_OCTET: Final = "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_LABEL: Final = "[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?"
_DAYS: Final = "([0-9]+Y([0-9]+M)?([0-9]+D)?|[0-9]+M([0-9]+D)?|[0-9]+D|[0-9]+W)"
_HOURS: Final = "T([0-9]+H([0-9]+M)?([0-9]+S)?|[0-9]+M([0-9]+S)?|[0-9]+S)"
FORMATS: Final = {
    "email": f"^[A-Za-z0-9_+-]+([.][A-Za-z0-9_+-]+)*@{_LABEL}([.]{_LABEL})+$",
    "hostname": f"^{_LABEL}([.]{_LABEL})*$",
    "ipv4": f"^{_OCTET}([.]{_OCTET}){{3}}$",
    "ipv6": "^[0-9a-f]{1,4}(:[0-9a-f]{1,4}){7}$",
    "duration": f"^P({_DAYS}({_HOURS})?|{_HOURS})$",
    "uri": "^[A-Za-z][A-Za-z0-9+.-]*://[A-Za-z0-9:/?#@!$&'()*+,;=._~%-]+$",
}
"""What the converter does not know, as patterns: some of what each format allows."""
_CONVERTED: Final = re.compile(r"date|time|date-time|uuid[1-5]?")


def is_known_format(name: object) -> bool:
    return isinstance(name, str) and (name in FORMATS or bool(_CONVERTED.fullmatch(name)))


def plain(pattern: str) -> str:
    """From ^ to $, of what the converter knows. ValueError for a pattern that no grammar can hold to."""
    made = [_whole(branch) for branch in _branches(pattern)]
    return f"^{made[0]}$" if len(made) == 1 else f"^({'|'.join(made)})$"


def _branches(pattern: str) -> list[str]:
    """The sides of each | that is in no parentheses: an anchor is of its side alone."""
    found, depth = [""], 0
    for match in _SYMBOL.finditer(pattern):
        symbol = match[0]
        depth += symbol.startswith("(") - (symbol == ")")
        if symbol == "|" and depth == 0:
            found.append("")
        else:
            found[-1] += symbol
    return found


def _whole(branch: str) -> str:
    starts = branch.startswith("^")
    ends = branch.endswith("$") and (len(branch) - len(branch[:-1].rstrip("\\"))) % 2 == 1
    made = "".join(_symbols(branch[starts : len(branch) - ends]))
    return f"{'' if starts else '.*'}{made}{'' if ends else '.*'}"


def require_pattern(pattern: str) -> None:
    """Raises ValueError for what is no regular expression in any language."""
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        if not _ELSEWHERE.search(pattern):
            raise ValueError(f"{shown(pattern, 60)} is no pattern: {error}") from None


def _symbols(pattern: str) -> Iterator[str]:
    for match in _SYMBOL.finditer(pattern):
        symbol = match[0]
        if symbol == "(?:":
            yield "("
        elif symbol in ("(?", "^", "$", '"') or (symbol[0] == "[" and match["closed"] is None):
            raise ValueError(f"{symbol} in a pattern is not known here")
        elif symbol[0] in "\\[":
            inner = symbol if symbol[0] == "\\" else symbol[1:-1]
            yield _written(_ranges(inner.removeprefix("^"), inner.startswith("^")))
        elif len(symbol) == 2:  # as few as can be: the same texts
            yield symbol[0]
        else:
            yield symbol


def _ranges(inner: str, negated: bool) -> list[Range]:
    """Of what stands in a class, or of what is escaped."""
    items, found = deque(_ITEM.findall(inner)), []
    while items:
        item = items.popleft()
        if item[0] == "\\" and item[1:].lower() in _SETS:
            found += _ranges(_SETS[item[1].lower()], negated=item[1].isupper())
        elif len(items) > 1 and items[0] == "-" and items[1][1:].lower() not in _SETS:
            items.popleft()
            found.append((_code(item), _code(items.popleft())))
        else:
            found.append((_code(item), _code(item)))
    return list(_without(_complement(found) if negated else found))


def _code(item: str) -> int:
    if item[0] == "\\" and (item[1].isalnum() or item[1] == "_"):
        raise ValueError(f"{item} in a pattern is not known here")
    return ord(item[-1])


def _complement(ranges: Sequence[Range]) -> list[Range]:
    found, start = [], 0
    for low, high in sorted(ranges):
        if low > start:
            found.append((start, low - 1))
        start = max(start, high + 1)
    return [*found, (start, _LAST)] if start <= _LAST else found


def _without(ranges: Sequence[Range]) -> Iterator[Range]:
    """Without what a string cannot have as it is."""
    for low, high in ranges:
        for first, last in _complement(_NEVER):
            if max(low, first) <= min(high, last):
                yield max(low, first), min(high, last)


def _written(ranges: Sequence[Range]) -> str:
    if not ranges:
        raise ValueError("a class of a pattern has nothing that a text of JSON can have")
    return "[" + "".join(letter(a) if a == b else f"{letter(a)}-{letter(b)}" for a, b in ranges) + "]"


def letter(code: int) -> str:
    letter = chr(code)
    if letter.isascii() and (letter.isalnum() or letter == "_"):
        return letter
    return f"\\x{code:02X}" if code < 0x100 else f"\\U{code:08X}"
