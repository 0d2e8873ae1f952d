"""Compaction that keeps everything changes nothing but rounding; one that does not still works, for
every type that the K/V cache can have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from llama_cpp import llama_get_memory, llama_memory_seq_rm

from headkv_local import Llama, Retention
from headkv_local.settings import KV_TYPES
from helpers import compact_natively, forced_logits, greedy_logits, nmse, random_tokens

Load = Callable[..., Llama]

PASSAGE = (
    b"The harbour of Vell has two lights. The green one stands on the north mole and was built by the "
    b"fishermen; the red one came with the railway, which needed the deep quay. Whoever sails in at night "
    b"keeps the red light to port until the church tower hides the mill.\n\n"
)
TEXT = 3 * PASSAGE + PASSAGE[:83]  # said again and again, so that what comes next is no near tie


def test_32_tokens_of_a_real_model(load: Load, smollm2: Path) -> None:
    """The same greedy choices, and at most three times the distance between stock's own two paths."""
    threads = {"n_threads": 2, "n_threads_batch": 2}
    with load(smollm2, flash_attn=True, **threads) as flash:
        tokens = flash.tokenize(TEXT)
        flash.prefill(tokens)
        answer, wanted = greedy_logits(flash, 32)
    with load(smollm2, flash_attn=False, **threads) as plain:
        plain.prefill(tokens)
        stock_distance = nmse(forced_logits(plain, answer), wanted)
    ours = load(smollm2, flash_attn=True, **threads)
    compact_natively(ours, tokens, len(tokens))
    assert ours.cache_stats().compacted
    assert ours.retention_mask().all()
    found = forced_logits(ours, answer)
    assert found.argmax(axis=1)[:-1].tolist() == answer
    assert 0 < nmse(found, wanted) <= 3 * stock_distance


@pytest.mark.parametrize(("k", "v"), [("q8_0", "q4_0"), ("f16", "q8_0"), ("q4_1", "f32"), ("bf16", "f16")])
def test_k_and_v_of_different_types(load: Load, tiny_path: Path, k: str, v: str) -> None:
    tokens, answer = random_tokens(300), random_tokens(16, seed=1)
    types = {"type_k": KV_TYPES[k], "type_v": KV_TYPES[v]}
    stock = load(tiny_path, flash_attn=True, **types)
    stock.prefill(tokens)
    ours = load(tiny_path, flash_attn=True, **types)
    compact_natively(ours, tokens, len(tokens))
    assert nmse(forced_logits(ours, answer), forced_logits(stock, answer)) < 2e-3


@pytest.mark.parametrize("name", KV_TYPES)
def test_a_compacted_decode_of_every_type(load: Load, tiny_path: Path, name: str) -> None:
    """The first 56 and the last 8 positions are kept: stock does the same when the rest is taken out."""
    tokens, answer = random_tokens(400), random_tokens(16, seed=1)
    types = {"type_k": KV_TYPES[name], "type_v": KV_TYPES[name]}
    stock = load(tiny_path, flash_attn=True, **types)
    stock.eval(tokens[:-8])
    stock.eval(tokens[-8:])
    assert llama_memory_seq_rm(llama_get_memory(stock.ctx), 0, 56, 392)

    ours = load(tiny_path, retention=Retention(budget=64, window=8, sinks=56), **types)
    ours.prefill(tokens)
    mask = np.zeros((2, 2, 400), dtype=bool)
    mask[:, :, :56] = mask[:, :, 392:] = True
    assert np.array_equal(ours.retention_mask(), mask)
    bound = 1e-4 if name in ("f32", "f16", "bf16") else 2e-3
    assert nmse(forced_logits(ours, answer), forced_logits(stock, answer)) < bound
