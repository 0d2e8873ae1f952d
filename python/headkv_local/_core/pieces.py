"""The text of a prompt, as its tokens spell it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

_LINE_END: Final = re.compile(rb"\n\s*")


class Pieces:
    """The pieces of tokens put together; bytes of the text and tokens by each other.

    tokens: ids, int (n,). piece: the text of a token, in UTF-8; it may hold a part of a character.
    """

    def __init__(self, tokens: npt.NDArray[Any] | Sequence[int], piece: Callable[[int], bytes]) -> None:
        ids, which = np.unique(np.asarray(tokens, dtype=np.int64), return_inverse=True)
        pieces = [piece(int(token)) for token in ids]
        self.text = b"".join(pieces[i] for i in which)
        self.n_tokens = len(which)
        self._ends = np.cumsum(np.array([len(p) for p in pieces], dtype=np.int64)[which])  # bytes up to each

    def token_at(self, ends: Sequence[int]) -> npt.NDArray[np.int64]:
        """The tokens that hold the last bytes of texts, by where the texts end."""
        return np.searchsorted(self._ends, ends)

    def tokens_of(self, start: int, end: int) -> tuple[int, int]:
        """The first token with the bytes from start to end, which are some, and the one after the last."""
        first, last = self.token_at([start + 1, end])
        return int(first), int(last) + 1

    def text_of(self, first: int, end: int) -> str:
        """Of the tokens from first on, and before end."""
        return self.text[self._start_of(first) : self._start_of(end)].decode(errors="ignore")

    def end_of_line(self, token: int) -> int:
        """The first token after the line that a token is in."""
        match = _LINE_END.search(self.text, self._start_of(token))
        return self.n_tokens if match is None else self.tokens_of(*match.span())[1]

    def _start_of(self, token: int) -> int:
        return int(self._ends[token - 1]) if token > 0 else 0
