"""The reference itself: with nothing hidden it is llama.cpp, and a compacted cache is what it says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from helpers import nmse, random_tokens
from reference import Stock, reference_logits, stock_distance

N_PROMPT, N_LATER = 300, 12
TOKENS = random_tokens(N_PROMPT + N_LATER)


@pytest.mark.parametrize("arch", ["llama", "gemma2", "gpt-oss", "qwen35"])
def test_all_true_masks_change_nothing(tiny: Callable[..., Path], arch: str) -> None:
    path = tiny(arch=arch)
    with Stock(path) as stock:
        wanted = stock.read_each(TOKENS, N_PROMPT)
    mask = np.ones((2, N_PROMPT), dtype=bool)
    assert np.array_equal(reference_logits(path, TOKENS, N_PROMPT, {1: mask}), wanted)
    mask[1, 7:250] = False
    found = reference_logits(path, TOKENS, N_PROMPT, {1: mask})
    assert np.array_equal(found[0], wanted[0])  # the prompt is read in full
    assert nmse(found[1:], wanted[1:]) > 100 * stock_distance(path, TOKENS, N_PROMPT)


def test_a_mask_that_does_not_fit(tiny_path: Path) -> None:
    for masks in ({9: np.ones((2, N_PROMPT), dtype=bool)}, {0: np.ones((3, N_PROMPT), dtype=bool)}):
        with pytest.raises(ValueError, match=r"layers without scores: \[9\]|do not fit a mask \(3, 300\)"):
            reference_logits(tiny_path, TOKENS, N_PROMPT, masks)
