"""Recurrent layers beside layers with full attention."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .family import Family, Keys, experts

if TYPE_CHECKING:
    from gguf_factory import TinyModel


def _delta_net(model: TinyModel) -> Keys:
    """Every other layer has full attention, the others a gated delta net."""
    return {
        "full_attention_interval": 2,
        "ssm.conv_kernel": 4,
        "ssm.inner_size": 128,
        "ssm.state_size": 32,
        "ssm.time_step_rank": 4,
        "ssm.group_count": 2,
    }


def _qwen35(model: TinyModel) -> Keys:
    eighth = model.head_dim // 8
    return _delta_net(model) | {"rope.dimension_sections": [2 * eighth, eighth, eighth, 0]}


def _alternating(model: TinyModel, *, head_count: bool) -> Keys:
    """K and V in every other layer; their number of heads grows, where there is room for it."""
    kv = [
        0 if il % 2 == 0 else model.n_head_kv if il % 4 == 1 else model.n_head for il in range(model.layers)
    ]
    keys: Keys = {"attention.head_count_kv": kv}
    if head_count:
        keys["attention.head_count"] = [model.n_head if n else 0 for n in kv]
    return keys


def _mamba2(model: TinyModel) -> Keys:
    return {
        "ssm.conv_kernel": 4,
        "ssm.inner_size": 2 * model.n_embd,
        "ssm.state_size": 32,
        "ssm.time_step_rank": 8,
        "ssm.group_count": 2,
    }


def _mamba1(model: TinyModel) -> Keys:
    return {
        "ssm.conv_kernel": 4,
        "ssm.inner_size": 2 * model.n_embd,
        "ssm.state_size": 16,
        "ssm.time_step_rank": 16,
    }


def _nemotron_h(model: TinyModel) -> Keys:
    """Each layer is one of: recurrent, attention, feed-forward."""
    kinds = [il % 3 for il in range(model.layers)]
    return _mamba2(model) | {
        "attention.head_count_kv": [model.n_head_kv if kind == 1 else 0 for kind in kinds],
        "feed_forward_length": [model.n_ff if kind == 2 else 0 for kind in kinds],
    }


HYBRID: dict[str, Family] = {
    "qwen3next": Family(keys=lambda model: _delta_net(model) | experts(model), n_layer=4),
    "qwen35": Family(keys=_qwen35, n_layer=4),
    "qwen35moe": Family(keys=lambda model: _qwen35(model) | experts(model), n_layer=4),
    "lfm2": Family(
        keys=lambda model: _alternating(model, head_count=False) | {"shortconv.l_cache": 3}, n_layer=4
    ),
    "granitehybrid": Family(
        keys=lambda model: _mamba2(model) | _alternating(model, head_count=False), n_layer=4
    ),
    "nemotron_h": Family(keys=_nemotron_h, n_layer=6),
    "falcon-h1": Family(keys=_mamba2),
    "jamba": Family(keys=lambda model: _mamba1(model) | _alternating(model, head_count=False), n_layer=4),
}
