"""Recurrent layers beside layers with full attention."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .family import Family, Keys, experts, one_dense_layer, sections, with_keys
from .latent import indexer, latent, streams
from .sliding import windows

if TYPE_CHECKING:
    from gguf_factory import TinyModel


def _every_other(model: TinyModel) -> Keys:
    """Heads of K and V in the second layer, the fourth, and so on: not as many in each of them."""
    kinds = [il % 4 for il in range(model.layers)]
    return {"attention.head_count_kv": [(0, model.n_head_kv, 0, model.n_head)[kind] for kind in kinds]}


def _in_thirds(model: TinyModel) -> Keys:
    """Each layer is one of: recurrent, attention, feed-forward."""
    kinds = [il % 3 for il in range(model.layers)]
    return {
        "attention.head_count_kv": [model.n_head_kv if kind == 1 else 0 for kind in kinds],
        "feed_forward_length": [model.n_ff if kind == 2 else 0 for kind in kinds],
    }


def _delta_net(model: TinyModel) -> Keys:
    return {
        "full_attention_interval": 2,
        "ssm.conv_kernel": 4,
        "ssm.inner_size": 128,
        "ssm.state_size": 32,
        "ssm.time_step_rank": 4,
        "ssm.group_count": 2,
    }


def _draft_behind(model: TinyModel) -> Keys:
    """One layer with attention and experts after those of _in_thirds()."""
    keys, n = _in_thirds(model), model.layers - 1
    return {
        "nextn_predict_layers": 1,
        "attention.head_count_kv": [*keys["attention.head_count_kv"][:n], model.n_head_kv],
        "feed_forward_length": [*keys["feed_forward_length"][:n], 0],
    }


def mamba1(model: TinyModel) -> Keys:
    return {
        "ssm.conv_kernel": 4,
        "ssm.inner_size": 2 * model.n_embd,
        "ssm.state_size": 16,
        "ssm.time_step_rank": 16,
    }


def mamba2(model: TinyModel) -> Keys:
    return {
        "ssm.conv_kernel": 4,
        "ssm.inner_size": 2 * model.n_embd,
        "ssm.state_size": 32,
        "ssm.time_step_rank": 8,
        "ssm.group_count": 2,
    }


def _kda(model: TinyModel) -> Keys:
    return {"kda.head_dim": 32, "ssm.conv_kernel": 4}


def _every_other_single(model: TinyModel) -> Keys:
    return {"attention.head_count_kv": [il % 2 for il in range(model.layers)]}


HYBRID: dict[str, Family] = {
    "qwen3next": Family(keys=with_keys(_delta_net, experts), n_layer=4),
    "qwen35": Family(keys=with_keys(_delta_net, sections), n_layer=4),
    "qwen35-draft": Family(
        arch="qwen35",
        about="with a draft head",
        keys=with_keys(_delta_net, sections, nextn_predict_layers=1),
        n_layer=5,
    ),
    "qwen35moe": Family(keys=with_keys(_delta_net, sections, experts), n_layer=4),
    "lfm2": Family(keys=with_keys(_every_other, shortconv__l_cache=3), n_layer=4),
    # all its layers with K and V have a window, so that none has full attention; the one architecture whose
    # windows lie beside recurrent layers: native/tests/test-headkv-hybrid.cpp has full attention too
    "lfm2-windows": Family(
        arch="lfm2",
        about="with sliding windows",
        keys=with_keys(windows, _every_other, shortconv__l_cache=3),
        n_layer=4,
    ),
    "lfm2moe": Family(keys=with_keys(_every_other, one_dense_layer, shortconv__l_cache=3), n_layer=4),
    "granitehybrid": Family(keys=with_keys(mamba2, _every_other), n_layer=4),
    "nemotron_h": Family(keys=with_keys(mamba2, _in_thirds), n_layer=6),
    "nemotron_h_moe": Family(keys=with_keys(mamba2, _in_thirds, experts), n_layer=6),
    "nemotron_h_moe-draft": Family(
        arch="nemotron_h_moe",
        about="with a draft head",
        keys=with_keys(mamba2, experts, _draft_behind),
        n_layer=7,
    ),
    "falcon-h1": Family(keys=mamba2),
    "jamba": Family(keys=with_keys(mamba1, _every_other), n_layer=4),
    "plamo2": Family(keys=with_keys(mamba2, _every_other, ssm__group_count=0), n_layer=4),
    "kimi-linear": Family(keys=with_keys(latent, one_dense_layer, _kda, _every_other_single), n_layer=4),
    "bailingmoe3": Family(
        keys=with_keys(latent, one_dense_layer, _kda, _every_other_single, kda__gate_lower_bound=-5.0),
        n_layer=4,
    ),
    "kimi-k3": Family(
        keys=with_keys(
            latent,
            one_dense_layer,
            _kda,
            _every_other_single,
            attn_res__block_size=2,
            activation__situ_beta=1.0,
            activation__situ_linear_beta=1.0,
        ),
        n_layer=4,
    ),
    "glm5-next": Family(
        keys=with_keys(
            latent,
            one_dense_layer,
            _kda,
            _every_other_single,
            indexer,
            streams,
            attention__indexer__kpool=4,
            attention__key_length=64,
            rope__dimension_count=0,
        ),
        n_layer=4,
    ),
    "qwen4exp": Family(
        keys=with_keys(_delta_net, sections, experts, indexer, streams, hyper_connection__low_rank=32),
        n_layer=4,
    ),
    "minimax-01": Family(keys=with_keys(experts, full_attention_interval=2, residual_scale=1.0), n_layer=4),
}
