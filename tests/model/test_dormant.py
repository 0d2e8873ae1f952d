"""Dormant is stock: with nothing compacted, logits are bit-identical to those of the stock cache."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest

from headkv_local import Llama, Retention, UnsupportedError
from headkv_local._core import native
from helpers import forced_logits, greedy_logits, random_tokens

Load = Callable[..., Llama]
PROMPT = b"The lighthouse keeper wrote one line into the log every evening. On the ninth of March he wrote:"


@pytest.fixture
def stock(load: Load, monkeypatch: pytest.MonkeyPatch) -> Load:
    """A Llama on llama.cpp's own cache, in the same library."""

    def opener(path: Path, **arguments: Any) -> Llama:
        with monkeypatch.context() as context:
            context.setenv("HEADKV_DISABLE", "1")
            llm = load(path, **arguments)
            with pytest.raises(UnsupportedError, match="HEADKV_DISABLE"):
                native.supported(llm.ctx)
        with pytest.raises(UnsupportedError):
            native.get_stats(llm.ctx)
        return llm

    return opener


@pytest.mark.parametrize(
    ("flash_attn", "retentions"),
    [(True, [None, Retention(budget=128)]), (False, [None])],
    ids=["flash attention", "no flash attention"],
)
def test_64_greedy_tokens(
    load: Load, stock: Load, smollm2: Path, flash_attn: bool, retentions: list[Retention | None]
) -> None:
    """With no retention, and with one whose budget the prompt fits into."""
    threads = {"n_threads": 2, "n_threads_batch": 2}
    with stock(smollm2, flash_attn=flash_attn, **threads) as reference:
        tokens = reference.tokenize(PROMPT)
        reference.prefill(tokens)
        answer, wanted = greedy_logits(reference, 64)
    for retention in retentions:
        with load(smollm2, flash_attn=flash_attn, retention=retention, **threads) as ours:
            ours.prefill(tokens)
            assert np.array_equal(forced_logits(ours, answer), wanted)
            stats = ours.cache_stats()
            assert (stats.compacted, stats.policy, stats.kept_share) == (False, "full", 1.0)
            assert stats.resident_bytes == stats.full_bytes


def test_a_prompt_of_several_batches(load: Load, stock: Load, tiny_path: Path) -> None:
    tokens = random_tokens(700)
    for arguments in ({"n_batch": 512, "n_ubatch": 128}, {"n_batch": 64}):
        reference = stock(tiny_path, flash_attn=True, **arguments)
        ours = load(tiny_path, flash_attn=True, **arguments)
        for llm in (reference, ours):
            llm.prefill(tokens)
        assert np.array_equal(forced_logits(ours, tokens[:40]), forced_logits(reference, tokens[:40]))


@pytest.mark.parametrize("arch", ["llama", "gemma3", "qwen35", "deci-without", "nemotron_h_moe-draft"])
def test_a_state_is_stock(load: Load, stock: Load, tiny: Callable[..., Path], arch: str) -> None:
    """Also of layers in it that do not retain."""
    states = []
    for opener in (load, stock):
        llm = opener(tiny(arch=arch), flash_attn=True, swa_full=False, n_ctx=512)
        llm.eval(random_tokens(100))
        state = (ctypes.c_uint8 * llama_cpp.llama_state_seq_get_size(llm.ctx, 0))()
        assert llama_cpp.llama_state_seq_get_data(llm.ctx, state, len(state), 0) == len(state)
        states.append(bytes(state))
    assert states[0] == states[1]


def test_after_a_compaction_the_next_prompt_starts_as_stock(load: Load, stock: Load, tiny_path: Path) -> None:
    first, second = random_tokens(300, seed=1), random_tokens(200, seed=2)
    ours = load(tiny_path, retention=Retention(budget=32))
    ours.prefill(first)
    assert ours.cache_stats().compacted
    ours.reset()
    ours.retention = None
    ours.prefill(second)
    reference = stock(tiny_path, flash_attn=True)
    reference.prefill(second)
    assert np.array_equal(forced_logits(ours, second[:20]), forced_logits(reference, second[:20]))


def test_a_second_sequence_is_stock(load: Load, stock: Load, tiny_path: Path) -> None:
    """Its cells stay where those of the first one go."""
    tokens, rows = random_tokens(100), []
    for llm in (stock(tiny_path, flash_attn=True), load(tiny_path, flash_attn=True)):
        memory = llama_cpp.llama_get_memory(llm.ctx)
        llm.eval(tokens)
        llama_cpp.llama_memory_seq_cp(memory, 0, 1, 0, 80)
        assert llama_cpp.llama_memory_seq_rm(memory, 0, -1, -1)
        assert [llama_cpp.llama_memory_seq_pos_max(memory, i) for i in (0, 1)] == [-1, 79]
        llama_cpp.llama_memory_seq_cp(memory, 1, 0, -1, -1)
        llama_cpp.llama_memory_seq_keep(memory, 1)
        assert [llama_cpp.llama_memory_seq_pos_max(memory, i) for i in (0, 1)] == [-1, 79]
        llama_cpp.llama_memory_seq_cp(memory, 1, 0, -1, -1)
        llm.n_tokens = 80
        rows.append(forced_logits(llm, tokens[:10])[1:])
    assert np.array_equal(*rows)


def test_taking_tokens_back_is_stock(load: Load, stock: Load, tiny_path: Path) -> None:
    tokens = random_tokens(200)
    rows = []
    for llm in (stock(tiny_path, flash_attn=True), load(tiny_path, flash_attn=True)):
        llm.prefill(tokens)
        llm.prefill(tokens[:150] + tokens[:30])
        assert llm.n_tokens == 180
        rows.append(forced_logits(llm, tokens[:10]))
    assert np.array_equal(rows[0], rows[1])
