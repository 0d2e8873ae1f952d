"""Sliding windows in some of the layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .family import Family, Keys, experts, mixed_heads, one_dense_layer, with_keys

if TYPE_CHECKING:
    from gguf_factory import TinyModel


def windows(model: TinyModel) -> Keys:
    """Which layers have one is left to the architecture."""
    return {"attention.sliding_window": model.window}


def alternating(model: TinyModel) -> Keys:
    """In the first layer, the third, and so on."""
    return windows(model) | {"attention.sliding_window_pattern": [il % 2 == 0 for il in range(model.layers)]}


def _clamped(model: TinyModel) -> Keys:
    return {"swiglu_clamp_exp": [7.0] * model.layers}


SLIDING: dict[str, Family] = {
    "gpt-oss": Family(keys=with_keys(windows, experts), n_layer=4),
    "cohere2": Family(keys=with_keys(windows, logit_scale=1.0), n_layer=8),
    "cohere2moe": Family(keys=with_keys(alternating, one_dense_layer, logit_scale=1.0), n_layer=4),
    "olmo2": Family(keys=windows, n_layer=8, without=r"bias"),
    # chunks of 8192 tokens whatever the metadata says, but for 0: none then
    "llama4": Family(keys=with_keys(windows, experts, interleave_moe_layer_step=2), n_layer=8),
    "plamo3": Family(keys=alternating, n_layer=4),
    "exaone-moe": Family(keys=with_keys(alternating, one_dense_layer), n_layer=4),
    "afmoe": Family(keys=with_keys(alternating, one_dense_layer), n_layer=4),
    "mellum": Family(keys=with_keys(alternating, experts), n_layer=4),
    # windows of 4096 tokens whatever the metadata says, but for 0
    "smallthinker": Family(keys=with_keys(alternating, experts), n_layer=4),
    "mimo2": Family(keys=with_keys(alternating, experts, mixed_heads), n_layer=4),
    "step35": Family(keys=with_keys(alternating, one_dense_layer, mixed_heads), n_layer=4),
    "laguna": Family(keys=with_keys(alternating, one_dense_layer, mixed_heads), n_layer=4),
    "spark2_5": Family(keys=alternating, n_layer=4),
    "granite_swa": Family(keys=with_keys(alternating, logit_scale=1.0), n_layer=4),
    "muse-glimmer": Family(keys=with_keys(alternating, logit_scale=1.0), n_layer=4),
    "maple": Family(keys=with_keys(alternating, experts, _clamped), n_layer=4),
}
