"""MLA: one compressed row per token serves as K and V of all heads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .family import Family, Keys, one_dense_layer, with_keys

if TYPE_CHECKING:
    from gguf_factory import TinyModel

_RANK, _ROPE = 64, 32


def latent(model: TinyModel) -> Keys:
    return {
        "attention.head_count_kv": 1,
        "attention.key_length": _RANK + _ROPE,
        "attention.value_length": _RANK,
        "attention.key_length_mla": model.head_dim,
        "attention.value_length_mla": model.head_dim,
        "attention.q_lora_rank": _RANK,
        "attention.kv_lora_rank": _RANK,
        "rope.dimension_count": _ROPE,
    }


def _indexer(model: TinyModel) -> Keys:
    return {
        "attention.indexer.head_count": 2,
        "attention.indexer.key_length": 64,
        "attention.indexer.top_k": 512,
    }


def _decompressed(model: TinyModel) -> Keys:
    """K and V are cached as those of other models are."""
    return {
        "attention.head_count_kv": model.n_head,
        "attention.q_lora_rank": _RANK,
        "attention.kv_lora_rank": _RANK,
        "rope.dimension_count": _ROPE,
    }


LATENT: dict[str, Family] = {
    "deepseek2": Family(keys=with_keys(latent, one_dense_layer), n_layer=3),
    "mistral4": Family(keys=with_keys(latent, one_dense_layer), n_layer=3),
    "deepseek32": Family(keys=with_keys(latent, one_dense_layer, _indexer), n_layer=3),
    "glm-dsa": Family(keys=with_keys(latent, one_dense_layer, _indexer), n_layer=3),
    "minimax-m3": Family(
        keys=with_keys(
            one_dense_layer,
            _indexer,
            attention__indexer__block_size=64,
            attention__indexer__local_blocks=1,
            attention__indexer__top_k=16,
        ),
        n_layer=3,
    ),
    "minicpm3": Family(keys=_decompressed),
}
