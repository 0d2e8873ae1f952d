"""The tiny models themselves: llama.cpp runs each of them, and what they say depends on their cache."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from architectures import VARIANTS
from architectures.recurrent import RECURRENT
from helpers import nmse, random_tokens
from reference import Stock, full_attention_layers, reference_logits

N_PROMPT = 300
TOKENS = random_tokens(N_PROMPT + 10)
CHANGED = [*TOKENS[:5], (TOKENS[5] + 1) % 256, *TOKENS[6:]]

# ALiBi hardly sees that far
_FAINT = {"bloom": 2.0, "mpt": 2.0}
# beyond their window, its layers see rows that are made of several tokens
_NO_CELLS = ("deepseek4",)
# llama.cpp gives the logits of a ubatch's first token where those of its last are asked for: refused
_ANOTHER_TOKEN = ("cogvlm",)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_tiny_model(tiny: Callable[..., Path], name: str) -> None:
    path = tiny(**VARIANTS[name])
    with Stock(path) as stock:
        logits = stock.read_each(TOKENS, N_PROMPT)
        stock.clear()
        again = stock.read_each(TOKENS, N_PROMPT)
        stock.clear()
        changed = stock.read_each(CHANGED, N_PROMPT)
    assert np.isfinite(logits).all()
    assert (logits.std(axis=1) > 0.3).all()
    assert np.array_equal(logits, again)
    with Stock(path, flash=True) as stock:
        distance = nmse(stock.read_each(TOKENS, N_PROMPT), logits)
    assert distance < 1e-3
    layers = full_attention_layers(path)
    if name in (*RECURRENT, "lfm2-windows"):
        assert not layers
        return
    with Stock(path) as stock:
        at_once = stock.read(TOKENS[:50])
        stock.clear()
        stock.read(TOKENS[:49])
        is_last = nmse(stock.read(TOKENS[49:50]), at_once) < 1e-4
    assert is_last == (name not in _ANOTHER_TOKEN)
    assert len(layers) >= 2
    kept = np.ones((1, N_PROMPT), dtype=bool)
    kept[0, 20:200] = False
    for layer in () if name in _NO_CELLS else layers:
        hidden = reference_logits(path, TOKENS, N_PROMPT, {layer: kept})
        assert nmse(hidden[1:], logits[1:]) > 10 * distance
    assert nmse(changed[-1], logits[-1]) > _FAINT.get(name, 10) * distance
