"""What is wrong with a model, before and after llama.cpp has tried to load it."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from .errors import ArgumentError, ModelError, OutOfMemoryError, UnsupportedError
from .retention import Retention

# "failed to allocate CUDA0 buffer of size 123", "unable to allocate CUDA0 buffer",
# "allocating 1.0 MiB on device 0"
_NO_ROOM = re.compile(r"(?:fail|unable)\w* to alloc\w* (\w+)|allocating [\d.]+ MiB on (device \d+)")


def refuse_before_loading(
    model_path: str | os.PathLike[str],
    retention: Retention | None,
    flash_attn: bool | None,
    kwargs: dict[str, Any],
) -> None:
    """Raise for what can be told without reading the model."""
    if not isinstance(retention, Retention | None):
        raise ArgumentError(f"retention must be a Retention or None, not {retention!r}")
    if retention is not None:
        for setting in ("embedding", "vocab_only"):
            if kwargs.get(setting):
                raise UnsupportedError(f"a model loaded with {setting}=True has no prompt to compact")
        if flash_attn is not None and not flash_attn:
            raise UnsupportedError("a KV cache can be compacted with flash attention only: flash_attn is off")
    if not Path(model_path).exists():
        raise ModelError(f"the model file {os.fspath(model_path)} does not exist")
    if not Path(model_path).is_file():
        raise ModelError(f"the model {os.fspath(model_path)} is not a file")


def load_error(error: BaseException, lines: list[str]) -> BaseException:
    """What an exception of llama_cpp's constructor means; lines: llama.cpp's errors, the cause.

    Any other exception is handed back as it is.
    """
    if type(error) is not ValueError:
        return error
    text = str(error)
    reason = "; ".join(lines) or "llama.cpp gave no reason"
    if text.startswith(("Failed to load model", "Failed to get vocab")):
        where = _full_device(lines)
        if where:
            return OutOfMemoryError(
                f"no memory for the model on {where}: give it fewer layers (n_gpu_layers), or use a smaller "
                f"quantization ({reason})"
            )
        return ModelError(f"{text}: {reason}")
    if text.startswith("Failed to create llama_context"):
        if "alloc" in reason or "memory" in reason:
            where = _full_device(lines)
            place = f" on {where}: make n_ctx or n_gpu_layers smaller ({reason})" if where else f": {reason}"
            return OutOfMemoryError(f"no memory for the context{place}")
        return ArgumentError(f"the context cannot be made: {reason}")
    return error


def _full_device(lines: list[str]) -> str | None:
    """The device, other than the CPU, that llama.cpp's errors say had no room."""
    for line in lines:
        if found := _NO_ROOM.search(line):
            name = found[1] or found[2]
            return None if name.startswith("CPU") else name
    return None
