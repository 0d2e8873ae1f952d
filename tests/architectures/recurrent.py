"""No KV cache at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .family import Family, Keys

if TYPE_CHECKING:
    from gguf_factory import TinyModel


def _mamba(model: TinyModel) -> Keys:
    return {
        "feed_forward_length": 0,
        "attention.head_count": 0,
        "attention.head_count_kv": 0,
        "attention.key_length": None,
        "attention.value_length": None,
        "rope.dimension_count": None,
        "ssm.conv_kernel": 4,
        "ssm.inner_size": 2 * model.n_embd,
        "ssm.state_size": 16,
        "ssm.time_step_rank": 16,
    }


RECURRENT: dict[str, Family] = {
    "mamba": Family(keys=_mamba),
}
