"""All tokens see each other: nothing is decoded token by token, and nothing is cached."""

from __future__ import annotations

from .family import Family, experts
from .sliding import alternating

_PLAIN = "modern-bert neo-bert eurobert dream llada llama-embed".split()

ENCODERS: dict[str, Family] = {
    **{name: Family(decodes=False) for name in _PLAIN},
    **{name: Family(keys=experts, decodes=False) for name in ("llada-moe", "rnd1")},
    "gemma-embedding": Family(keys=alternating, n_layer=4, decodes=False),
}
