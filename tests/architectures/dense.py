"""Transformers whose layers all have full attention."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .family import Family, Keys

if TYPE_CHECKING:
    from gguf_factory import TinyModel

_NO_BIAS = r"attn_.*\.bias|ffn_.*\.bias"


def _sections(model: TinyModel) -> Keys:
    """Several positions per token: which part of a head turns with which of them."""
    eighth = model.head_dim // 8
    return {"rope.dimension_sections": [2 * eighth, eighth, eighth, 0]}


def _multi_head(model: TinyModel) -> Keys:
    return {"attention.head_count_kv": model.n_head}


def _alibi(model: TinyModel) -> Keys:
    return {"attention.max_alibi_bias": 8.0, "attention.clamp_kqv": 8.0}


DENSE: dict[str, Family] = {
    "llama": Family(without=_NO_BIAS + "|rope_freqs"),
    "qwen2": Family(without=r"output\.bias"),
    "qwen3": Family(without=r"\.bias"),
    "qwen2vl": Family(keys=_sections),
    "qwen3vl": Family(keys=lambda model: _sections(model) | {"n_deepstack_layers": 0}, without=r"\.bias"),
    "phi3": Family(keys=lambda model: {"attention.sliding_window": model.window}, without=r"rope_factors"),
    "mpt": Family(keys=_alibi, without=r"\.bias|attn_[qk]_norm|ffn_act"),
}
