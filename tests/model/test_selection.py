"""Selection within sentences: what the C API is told, and what Llama tells it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from headkv_local import Llama, Retention
from headkv_local._core import native
from headkv_local._core.native.plan import sentence_ends
from headkv_local._core.pieces import Pieces
from helpers import compact_natively, random_tokens

Load = Callable[..., Llama]
TOKENS = random_tokens(300)
Mask = npt.NDArray[np.bool_]


def mask_of(llm: Llama, kernel: int, ends: npt.NDArray[np.uint8] | None) -> Mask:
    llm.reset()
    compact_natively(llm, TOKENS, 64, kernel=kernel, ends=ends)
    return native.get_mask(llm.ctx)


def test_the_pool_stays_inside_a_sentence(load: Load, tiny_path: Path) -> None:
    llm = load(tiny_path, flash_attn=True)
    n = len(TOKENS)
    plain, pooled = mask_of(llm, 1, None), mask_of(llm, 29, None)
    assert not np.array_equal(plain, pooled)
    assert np.array_equal(mask_of(llm, 29, np.ones(n, np.uint8)), plain)  # sentences of one token each
    assert np.array_equal(mask_of(llm, 29, np.zeros(n, np.uint8)), pooled)  # one sentence


def test_llama_tells_where_they_end(load: Load, smollm2: Path) -> None:
    """With a real tokenizer: full stops and line ends of the prompt, at their tokens."""
    llm = load(smollm2, retention=Retention(budget=32, scores="uniform"))
    text = "The archive is old. Its code (see e.g. the book) is 12.5!\nNobody knows it. " * 12
    tokens = llm.tokenize(text.encode())
    ends = sentence_ends(llm._vocabulary.pieces(tokens))
    starts = [0, *(np.flatnonzero(ends) + 1).tolist()]
    sentences = [llm.detokenize(tokens[a:b]) for a, b in zip(starts, [*starts[1:], None], strict=True)]
    assert [s.strip() for s in sentences[:4]] == [
        b"The archive is old.",
        b"Its code (see e.g. the book) is 12.5!",
        b"",
        b"Nobody knows it.",
    ]
    assert b"".join(sentences) == llm.detokenize(tokens)
    assert np.array_equal(ends, sentence_ends(Pieces(tokens, lambda token: llm.detokenize([token]))))
