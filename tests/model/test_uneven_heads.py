"""Layers with different numbers of KV heads: what an array holds of heads that there are not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from headkv_local import ArgumentError, Llama, Retention
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


@pytest.mark.parametrize("arch", ["gemma3", "qwen35"])
def test_a_budget_in_bytes_is_of_all_layers(
    load: Callable[..., Llama], tiny: Callable[..., Path], arch: str
) -> None:
    """What layers with a window, or a recurrent state, hold in any case is a part of it, or more than it."""
    path = tiny(arch=arch)
    whole = load(path, retention=Retention(budget=32))
    held = whole.shape.bounded_bytes
    assert held > 0
    rows = 32 * whole.shape.n_heads * whole.shape.row_bytes
    llm = load(path, retention=Retention(budget=f"{(held + rows) / 2**10}KiB"))
    for one in (whole, llm):
        one.prefill(random_tokens(300))
    assert np.array_equal(llm.cache_stats().kept, whole.cache_stats().kept)
    with pytest.raises(
        ArgumentError, match="hold in any case; the smallest budget that works is '[0-9.]+KiB'"
    ):
        load(path, retention=Retention(budget=f"{held // 2**10 - 1}KiB"))
