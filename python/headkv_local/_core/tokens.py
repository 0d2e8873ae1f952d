"""The tokens that a context holds, as llama_cpp.Llama counts them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import StateError, TokensError


def listed(tokens: Any) -> list[int]:
    """The tokens as a list. TokensError for what are none."""
    found = None
    if not isinstance(tokens, str | bytes | bytearray | memoryview):
        with suppress(TypeError):  # ctypes' arrays are no Iterable
            found = iter(tokens)
    found = None if found is None else list(found)
    if found is None or not all(issubclass(kind, int | np.integer) for kind in {*map(type, found)}):
        raise TokensError(f"tokens must be ints, as tokenize() makes them of a text, not {tokens!r:.40}")
    return found


class Tokens:
    """A Llama shows the first four attributes as its own, for llama_cpp reads and writes them."""

    def __init__(self) -> None:
        self.n_tokens = 0
        self.requires_eval = True
        """Whether tokens have to be evaluated before one can be sampled."""
        self.input_ids: npt.NDArray[np.intc] = np.empty(0, dtype=np.intc)
        """(n_ctx,), of which n_tokens count."""
        self.scores: npt.NDArray[np.single] = np.empty((0, 0), dtype=np.single)
        """Logits of all tokens with logits_all=True, (n_ctx, n_vocab), NaN where they were never computed;
        else nothing."""
        self.n_logits = 0
        """Tokens that the last decode has left logits of, in llama.cpp's own memory."""
        self._cut_from: int | None = None

    def make_room(self, n_ctx: int, logits_all: bool) -> None:
        """llama.cpp rounds the context up; llama_cpp's arrays of it become as long here. What is not used
        takes no memory yet."""
        if len(self.input_ids) != n_ctx:
            self.input_ids = np.zeros(n_ctx, dtype=np.intc)
        if logits_all and len(self.scores) != n_ctx:
            self.scores = np.zeros((n_ctx, self.scores.shape[1]), dtype=np.single)

    @property
    def held(self) -> npt.NDArray[np.intc]:
        """(n_tokens,)"""
        return self.input_ids[: self.n_tokens]

    def append(self, tokens: Sequence[int]) -> None:
        start, self.n_tokens = self.n_tokens, self.n_tokens + len(tokens)
        self.input_ids[start : self.n_tokens] = tokens

    def evaluated(self, n_logits: int) -> None:
        """The last ones, with logits of so many."""
        self.requires_eval, self.n_logits = n_logits == 0, n_logits

    def take(self, tokens: Sequence[int] | npt.NDArray[np.intc]) -> None:
        """These are in the cache, in place of whatever was."""
        self.n_tokens, self._cut_from = len(tokens), None
        self.input_ids[: self.n_tokens] = tokens

    def unscored(self, n_rows: int) -> None:
        """Of those behind the first n_rows there are no logits."""
        self.scores[n_rows : self.n_tokens] = np.nan

    def are_scored(self, n_tokens: int) -> bool:
        """Whether there are logits of each of the first n_tokens."""
        return not np.isnan(self.scores[:n_tokens, 0]).any()

    def keep(self, n_tokens: int) -> None:
        """The first n_tokens alone."""
        self.n_tokens, self.requires_eval = n_tokens, True

    def cut(self, n_tokens: int) -> None:
        """As keep(), until a prompt that follows on them has been read: the cache still holds the others."""
        self._cut_from = self.n_tokens
        self.keep(n_tokens)

    @property
    def is_cut(self) -> bool:
        """Whether the cache still holds others, which count again unless a prompt is read."""
        return self._cut_from is not None

    def uncut(self) -> None:
        """What the cache holds counts again: the prompt that was to follow on a part of it was not read."""
        if self._cut_from is not None:
            self.n_tokens, self._cut_from = self._cut_from, None

    def clear(self) -> None:
        self.keep(0)
        self._cut_from = None

    def require_logits(self, idx: int | None) -> None:
        """StateError where llama.cpp has none of the token at position idx; None: of the last one."""
        if self.requires_eval or (idx is not None and not 0 < self.n_tokens - idx <= self.n_logits):
            raise StateError(
                f"there are no logits {'yet' if idx is None else f'of position {idx}'}: evaluate tokens "
                "first, with logits_all=True for those of other tokens than the last one"
            )
