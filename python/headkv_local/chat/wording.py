"""Errors in the words of the command line."""

from __future__ import annotations

from headkv_local.chat.options import Options
from headkv_local.errors import ContextFullError, HeadKVError, UnsupportedError

_NAMES = (
    ("n_ctx", "--ctx"),
    ("n_gpu_layers", "--gpu-layers"),
)  # as the library calls them, and as the chat does


def sentence(error: Exception, options: Options) -> str:
    """What went wrong and what the user can change."""
    if isinstance(error, MemoryError):
        return _no_memory(error, options)
    if isinstance(error, UnsupportedError) and options.budget is not None:
        return f"{error}; --budget full runs it on the whole cache"
    if isinstance(error, ContextFullError):
        return f"{error}; a larger --ctx makes room"
    if isinstance(error, HeadKVError):
        return str(error)
    return f"internal, {type(error).__name__}: {error}"


def _no_memory(error: MemoryError, options: Options) -> str:
    told = str(error)
    if "for the model" in told:
        for library, chat in _NAMES:
            told = told.replace(library, chat)
        return told
    of = f" of {options.ctx} tokens" if options.ctx else ""
    fewer = ", or with fewer --gpu-layers" if options.gpu_layers != 0 and "CUDA" in told else ""
    return f"there is not enough memory for a context{of}: start with a smaller --ctx{fewer}"
