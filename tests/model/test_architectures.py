"""Which models can be compacted, and what is said of the others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headkv_local import Llama, Retention, UnsupportedError
from helpers import compact_natively, forced_logits, greedy, nmse, random_tokens

Load = Callable[..., Llama]
TOKENS = random_tokens(300)

SUPPORTED = [
    {"arch": "llama"},
    {"arch": "llama", "n_head": 4, "n_head_kv": 4},
    {"arch": "llama", "n_head": 4, "n_head_kv": 1},
    {"arch": "llama", "n_head": 3, "n_head_kv": 3, "head_dim": 80, "n_layer": 3},
    {"arch": "llama", "n_head": 6, "n_head_kv": 2, "head_dim": 96},
    {"arch": "llama", "n_head": 2, "n_head_kv": 1, "head_dim": 128},
    {"arch": "qwen2"},
    {"arch": "qwen2", "n_head": 4, "n_head_kv": 4, "n_layer": 3},
    {"arch": "qwen3"},
    {"arch": "phi3"},
]
UNSUPPORTED = {
    "mamba": ({"arch": "mamba"}, "recurrent"),
    "mpt": ({"arch": "mpt", "n_head_kv": 4}, "ALiBi"),
    "deepseek2": ({"arch": "deepseek2", "n_head_kv": 1}, "MLA"),
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


@pytest.mark.parametrize(("fields", "reason"), UNSUPPORTED.values(), ids=UNSUPPORTED)
def test_a_model_that_cannot(
    load: Load, tiny: Callable[..., Path], fields: dict[str, Any], reason: str
) -> None:
    path = tiny(**fields)
    with pytest.raises(UnsupportedError, match=reason) as caught:
        load(path, retention=Retention())
    assert "\n" not in str(caught.value)

    llm = load(path, flash_attn=True)  # without a retention it runs as with llama_cpp
    with pytest.raises(UnsupportedError, match=reason):
        llm.retention = Retention()
    assert llm.retention is None
    llm.prefill(TOKENS)
    assert len(greedy(llm, 4)) == 4
    stats = llm.cache_stats()
    assert (stats.compacted, stats.prompt_tokens, stats.tail_tokens) == (False, 300, 4)
    assert (stats.full_bytes > 0) is (reason != "recurrent")
    llm.reset()
    llm.prefill(TOKENS[:20])
    assert llm.n_tokens == 20
