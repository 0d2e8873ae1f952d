"""No KV cache at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .family import Family, Keys, with_keys
from .hybrid import mamba1, mamba2

if TYPE_CHECKING:
    from gguf_factory import TinyModel


def _no_heads(model: TinyModel) -> Keys:
    return {
        "feed_forward_length": 0,
        "attention.head_count": 0,
        "attention.head_count_kv": 0,
        "attention.key_length": None,
        "attention.value_length": None,
        "rope.dimension_count": None,
    }


RECURRENT: dict[str, Family] = {
    "mamba": Family(keys=with_keys(_no_heads, mamba1)),
    "mamba2": Family(keys=with_keys(_no_heads, mamba2)),
}
