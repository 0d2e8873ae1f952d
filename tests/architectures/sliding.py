"""Sliding windows in some of the layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .family import Family, Keys, experts, windows

if TYPE_CHECKING:
    from gguf_factory import TinyModel


def _llama4(model: TinyModel) -> Keys:
    """Chunks of 8192 tokens whatever the metadata says, but for 0: no chunks then."""
    return windows(model) | experts(model) | {"interleave_moe_layer_step": 2}


SLIDING: dict[str, Family] = {
    "gpt-oss": Family(keys=lambda model: windows(model) | experts(model), n_layer=4),
    "cohere2": Family(keys=lambda model: windows(model) | {"logit_scale": 1.0}, n_layer=8, without=r"\.bias"),
    "olmo2": Family(keys=windows, n_layer=8, without=r"\.bias"),
    "llama4": Family(keys=_llama4, n_layer=8, without=r"\.bias"),
}
