"""The text of a prompt, as its tokens spell it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import llama_cpp
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


class Vocabulary:
    """Of a model, until that is closed. What its tokens spell, whatever tokenizer the user has set."""

    def __init__(self, model: Any) -> None:
        """model: llama_cpp's."""
        self._model = model

    @property
    def spells(self) -> bool:
        """Whether the model has a tokenizer."""
        return bool(llama_cpp.llama_vocab_type(self._model.vocab) != llama_cpp.LLAMA_VOCAB_TYPE_NONE)

    def pieces(self, tokens: npt.NDArray[Any] | Sequence[int], control: bool = False) -> Pieces:
        """control: whether control tokens spell something."""
        return Pieces(tokens, partial(self._piece, control) if self.spells else lambda _: b"")

    def _piece(self, control: bool, token: int) -> bytes:
        """With the space before it."""
        room = ctypes.create_string_buffer(1024)  # llama_cpp has 32 bytes, and gives nothing for a longer one
        n = llama_cpp.llama_token_to_piece(self._model.vocab, token, room, len(room), 0, control)
        return room.raw[: max(n, 0)]
