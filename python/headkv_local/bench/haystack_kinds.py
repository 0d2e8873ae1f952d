"""What facts are hidden in: prose, code, tables and chat logs, of what every Python installation carries."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from inspect import getsource

from headkv_local import UnsupportedError

from .haystack import paragraphs

_MODULES = (
    "argparse",
    "configparser",
    "csv",
    "ftplib",
    "heapq",
    "mailbox",
    "shutil",
    "statistics",
    "textwrap",
)
_SPEAKERS = ("vera", "joe42", "Mr. Pohl", "kit", "anouk")
_NO_TIME = "[00:00]"
_GOODS = ("nails", "twine", "lamp oil", "slates", "paraffin", "buttons", "hinges", "soap", "chalk", "rivets")
_COLUMNS = ("order", "item", "pieces", "price", "weight", "shelf")
_N_TABLES = 400


@dataclass(frozen=True)
class Kind:
    """blocks: texts without an empty line, to be taken from any place on. dress: a fact as such a block.

    finish: the last touch to a document of these blocks; changes no number of tokens worth counting.
    """

    blocks: Callable[[], Sequence[str]]
    dress: Callable[[str], str] = str
    finish: Callable[[str], str] = str


@cache
def code() -> tuple[str, ...]:
    """Modules of the standard library, cut at empty lines. UnsupportedError where Python has no source."""
    blocks: list[str] = []
    for name in _MODULES:
        try:
            source = getsource(import_module(name))
        except OSError as error:
            raise UnsupportedError(
                f"the haystack of code needs {name}.py, which this Python has no source of"
            ) from error
        blocks.extend(block.rstrip() for block in re.split(r"\n(?:[ \t\f]*\n)+", source) if block.strip())
    return tuple(blocks)


@cache
def tables() -> tuple[str, ...]:
    """Lists of goods that are made up, in Markdown."""
    rng = random.Random("tables")
    return tuple(_table(rng) for _ in range(_N_TABLES))


@cache
def chats() -> tuple[str, ...]:
    """Messages: sentences of the prose, said by one or another."""
    rng = random.Random("chats")
    sentences = (
        sentence for text in paragraphs() for sentence in re.split(r"(?<=[.?!]) (?=[A-Z])", text) if sentence
    )
    return tuple(f"{_NO_TIME} {rng.choice(_SPEAKERS)}: {sentence}" for sentence in sentences)


def _said(fact: str) -> str:
    return f"{_NO_TIME} {_SPEAKERS[len(fact) % len(_SPEAKERS)]}: {fact}"


def _with_times(document: str) -> str:
    """One message every two minutes, so that a hidden one stands in its place in time."""
    minutes = iter(range(8 * 60 + 1, 10**9, 2))

    def next_time(_: re.Match[str]) -> str:
        hour, minute = divmod(next(minutes), 60)
        return f"[{hour % 24:02}:{minute:02}]"

    return re.sub(re.escape(_NO_TIME), next_time, document)


def _table(rng: random.Random) -> str:
    rows = [
        (
            f"{rng.choice('ABCDE')}-{rng.randrange(100, 1000)}",
            rng.choice(_GOODS),
            str(rng.randrange(1, 400)),
            f"{rng.randrange(1, 90)}.{rng.randrange(100):02}",
            f"{rng.randrange(1, 50)} kg",
            f"{rng.choice('NSEW')}{rng.randrange(1, 30)}",
        )
        for _ in range(rng.randrange(4, 9))
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in (_COLUMNS, ("---",) * len(_COLUMNS), *rows))


KINDS: Mapping[str, Kind] = {
    "prose": Kind(paragraphs),
    "code": Kind(code, lambda fact: f"# {fact}"),
    "table": Kind(tables, lambda fact: f"Note: {fact}"),
    "chat": Kind(chats, _said, _with_times),
}
"""Facts are comments between blocks of code, notes between tables, messages among messages."""
