"""What C programs do step by step, in an order that leaves the cache with less than they think."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llama_cpp
import pytest
from test_c_sessions import check, context, last_logits, read

from headkv_local import Llama, StateError
from headkv_local._core import native
from helpers import nmse, random_tokens

Load = Callable[..., Llama]
Tiny = Callable[..., Path]
ffi, call = native.ffi, native._functions
TOKENS = random_tokens(300)


def keep_all(llm: Llama) -> Any:
    """A plan."""
    plan = ffi.new("struct headkv_plan *")
    layers = native.model_shape(int(llm.ctx)).layers
    caps = ffi.new("int32_t[]", [1 << 20] * sum(layer.n_head_kv for layer in layers))
    plan.window, plan.kernel, plan.first_tokens = 8, 7, 4
    plan.caps, plan.n_caps = caps, len(caps)
    return plan, caps


@pytest.mark.parametrize("n_again", [20, 300])
def test_a_window_that_has_forgotten_is_not_archived(tiny: Tiny, load: Load, n_again: int) -> None:
    """llama_memory_seq_rm() takes back more than its slack, and says that it could."""
    path = tiny(arch="gemma3")
    llm = load(path, flash_attn=True, n_batch=64, n_ubatch=32, n_ctx=1024, swa_full=False)
    memory = llama_cpp.llama_get_memory(llm.ctx)
    check(call["headkv_set_archive"](context(llm), 1, ffi.NULL))
    at = ffi.new("int32_t[]", list(range(n_again)))
    check(call["headkv_observe"](context(llm), 1, 290, 10 + n_again, ffi.NULL, at, n_again))
    llm.eval(TOKENS + TOKENS[:n_again])
    assert llama_cpp.llama_memory_seq_rm(memory, 0, len(TOKENS), -1)
    llm.n_tokens = len(TOKENS)
    plan, _caps = keep_all(llm)
    if n_again > 100:
        with pytest.raises(StateError, match="have forgotten what the next token looks at"):
            check(call["headkv_compact"](context(llm), plan, ffi.sizeof(plan[0])))
        assert not llm.cache_stats().compacted
        return
    check(call["headkv_compact"](context(llm), plan, ffi.sizeof(plan[0])))
    later = random_tokens(20, seed=1)
    read(llm, TOKENS + later, n_held=len(TOKENS))
    stock = load(path, flash_attn=True, n_batch=64, n_ubatch=32, n_ctx=1024, swa_full=False)
    stock.eval(TOKENS + later)
    assert nmse(last_logits(llm), last_logits(stock)) < 1e-4


def test_a_prompt_does_not_go_on_behind_a_gap(tiny_path: Path, load: Load) -> None:
    llm = load(tiny_path, flash_attn=True)
    llm.eval(TOKENS[:100])
    assert llama_cpp.llama_memory_seq_rm(llama_cpp.llama_get_memory(llm.ctx), 0, 10, 20)
    with pytest.raises(StateError, match="the positions in the cache have gaps"):
        read(llm, TOKENS[:10] + TOKENS[20:110], n_held=90)
    assert llama_cpp.llama_memory_seq_pos_max(llama_cpp.llama_get_memory(llm.ctx), 0) == 99  # all stays
    assert read(llm, TOKENS).compacts


@pytest.mark.parametrize(
    ("arch", "flash"),
    [("llama", llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED), ("deepseek2", -1), ("lfm2-windows", -1)],
)
def test_a_context_that_begins_small_and_cannot_retain(tiny: Tiny, arch: str, flash: int) -> None:
    model = llama_cpp.llama_model_load_from_file(
        str(tiny(arch=arch)).encode(), llama_cpp.llama_model_default_params()
    )
    assert model is not None
    params = llama_cpp.llama_context_default_params()
    params.n_ctx, params.flash_attn_type = 256, flash
    call["headkv_begin_small"](1)
    try:
        ctx = llama_cpp.llama_init_from_model(model, params)
    finally:
        call["headkv_begin_small"](0)
    try:
        tokens = (ctypes.c_int32 * 40)(*TOKENS[:40])
        assert llama_cpp.llama_decode(ctx, llama_cpp.llama_batch_get_one(tokens, 40)) == 0
        assert llama_cpp.llama_n_ctx(ctx) == 256
    finally:
        llama_cpp.llama_free(ctx)
        llama_cpp.llama_model_free(model)
