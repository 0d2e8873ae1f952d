"""Gemma: sliding windows, two sizes of heads, per-layer embeddings, shared K and V."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .family import Family, Keys, windows

if TYPE_CHECKING:
    from gguf_factory import TinyModel


def _gemma2(model: TinyModel) -> Keys:
    return windows(model) | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}


def _gemma4(model: TinyModel) -> Keys:
    """Every third layer has full attention; heads of the others are smaller, and there are more of them for
    K and V."""
    full = [il % 3 == 2 for il in range(model.layers)]
    return windows(model) | {
        "embedding_length": 256,
        "embedding_length_per_layer_input": 32,
        "final_logit_softcapping": 30.0,
        "attention.head_count_kv": [model.n_head_kv if f else model.n_head for f in full],
        "attention.sliding_window_pattern": [not f for f in full],
        "attention.key_length_swa": 64,
        "attention.value_length_swa": 64,
        "rope.dimension_count_swa": 64,
        "attention.shared_kv_layers": 3 if model.layers > 6 else 0,
    }


GEMMA: dict[str, Family] = {
    "gemma": Family(),
    "gemma2": Family(keys=_gemma2, n_layer=4),
    "gemma3": Family(keys=windows, n_layer=12, without=r"dense_|\.bias"),
    "gemma3n": Family(keys=windows, n_layer=25),
    "gemma4": Family(keys=_gemma4, n_layer=6),
}
