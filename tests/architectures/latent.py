"""MLA: one compressed row per token serves as K and V of all heads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .family import Family, Keys

if TYPE_CHECKING:
    from gguf_factory import TinyModel

_RANK, _ROPE = 64, 32


def _latent(model: TinyModel) -> Keys:
    return {
        "attention.head_count_kv": 1,
        "attention.key_length": _RANK + _ROPE,
        "attention.value_length": _RANK,
        "attention.key_length_mla": model.head_dim,
        "attention.value_length_mla": model.head_dim,
        "attention.q_lora_rank": _RANK,
        "attention.kv_lora_rank": _RANK,
        "rope.dimension_count": _ROPE,
        "leading_dense_block_count": model.layers,
        "expert_feed_forward_length": model.n_ff,
        "expert_shared_count": 1,
    }


LATENT: dict[str, Family] = {
    "deepseek2": Family(keys=_latent),
}
