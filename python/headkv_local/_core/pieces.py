"""The text of a prompt, as its tokens spell it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import llama_cpp
import numpy as np
import numpy.typing as npt

from .failures import unknown_token
from .tokens import listed


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


_LONG: Final = 256  # tokens of a text that is worth to be remembered


class _Known(dict[int, bytes]):
    """Pieces by token, each asked for once."""

    def __init__(self, piece: Callable[[int], bytes]) -> None:
        super().__init__()
        self._piece = piece

    def __missing__(self, token: int) -> bytes:
        self[token] = piece = self._piece(token)
        return piece


class Vocabulary:
    """Of a model, until that is closed. What its tokens spell, whatever tokenizer the user has set."""

    def __init__(self, model: Any) -> None:
        """model: llama_cpp's."""
        self._model = model
        self._known = tuple(_Known(partial(self._piece, control)) for control in (False, True))
        self._said: list[tuple[list[int], bytes]] = [([], b""), ([], b"")]  # the last long text, each

    @property
    def spells(self) -> bool:
        """Whether the model has a tokenizer."""
        return bool(llama_cpp.llama_vocab_type(self._model.vocab) != llama_cpp.LLAMA_VOCAB_TYPE_NONE)

    def pieces(self, tokens: npt.NDArray[Any] | Sequence[int], control: bool = False) -> Pieces:
        """control: whether control tokens spell something."""
        return Pieces(tokens, self._known[control].__getitem__ if self.spells else lambda _: b"")

    def text(self, tokens: Sequence[int], control: bool = False) -> bytes:
        """What tokens spell; after a BOS token without the space that a tokenizer puts before the text.

        llama_cpp asks for the whole answer at each token of it: a long one is not spelled again from its
        start.
        """
        known, (before, said) = self._known[control], self._said[control]
        if not (before and isinstance(tokens, list) and tokens[: len(before)] == before):
            before, said = [], b""
        new = listed(tokens[len(before) :] if before else tokens)
        text = said + b"".join(map(known.__getitem__, new))
        tokens = before + new  # no list of the caller's, which may grow
        if len(tokens) >= _LONG:
            self._said[control] = tokens, text
        starts = len(tokens) > 0 and tokens[0] == llama_cpp.llama_vocab_bos(self._model.vocab)
        return text[1:] if starts and text[:1] == b" " else text

    def _piece(self, control: bool, token: int) -> bytes:
        """With the space before it. ArgumentError for a token that the model does not have."""
        vocab = self._model.vocab
        n = llama_cpp.llama_vocab_n_tokens(vocab)
        if not 0 <= token < n:
            raise unknown_token(token, n)
        room = ctypes.create_string_buffer(32)
        n_bytes = llama_cpp.llama_token_to_piece(vocab, token, room, len(room), 0, control)
        if n_bytes < 0:  # llama_cpp stops here, and gives nothing
            room = ctypes.create_string_buffer(-n_bytes)
            n_bytes = llama_cpp.llama_token_to_piece(vocab, token, room, len(room), 0, control)
        return room.raw[: max(n_bytes, 0)]
