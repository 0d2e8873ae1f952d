"""Tokens: how many a text has, how many two begin with, how likely each of a vocabulary is to come next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import llama_cpp
import numpy as np
import numpy.typing as npt

Tokens = Sequence[int] | npt.NDArray[np.int32]

_STRETCH: Final = 16 * 1024  # characters that are tokenized in one go to count them


def count_tokens(tokenize: Callable[[bytes], Sequence[int]], text: str, enough: int) -> tuple[int, bool]:
    """Tokens of `text`, and whether they were all counted: beyond `enough` they are estimated.

    Some more than `enough` are counted before: between two stretches a token may be cut in two.
    """
    counted, at = 0, 0
    while at < len(text) and counted <= enough:
        end = min(at + _STRETCH, len(text))
        if end < len(text):
            blank = max(text.rfind("\n", at + 1, end), text.rfind(" ", at + 1, end))
            end = blank if blank > 0 else end
        counted += len(tokenize(text[at:end].encode("utf-8")))
        at = end
    return (counted, True) if at == len(text) else (round(counted * len(text) / at), False)


def n_same(a: Tokens, b: Tokens) -> int:
    """How many tokens both begin with."""
    n_both = min(len(a), len(b))
    differ = np.flatnonzero(np.asarray(a[:n_both]) != np.asarray(b[:n_both]))
    return int(differ[0]) if len(differ) else n_both


def logits_of(llm: llama_cpp.Llama, i: int = -1) -> npt.NDArray[np.float32]:
    """Of the token i of the batch that was decoded last, -1 for its last, (n_vocab,).

    They are the context's own memory, and valid until the next batch.
    """
    return np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(llm.ctx, i), (llm.n_vocab(),))


def log_softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Log-probabilities, (n_vocab,)."""
    shifted: npt.NDArray[np.float64] = logits.astype(np.float64) - float(logits.max())
    found: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum())
    return found
