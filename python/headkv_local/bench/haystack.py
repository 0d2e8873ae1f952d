"""Haystack text: the prose of CPython's own language reference, which every installation carries."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache

Count = Callable[[str], int]
"""Number of tokens of a text."""

_SEPARATOR = "\n\n"
_BEFORE = "As ever."
_LEAST_WORDS = 12


@cache
def paragraphs() -> tuple[str, ...]:
    """The paragraphs of `pydoc_data.topics`, in a fixed order; grammar, code, tables and headings left out.

    The text differs a little between Python versions, and with it every figure that is made from it.
    """
    from pydoc_data.topics import topics

    found = []
    for name in sorted(topics):
        for block in topics[name].split("\n\n"):
            text = " ".join(block.split())
            is_prose = not re.search(r"^ {3}|[*=~^+|-]{4}|>>>|::=", block, re.MULTILINE)
            if is_prose and len(text.split()) >= _LEAST_WORDS:
                found.append(text)
    return tuple(dict.fromkeys(found))


def cut(n_tokens: int, count: Count, start: int = 0, source: Sequence[str] | None = None) -> list[str]:
    """Consecutive paragraphs from number `start` on (wrapping round), together as many as fit n_tokens.

    The last one is cut between two words. source: other texts without an empty line, to take in place of
    paragraphs(). Raises ValueError if the text is shorter than that.
    """
    source = paragraphs() if source is None else source
    taken: list[str] = []
    left = n_tokens
    for i in range(len(source)):
        paragraph = source[(start + i) % len(source)]
        cost = _cost(paragraph, count)
        if cost > left:
            taken.extend(_head(paragraph, left, count))
            return taken
        taken.append(paragraph)
        left -= cost
    raise ValueError(
        f"the haystack text has no more than {n_tokens - left} tokens, {n_tokens} were asked for"
    )


def insert(parts: list[str], sentence: str, depth: float, count: Count) -> str:
    """The text of the parts, with the sentence as a paragraph of its own between two of them.

    A share `depth` of the tokens stands before it, as nearly as the parts allow.
    """
    ends = [0]
    for part in parts:
        ends.append(ends[-1] + _cost(part, count))
    at = min(range(len(ends)), key=lambda i: abs(ends[i] - depth * ends[-1]))
    return _SEPARATOR.join([*parts[:at], sentence, *parts[at:]])


def hide(parts: list[str], sentences: Sequence[str], depth: float, count: Count) -> str:
    """The same with several sentences: the first at `depth`, the others at even distances, round the end."""
    for i, sentence in enumerate(sentences):
        parts = insert(parts, sentence, (depth + i / len(sentences)) % 1, count).split(_SEPARATOR)
    return _SEPARATOR.join(parts)


def _cost(part: str, count: Count) -> int:
    """Tokens that a text becomes longer by. A separator may be more of them before a word than at an end."""
    return count(_BEFORE + _SEPARATOR + part) - count(_BEFORE)


def _head(paragraph: str, n_tokens: int, count: Count) -> list[str]:
    words = paragraph.split(" ")
    low, high = 0, len(words)  # the longest head that fits lies between the two
    while low < high:
        middle = (low + high + 1) // 2
        if _cost(" ".join(words[:middle]), count) <= n_tokens:
            low = middle
        else:
            high = middle - 1
    return [" ".join(words[:low])] if low else []
