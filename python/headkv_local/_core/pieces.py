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
        self.ends = np.cumsum(np.array([len(p) for p in pieces], dtype=np.int64)[which])
        """Bytes up to the end of each token, (n_tokens,)."""

    def tokens_of(self, start: int, end: int) -> tuple[int, int]:
        """The first token with the bytes from start to end, which are some, and the one after the last."""
        first, last = np.searchsorted(self.ends, [start + 1, end])
        return int(first), int(last) + 1
