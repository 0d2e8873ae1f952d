"""The size of the context: what the command line says, if there is the memory for it."""

from __future__ import annotations

from headkv_local.chat.render import size
from headkv_local.defaults import FALLBACK_CTX, default_context
from headkv_local.errors import ArgumentError
from headkv_local.machine import memory_total
from headkv_local.models import token_bytes, trained_context


def choose_context(path: str, wanted: int | str | None) -> int | str:
    """Context size for the model at `path`: `wanted` (0: what it was trained for), None: one that fits it.

    "auto" is left to Llama.

    Raises ArgumentError if there is not the memory for `wanted`. A file that cannot be read is let through:
    loading it for real will say what is wrong.
    """
    if isinstance(wanted, str):
        return wanted
    if wanted is None:
        return default_context(path)
    wanted = wanted or trained_context(path) or FALLBACK_CTX
    cost, there = token_bytes(path), memory_total()
    # A system that promises more memory than it has would kill the process once the cache is written to.
    needed = wanted * cost
    if there is not None and needed > there:
        raise ArgumentError(
            f"{wanted} tokens take {size(needed)} of KV cache, and {size(there)} of memory may be used here: "
            "choose a smaller --ctx"
        )
    return wanted
