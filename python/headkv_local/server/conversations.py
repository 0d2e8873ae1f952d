"""Conversations, and which of them a prompt goes on with. Nothing here touches a context or a file."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from .. import Retention
from ..tokens import n_same
from .retaining import alike

Tokens = npt.NDArray[np.int32]

_LEAST: Final = 32  # tokens that are worth going back to
_PER_TOKEN: Final = 64  # tokens of a session that are loaded in the time in which one is read
_OWN: Final = 256  # a conversation with less than one token in so many for itself is not worth a copy


@dataclass(eq=False)
class Conversation:
    """tokens: all that its context holds. n_prompt: of its last prompt, as later turns begin with it.
    n_whole: the first ones, of which heads have chosen; where not all rows are there, only a prompt that
    begins with all of these goes on.

    compacted, archived: whether heads have let go of some of it, and whether all rows are there still.
    used: when it was, in seconds of its shelf. saved: whether the session in its file is as it is now.
    """

    tokens: Tokens = field(default_factory=lambda: np.empty(0, np.int32))
    n_prompt: int = 0
    n_whole: int = 0
    compacted: bool = False
    archived: bool = False
    retention: Retention | None = None
    name: str = field(default_factory=lambda: secrets.token_hex(8))
    used: float = 0.0
    saved: bool = False
    n_bytes: int = 0

    def n_reused(self, prompt: Tokens, wanted: Retention | None, going_back: bool) -> int:
        """Tokens that need not be read. going_back: whether the model's layers can go back to any token."""
        n = n_same(self.tokens, prompt)
        if self.compacted and not alike(wanted, self.retention):
            both = self.archived and wanted is not None and wanted.archive is not None
            n = n if both else 0  # kept rows of another choice are not what was asked for
        if self.compacted and not (self.archived and going_back) and n < self.n_whole:
            return 0
        return n

    def goes_on(self, n_common: int) -> bool:
        """Whether a prompt with so many of its tokens continues it, or answers it anew."""
        return n_common >= self.n_prompt > 0

    def has_own(self, n_common: int) -> bool:
        """Whether what others do not have of it is worth a copy, rather than being read again."""
        return _OWN * (len(self.tokens) - n_common) > len(self.tokens)

    def branch(self) -> Conversation:
        """Another one that begins as it does."""
        sizes = self.n_prompt, self.n_whole
        return Conversation(self.tokens, *sizes, self.compacted, self.archived, self.retention)

    def to_json(self) -> dict[str, Any]:
        return {
            "tokens": self.tokens.tolist(),
            "n_prompt": self.n_prompt,
            "n_whole": self.n_whole,
            "compacted": self.compacted,
            "archived": self.archived,
        }

    @classmethod
    def from_json(cls, found: Mapping[str, Any], **fields: Any) -> Conversation:
        """Raises KeyError, TypeError, ValueError or OverflowError for what to_json() has not made."""
        tokens = np.asarray(found["tokens"], dtype=np.int32)
        if tokens.ndim != 1:
            raise ValueError("tokens must be a list of numbers")
        sizes = int(found["n_prompt"]), int(found["n_whole"])
        compacted, archived = bool(found["compacted"]), bool(found["archived"])
        return cls(tokens, *sizes, compacted, archived, saved=True, **fields)


def choose(
    conversations: Iterable[Conversation],
    held: Conversation | None,
    prompt: Tokens,
    wanted: Retention | None,
    going_back: bool,
) -> tuple[Conversation, int] | None:
    """Which conversation a prompt goes on with, and after how many of its tokens; None for a new one.

    held: the one in the context. Of the others a part is taken over only where that is worth loading it.
    """
    best: tuple[Conversation, int] | None = None
    most = 0.0
    for one in conversations:
        n = one.n_reused(prompt, wanted, going_back)
        worth = float(n)
        if not one.goes_on(n):
            worth -= _LEAST if one is held else _LEAST + len(one.tokens) / _PER_TOKEN
        if worth > most or (worth == most > 0 and one is held):
            best, most = (one, n), worth
    return best
