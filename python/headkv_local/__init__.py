"""Long prompts on your own machine: after the prompt, every KV head keeps what matters to it."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from ._core import library as _library
from ._core.cancel import CancelToken
from .errors import (
    ArchiveError,
    ArgumentError,
    Cancelled,
    ContextFullError,
    HeadKVError,
    InternalError,
    LibraryConflictError,
    ModelError,
    OutOfMemoryError,
    ScoresAbsentError,
    ScoresError,
    SessionError,
    StateError,
    UnsupportedError,
)

if TYPE_CHECKING:
    from .aio import AsyncLlama
    from .llama import Llama
    from .memory import MemoryEstimate, memory_estimate
    from .models import default_model_path
    from .retention import Retention
    from .scores import HeadScores
    from .stats import CacheStats

__all__ = [
    "ArchiveError",
    "ArgumentError",
    "AsyncLlama",
    "CacheStats",
    "CancelToken",
    "Cancelled",
    "ContextFullError",
    "HeadKVError",
    "HeadScores",
    "InternalError",
    "LibraryConflictError",
    "Llama",
    "MemoryEstimate",
    "ModelError",
    "OutOfMemoryError",
    "Retention",
    "ScoresAbsentError",
    "ScoresError",
    "SessionError",
    "StateError",
    "UnsupportedError",
    "__version__",
    "default_model_path",
    "library_dir",
    "memory_estimate",
]

__version__ = version("headkv-local")

_library.claim()
library_dir = _library.library_dir

# Loaded when first asked for: llama_cpp and numpy take a good part of a second.
_LAZY = {
    "AsyncLlama": "aio",
    "CacheStats": "stats",
    "HeadScores": "scores",
    "Llama": "llama",
    "MemoryEstimate": "memory",
    "Retention": "retention",
    "default_model_path": "models",
    "memory_estimate": "memory",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    globals()[name] = value
    return value
