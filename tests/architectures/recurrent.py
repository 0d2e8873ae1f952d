"""No KV cache at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .family import Family, Keys, with_keys
from .hybrid import mamba1, mamba2

if TYPE_CHECKING:
    from gguf_factory import TinyModel


_LONG_MEMORY = ((r"time_mix_w0", -6.0, 0.3),)


def _no_heads(model: TinyModel) -> Keys:
    return {
        "feed_forward_length": 0,
        "attention.head_count": 0,
        "attention.head_count_kv": 0,
        "attention.key_length": None,
        "attention.value_length": None,
        "rope.dimension_count": None,
    }


def _rwkv(model: TinyModel) -> Keys:
    return {
        "attention.head_count": 0,
        "attention.head_count_kv": model.n_head_kv,
        "attention.key_length": None,
        "attention.value_length": None,
        "rope.dimension_count": None,
        "wkv.head_size": model.head_dim,
        "attention.decay_lora_rank": 32,
        "attention.iclr_lora_rank": 32,
        "attention.value_residual_mix_lora_rank": 32,
        "attention.gate_lora_rank": 32,
    }


def _rwkv6(model: TinyModel) -> Keys:
    return _rwkv(model) | {"attention.head_count_kv": 0, "time_mix_extra_dim": 32, "time_decay_extra_dim": 32}


RECURRENT: dict[str, Family] = {
    "mamba": Family(keys=with_keys(_no_heads, mamba1)),
    "rwkv7": Family(keys=_rwkv, rules=_LONG_MEMORY),
    "arwkv7": Family(keys=with_keys(_rwkv, token_shift_count=1), rules=_LONG_MEMORY),
    "rwkv6": Family(keys=_rwkv6),
    "rwkv6qwen2": Family(keys=with_keys(_rwkv6, token_shift_count=1), without=r"time_mix_first"),
    "mamba2": Family(keys=with_keys(_no_heads, mamba2)),
}
