"""What the fixtures know of an architecture: its metadata. The tensors follow from that."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .weights import Rule

if TYPE_CHECKING:
    import gguf

    from gguf_factory import TinyModel

Keys = dict[str, Any]
"""Metadata without the architecture's prefix; None takes away what common_keys() says."""

KeysOf = Callable[["TinyModel"], Keys]


@dataclass(frozen=True, kw_only=True)
class Family:
    """What an architecture has that others have not.

    arch: its name, where the family has another; about: what sets such files apart from others of it. keys:
    metadata beside common_keys(). n_layer: the least that shows all kinds of its layers, those with full
    attention twice. without: a pattern of names of optional tensors that are left out. fused: Q, K and V of
    a layer are one matrix. rules: weights that are not those of all models. decodes: it gives logits token by
    token. loads: llama.cpp takes such a file.
    n_vocab: the least that its vocabulary has.
    """

    arch: str = ""
    about: str = ""
    keys: KeysOf = lambda model: {}
    n_layer: int = 2
    without: str = r"(?!)"
    fused: bool = False
    rules: tuple[Rule, ...] = ()
    decodes: bool = True
    loads: bool = True
    n_vocab: int = 0


def common_keys(model: TinyModel) -> Keys:
    """What every model says."""
    return {
        "context_length": model.n_ctx_train,
        "embedding_length": model.n_embd,
        "block_count": model.layers,
        "feed_forward_length": model.n_ff,
        "attention.head_count": model.n_head,
        "attention.head_count_kv": model.n_head_kv,
        "attention.key_length": model.head_dim,
        "attention.value_length": model.head_dim,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "attention.layer_norm_epsilon": 1e-5,
        "rope.dimension_count": model.head_dim,
    }


def with_keys(*parts: KeysOf, **own: Any) -> KeysOf:
    """All of them, the later ones first; own: further keys, with "__" for a dot."""

    def keys(model: TinyModel) -> Keys:
        found: Keys = {}
        for part in parts:
            found |= part(model)
        return found | {key.replace("__", "."): value for key, value in own.items()}

    return keys


def experts(model: TinyModel) -> Keys:
    """Two experts that are both used: choosing among more is no smooth function of the attention."""
    return {
        "expert_count": 2,
        "expert_used_count": 2,
        "expert_feed_forward_length": model.n_ff,
        "expert_shared_feed_forward_length": model.n_ff,
        "expert_shared_count": 1,
        "expert_weights_scale": 1.0,
        "expert_gating_func": 2,
    }


def one_dense_layer(model: TinyModel) -> Keys:
    """Before those with experts."""
    return experts(model) | {"leading_dense_block_count": 1}


def sections(model: TinyModel) -> Keys:
    """Several positions per token: which part of a head turns with which of them."""
    eighth = model.head_dim // 8
    return {"rope.dimension_sections": [2 * eighth, eighth, eighth, 0]}


def multi_head(model: TinyModel) -> Keys:
    """As many heads of K and V as of queries."""
    return {"attention.head_count_kv": model.n_head}


def mixed_heads(model: TinyModel) -> Keys:
    """More heads of K and V in every fourth layer."""
    heads = [model.n_head if il % 4 == 3 else model.n_head_kv for il in range(model.layers)]
    return {"attention.head_count_kv": heads}


def add_keys(writer: gguf.GGUFWriter, arch: str, keys: Mapping[str, Any]) -> None:
    """Each with the type of its value."""
    for key, value in keys.items():
        name = key if key.startswith(("xielu.", "tokenizer.")) else f"{arch}.{key}"
        if value is None:
            continue
        if isinstance(value, bool):
            writer.add_bool(name, value)
        elif isinstance(value, int):
            writer.add_uint32(name, value)
        elif isinstance(value, float):
            writer.add_float32(name, value)
        elif isinstance(value, str):
            writer.add_string(name, value)
        else:
            writer.add_array(name, list(value))
