"""Which models can be compacted, and what is said of the others."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest

from headkv_local import Llama, Retention, UnsupportedError
from headkv_local._core import native
from headkv_local.settings import KV_TYPES
from helpers import compact_natively, forced_logits, greedy, last_logits, nmse, random_tokens
from reference import Stock

Load = Callable[..., Llama]
TOKENS = random_tokens(300)

SUPPORTED = [
    {"arch": "llama", "n_head": 4, "n_head_kv": 4},
    {"arch": "llama", "n_head": 4, "n_head_kv": 1},
    {"arch": "llama", "n_head": 3, "n_head_kv": 3, "head_dim": 80, "n_layer": 3},
    {"arch": "llama", "n_head": 6, "n_head_kv": 2, "head_dim": 96},
    {"arch": "llama", "n_head": 2, "n_head_kv": 1, "head_dim": 128},
    {"arch": "qwen2", "n_head": 4, "n_head_kv": 4, "n_layer": 3},
]
UNSUPPORTED = {
    "mamba": ({"arch": "mamba"}, "recurrent"),
    "mpt": ({"arch": "mpt", "n_head_kv": 4}, "ALiBi"),
    "chameleon": ({"arch": "chameleon"}, "without asking for logits"),
    "cogvlm": ({"arch": "cogvlm"}, "logits of another token"),
    "deepseek2": ({"arch": "deepseek2", "n_head_kv": 1}, "MLA"),
    "deepseek32": ({"arch": "deepseek32"}, "MLA"),
    "dots3note": ({"arch": "dots3note"}, "MLA"),
    "minimax-m3": ({"arch": "minimax-m3"}, "sparse"),
    "deepseek4": ({"arch": "deepseek4"}, "sparse"),
    "qwen4exp": ({"arch": "qwen4exp"}, "sparse"),
    "lfm2-windows": ({"arch": "lfm2-windows"}, "no layer of full attention"),
}


@pytest.mark.parametrize("fields", SUPPORTED, ids=lambda fields: "-".join(map(str, fields.values())))
def test_a_model_that_can_be_compacted(load: Load, tiny: Callable[..., Path], fields: dict[str, Any]) -> None:
    path = tiny(**fields)
    stock = load(path, flash_attn=True)
    stock.prefill(TOKENS)
    wanted = forced_logits(stock, TOKENS[:16])
    ours = load(path, flash_attn=True)
    compact_natively(ours, TOKENS, 300)
    assert nmse(forced_logits(ours, TOKENS[:16]), wanted) < 1e-4

    llm = load(path, retention=Retention(budget=48))
    llm.prefill(TOKENS)
    shape = (fields.get("n_layer", 2), fields.get("n_head_kv", 2))
    assert llm.retention_mask().shape == (*shape, 300)
    assert (llm.cache_stats().kept == 48).all()
    assert len(greedy(llm, 8)) == 8


@pytest.mark.parametrize("order", ["tokens", "layers"])
def test_a_deep_model_with_few_tensors_is_observed(load: Load, tiny: Callable[..., Path], order: Any) -> None:
    """Phi-4's shape: llama.cpp makes room for nodes by a model's tensors, and ggml ends the process where
    a graph has more."""
    path = tiny(arch="phi3", n_layer=40, n_head=2, n_head_kv=1, n_ff=32)
    retention = Retention(budget=24, draft=4, archive="memory", order=order)
    types = {"type_k": KV_TYPES["q8_0"], "type_v": KV_TYPES["q8_0"]}
    llm = load(path, n_ctx=256, n_ubatch=32, flash_attn=True, retention=retention, **types)
    llm.prefill(TOKENS[:100])
    assert (llm.cache_stats().kept == 24).all()
    assert len(greedy(llm, 4)) == 4
    llm.reset()
    llm.eval(TOKENS[:64])
    with llm.attention_rows() as rows:
        llm.eval(TOKENS[64:65])
        assert rows().shape == (40, 2, 65)


@pytest.mark.parametrize(("fields", "reason"), UNSUPPORTED.values(), ids=UNSUPPORTED)
def test_a_model_that_cannot(
    load: Load, tiny: Callable[..., Path], fields: dict[str, Any], reason: str
) -> None:
    path = tiny(**fields)
    with pytest.raises(UnsupportedError, match=reason) as caught:
        load(path, retention=Retention())
    assert "\n" not in str(caught.value)

    llm = load(path, flash_attn=True, swa_full=False)  # without a retention it runs as with llama_cpp
    with pytest.raises(UnsupportedError, match=reason):
        llm.retention = Retention()
    assert llm.retention is None
    llm.prefill(TOKENS)
    assert len(greedy(llm, 4)) == 4
    stats = llm.cache_stats()
    assert (stats.compacted, stats.prompt_tokens, stats.tail_tokens) == (False, 300, 4)
    assert (stats.full_bytes > 0) is (reason not in ("recurrent", "no layer of full attention"))
    llm.reset()
    llm.prefill(TOKENS[:20])
    assert llm.n_tokens == 20
    with Stock(path, flash=True, n_ctx=1024, n_ubatch=512) as stock:
        assert np.array_equal(last_logits(llm), stock.read(TOKENS[:20]))


def test_llama_cpp_runs_a_model_without_flash_attention(load: Load, tiny: Callable[..., Path]) -> None:
    with pytest.raises(UnsupportedError, match="a Grok model without flash attention only"):
        load(tiny(arch="grok"), retention=Retention())


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ({"n_seq_max": 2}, "for 2 sequences, only 1"),
        ({"attention_type": llama_cpp.LLAMA_ATTENTION_TYPE_NON_CAUSAL}, "attention is not causal"),
        ({"flash_attn_type": 0}, "flash attention off"),
        ({"ctx_type": llama_cpp.LLAMA_CONTEXT_TYPE_MTP}, "a draft head's"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_context_that_cannot(tiny: Callable[..., Path], setting: dict[str, int], reason: str) -> None:
    model_params = llama_cpp.llama_model_default_params()
    model_params.n_gpu_layers, model_params.load_mtp = 0, True
    params = llama_cpp.llama_context_default_params()
    params.n_ctx, params.flash_attn_type = 512, 1
    for name, value in setting.items():
        setattr(params, name, value)
    model = llama_cpp.llama_model_load_from_file(os.fsencode(tiny(arch="glm4moe-draft")), model_params)
    ctx = llama_cpp.llama_init_from_model(model, params)
    with pytest.raises(UnsupportedError, match=reason):
        native.supported(ctx)
    if "ctx_type" not in setting:  # that one reads what another context has computed
        tokens = (llama_cpp.llama_token * 20)(*TOKENS[:20])
        assert llama_cpp.llama_decode(ctx, llama_cpp.llama_batch_get_one(tokens, 20)) == 0
    llama_cpp.llama_free(ctx)
    llama_cpp.llama_model_free(model)
