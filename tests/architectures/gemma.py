"""Gemma: sliding windows, two sizes of heads, per-layer embeddings, shared K and V."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .family import Family, Keys, with_keys
from .sliding import windows

if TYPE_CHECKING:
    from gguf_factory import TinyModel

# Q and K are normalized, and their product is not divided by the root of the size of a head
_SMALL_QUERIES = ((r"attn_q_norm", 0.15, 0.02),)
# what 25 layers add stays small beside what they add it to: rounding errors would grow from layer to layer
_SMALL_STEPS = ((r"post_ffw_norm|laurel_post_norm|\.post_norm", 0.3, 0.03),)


def _gemma4(model: TinyModel) -> Keys:
    """Every third layer has full attention. The others have smaller heads, and more of them for K and V.
    The last three of more than six layers have no K and V of their own."""
    full = [il % 3 == 2 for il in range(model.layers)]
    return {
        "embedding_length": 256,
        "embedding_length_per_layer_input": 32,
        "final_logit_softcapping": 30.0,
        "attention.head_count_kv": [model.n_head_kv if is_full else model.n_head for is_full in full],
        "attention.sliding_window": model.window,
        "attention.sliding_window_pattern": [not is_full for is_full in full],
        "attention.key_length_swa": 64,
        "attention.value_length_swa": 64,
        "attention.shared_kv_layers": 3 if model.layers > 6 else 0,
        "rope.dimension_count_swa": 64,
    }


GEMMA: dict[str, Family] = {
    "gemma2": Family(
        keys=with_keys(windows, attn_logit_softcapping=50.0, final_logit_softcapping=30.0), n_layer=4
    ),
    "gemma3": Family(keys=with_keys(windows, attention__sliding_window_pattern=3), n_layer=6),
    "gemma3n": Family(
        keys=with_keys(windows, embedding_length=128, feed_forward_length=64),
        n_layer=25,
        rules=_SMALL_QUERIES + _SMALL_STEPS,
    ),
    "gemma4": Family(keys=_gemma4, n_layer=6, rules=_SMALL_QUERIES),
}
