"""What is wrong with a model, before and after llama.cpp has tried to load it."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ._gguf import ARCHITECTURE
from ._limits import INT32_MAX, KV_TYPES, MAX_THREADS
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
    _require_file("model", model_path)
    if kwargs.get("lora_path"):
        _require_file("LoRA adapter", kwargs["lora_path"])
    for name, least, most in (
        ("n_ctx", 0, INT32_MAX),  # 0: what the model was trained for
        ("n_batch", 1, INT32_MAX),
        ("n_ubatch", 1, INT32_MAX),
        ("n_threads", 0, MAX_THREADS),  # 0 and None: llama_cpp's own choice
        ("n_threads_batch", 0, MAX_THREADS),
    ):
        number = kwargs.get(name)
        if number is not None and not least <= number <= most:
            raise ArgumentError(f"{name} must be from {least} to {most}, not {number}")
    for name in ("type_k", "type_v"):
        if kwargs.get(name) is not None and kwargs[name] not in KV_TYPES.values():
            known = ", ".join(f"{number} ({text})" for text, number in KV_TYPES.items())
            raise ArgumentError(f"{name} must be one of {known}, not {kwargs[name]!r}")


def _require_file(kind: str, path: str | os.PathLike[str]) -> None:
    """Raises ModelError."""
    name = os.fspath(path)
    try:
        name.encode()
        found, is_file = Path(name).exists(), Path(name).is_file()
    except (OSError, ValueError) as error:  # too long, or no UTF-8: llama_cpp hands file names on as that
        cause = error.strerror if isinstance(error, OSError) else "llama.cpp takes names in UTF-8 only"
        raise ModelError(f"the {kind} file {name!r} cannot be opened: {cause}") from error
    if not found:
        raise ModelError(f"the {kind} file {name} does not exist")
    if not is_file:
        raise ModelError(f"the {kind} {name} is not a file")


@contextmanager
def interrupts_afterwards() -> Iterator[None]:
    """Ctrl-C meanwhile is a KeyboardInterrupt at the end. In a callback of llama.cpp it would be lost."""
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    interrupts: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: interrupts.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if interrupts:
            raise KeyboardInterrupt


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
        if f"architecture: '{ARCHITECTURE}'" in reason:
            path = text.partition(": ")[2]
            return ModelError(f"{path} holds head scores and no model: load the model that they are of")
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
