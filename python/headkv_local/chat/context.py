"""The size of the context, where the command line leaves it open."""

from __future__ import annotations

import os

from headkv_local._core.machine import memory_total
from headkv_local._core.memory import Numbers, metadata, token_bytes
from headkv_local.chat.options import MAX_CTX_BYTES
from headkv_local.chat.render import size
from headkv_local.errors import ArgumentError

FALLBACK_CTX = 4096  # for a file that does not say what it was trained for


def choose_context(path: str, wanted: int | None) -> int:
    """Context size for the model at `path`: `wanted` (0: what it was trained for), None: one that fits it.

    Raises ArgumentError if there is not the memory for `wanted`. A file that cannot be read is let through:
    loading it for real will say what is wrong.
    """
    numbers = metadata(path)
    if not numbers:
        return wanted or FALLBACK_CTX
    there = memory_total()
    if wanted is None:
        return default_context(numbers, None if there is None else there - os.path.getsize(path))
    wanted = wanted or numbers.get("context_length", [0])[0] or FALLBACK_CTX
    # A system that promises more memory than it has would kill the process once the cache is written to.
    needed = wanted * token_bytes(numbers)
    if there is not None and needed > there:
        raise ArgumentError(
            f"{wanted} tokens take {size(needed)} of KV cache, and {size(there)} of memory may be used here: "
            "choose a smaller --ctx"
        )
    return wanted


def default_context(numbers: Numbers, free: int | None = None) -> int:
    """What the model was trained for, or as many tokens as MAX_CTX_BYTES of full cache hold.

    numbers: the model's metadata. free: bytes of memory besides the weights, None where that is not known;
    the cache takes half of them at most.
    """
    trained, cost = numbers.get("context_length", [0])[0], token_bytes(numbers)
    if trained <= 0 or cost <= 0:
        return FALLBACK_CTX
    most = MAX_CTX_BYTES if free is None else min(MAX_CTX_BYTES, free // 2)
    return max(min(trained, most // cost), 1)
