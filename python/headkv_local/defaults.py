"""What tools take where their users leave it open: a context, memory for an archive, a folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from .errors import UnsupportedError
from .machine import memory_free, memory_total
from .models import token_bytes, trained_context
from .settings import MAX_CTX_BYTES

if TYPE_CHECKING:
    from .llama import Llama

FALLBACK_CTX: Final = 4096
"""Tokens of a context for a file that does not say what its model was trained for."""

_SHARE: Final = 2  # an archive in memory may take one part in so many of what is free


def default_context(path: str) -> int:
    """Tokens of a context for the model in this file; FALLBACK_CTX for one that cannot be read."""
    trained, cost, there = trained_context(path), token_bytes(path), memory_total()
    if there is not None and cost > 0:
        there -= os.path.getsize(path)
    return bounded_context(trained, cost, there)


def bounded_context(trained: int, cost: int, free: int | None = None) -> int:
    """What the model was trained for, or as many tokens as MAX_CTX_BYTES of full cache hold.

    cost: bytes per token; 0, as trained, where that is not known. free: bytes of memory besides the weights,
    None where that is not known; the cache takes half of them at most.
    """
    if trained <= 0 or cost <= 0:
        return FALLBACK_CTX
    most = MAX_CTX_BYTES if free is None else min(MAX_CTX_BYTES, free // 2)
    return max(min(trained, most // cost), 1)


def archive_fits(llm: Llama) -> bool:
    """Whether the archive of a full context takes no more than half of the memory that is free.

    True for a context that can have none.
    """
    try:
        shape = llm.shape
    except UnsupportedError:
        return True
    free = memory_free()
    return free is not None and _SHARE * llm.n_ctx() * shape.n_heads * shape.row_bytes <= free


def cache_folder() -> Path:
    """Where files of ours go that nobody has named. Raises RuntimeError where there is no home."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    # as the specification of these folders says, a relative path counts as none
    return (Path(home) if os.path.isabs(home) else Path.home() / ".cache") / "headkv-local"
