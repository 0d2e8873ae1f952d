"""MLA: one compressed row per token serves as K and V of all heads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .family import Family, Keys, experts, one_dense_layer, with_keys
from .sliding import alternating, windows

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


def indexer(model: TinyModel) -> Keys:
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


def _windows(model: TinyModel) -> Keys:
    """Compressed rows of another size where there is a window."""
    full = [il % 2 == 1 for il in range(model.layers)]
    return alternating(model) | {
        "attention.kv_lora_rank_swa": _RANK // 2,
        "attention.key_length_swa": _RANK // 2 + _ROPE,
        "attention.value_length_swa": _RANK // 2,
        "attention.key_length_mla_swa": model.head_dim,
        "attention.value_length_mla_swa": model.head_dim,
        "attention.indexer.types": full,
        "rope.freq_base_swa": 10000.0,
    }


def streams(model: TinyModel) -> Keys:
    """Several of what other models pass from layer to layer once."""
    return {
        "hyper_connection.count": 4,
        "hyper_connection.epsilon": 1e-6,
        "hyper_connection.sinkhorn_iterations": 2,
    }


def _compressed(model: TinyModel) -> Keys:
    """Every so many tokens become one row of a cache of its own."""
    return {
        "attention.head_count_kv": 1,
        "attention.q_lora_rank": _RANK,
        "attention.output_group_count": 2,
        "attention.output_lora_rank": _RANK,
        "attention.compress_rope_freq_base": 10000.0,
        "attention.compress_ratios": [(0, 4, 128)[il % 3] for il in range(model.layers)],
        "rope.dimension_count": _ROPE,
        "expert_gating_func": 4,
        "expert_weights_norm": True,
        "swiglu_clamp_exp": [7.0] * model.layers,
        "hash_layer_count": 0,
    }


LATENT: dict[str, Family] = {
    "deepseek2": Family(keys=with_keys(latent, one_dense_layer), n_layer=3),
    "mistral4": Family(keys=with_keys(latent, one_dense_layer), n_layer=3),
    "deepseek32": Family(keys=with_keys(latent, one_dense_layer, indexer), n_layer=3),
    "glm-dsa": Family(keys=with_keys(latent, one_dense_layer, indexer), n_layer=3),
    "minimax-m3": Family(
        keys=with_keys(
            one_dense_layer,
            indexer,
            attention__indexer__block_size=64,
            attention__indexer__local_blocks=1,
            attention__indexer__top_k=16,
        ),
        n_layer=3,
    ),
    "minicpm3": Family(keys=_decompressed),
    "hy_v4": Family(
        keys=with_keys(latent, one_dense_layer, streams, hyper_connection__magnitude=2.0), n_layer=3
    ),
    "dots3note": Family(keys=with_keys(latent, one_dense_layer, indexer, _windows), n_layer=4),
    "deepseek4": Family(keys=with_keys(windows, experts, indexer, streams, _compressed), n_layer=4),
    # llama.cpp's graph of it hands the cache a V of another shape: an assertion ends the process
    "plm": Family(keys=_decompressed, decodes=False),
}
