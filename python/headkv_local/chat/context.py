"""The size of the context, where the command line leaves it open."""

from __future__ import annotations

import os

from headkv_local.chat.options import MAX_CTX_BYTES
from headkv_local.chat.render import size
from headkv_local.errors import ArgumentError
from headkv_local.machine import memory_total
from headkv_local.models import token_bytes, trained_context

FALLBACK_CTX = 4096  # for a file that does not say what it was trained for


def choose_context(path: str, wanted: int | str | None) -> int | str:
    """Context size for the model at `path`: `wanted` (0: what it was trained for), None: one that fits it.

    "auto" is left to Llama.

    Raises ArgumentError if there is not the memory for `wanted`. A file that cannot be read is let through:
    loading it for real will say what is wrong.
    """
    if isinstance(wanted, str):
        return wanted
    trained, cost = trained_context(path), token_bytes(path)
    there = memory_total()
    if wanted is None:
        if there is not None and cost > 0:
            there -= os.path.getsize(path)
        return default_context(trained, cost, there)
    wanted = wanted or trained or FALLBACK_CTX
    # A system that promises more memory than it has would kill the process once the cache is written to.
    needed = wanted * cost
    if there is not None and needed > there:
        raise ArgumentError(
            f"{wanted} tokens take {size(needed)} of KV cache, and {size(there)} of memory may be used here: "
            "choose a smaller --ctx"
        )
    return wanted


def default_context(trained: int, cost: int, free: int | None = None) -> int:
    """What the model was trained for, or as many tokens as MAX_CTX_BYTES of full cache hold.

    cost: bytes per token; 0, as trained, where that is not known. free: bytes of memory besides the weights,
    None where that is not known; the cache takes half of them at most.
    """
    if trained <= 0 or cost <= 0:
        return FALLBACK_CTX
    most = MAX_CTX_BYTES if free is None else min(MAX_CTX_BYTES, free // 2)
    return max(min(trained, most // cost), 1)
