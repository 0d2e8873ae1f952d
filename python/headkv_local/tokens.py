"""Tokens: how many two texts begin with, and how likely each of a vocabulary is to come next."""

from __future__ import annotations

from collections.abc import Sequence

import llama_cpp
import numpy as np
import numpy.typing as npt

Tokens = Sequence[int] | npt.NDArray[np.int32]


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
