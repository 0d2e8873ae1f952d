"""All tokens see each other: nothing is decoded token by token, and nothing is cached."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .family import Family, Keys, experts, with_keys
from .sliding import alternating

if TYPE_CHECKING:
    from gguf_factory import TinyModel

_PLAIN = "modern-bert neo-bert eurobert dream llada llama-embed".split()


def _token_types(model: TinyModel) -> Keys:
    return {"tokenizer.ggml.token_type_count": 2, "attention.head_count_kv": model.n_head}


def _buckets(model: TinyModel) -> Keys:
    return {"attention.relative_buckets_count": 8, "attention.head_count_kv": model.n_head}


ENCODERS: dict[str, Family] = {
    **{name: Family(decodes=False) for name in _PLAIN},
    **{name: Family(keys=experts, decodes=False) for name in ("llada-moe", "rnd1")},
    **{name: Family(keys=_token_types, decodes=False) for name in ("bert", "jina-bert-v2", "jina-bert-v3")},
    **{
        name: Family(keys=with_keys(_token_types, experts, moe_every_n_layers=2), decodes=False)
        for name in ("nomic-bert", "nomic-bert-moe")
    },
    "t5encoder": Family(keys=with_keys(_buckets), decodes=False),
    "t5": Family(keys=with_keys(_buckets), decodes=False),
    "gemma-embedding": Family(keys=alternating, n_layer=4, decodes=False),
}
