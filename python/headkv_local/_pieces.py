"""The text of a prompt, as its tokens spell it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt


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

    def tokens_of(self, start: int, end: int) -> slice:
        """The tokens that hold the bytes from start to end, which are some."""
        first, last = self.token_at([start + 1, end])
        return slice(int(first), int(last) + 1)

    def start_of(self, token: int) -> int:
        """Where the text of a token begins."""
        return int(self._ends[token - 1]) if token > 0 else 0

    def text_of(self, part: slice) -> str:
        return self.text[self.start_of(part.start) : self.start_of(part.stop)].decode(errors="ignore")
