"""Layers with different numbers of KV heads: what an array holds of heads that there are not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from headkv_local import Llama, Retention
from helpers import random_tokens


@pytest.mark.parametrize("arch", ["deci", "lfm2"])
def test_heads_that_there_are_not(load: Callable[..., Llama], tiny: Callable[..., Path], arch: str) -> None:
    tokens = random_tokens(100)
    llm = load(tiny(arch=arch), retention=Retention(budget=32))
    heads, caps = llm.shape.heads, llm.retention.caps_for(llm.shape, 100)  # type: ignore[union-attr]
    llm.prefill(tokens[:30])
    assert np.array_equal(llm.retention_mask().all(axis=2), heads)  # whole
    llm.reset()
    llm.prefill(tokens)
    mask = llm.retention_mask()
    assert np.array_equal(mask.any(axis=2), heads)
    llm.reset()
    llm.retention = Retention(caps=caps)
    llm.prefill(tokens)
    assert np.array_equal(llm.retention_mask(), mask)
