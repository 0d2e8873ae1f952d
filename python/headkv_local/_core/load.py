"""What is wrong with a model, before and after llama.cpp has tried to load it."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import fields
from difflib import get_close_matches
from inspect import signature
from pathlib import Path
from typing import Any, Final

import llama_cpp
import numpy as np

from ..checks import require_overrides
from ..errors import AdapterError, ArgumentError, HeadKVError, LoadMemoryError, ModelError, UnsupportedError
from ..forms import seed_of
from ..retention import Retention
from ..settings import AUTO, INT32_MAX, KV_TYPES, MAX_LAST_TOKENS, MAX_THREADS
from .embedding import require_room_for_means
from .gguf import SIDECAR
from .hyperparameters import require_computable
from .logging import collected_errors
from .native.loading import refusing

_STOCK: Final = frozenset(signature(llama_cpp.Llama).parameters)
"""Names of its arguments. The server has another class in its place while it loads a model."""

_OF_ITS_PAST: Final = {"f16_kv": True, "n_parts": -1}  # LangChain always gives it these, and they are so
_OF_ITS_SERVER: Final = frozenset({"mul_mat_q", "rpc_servers"})
"""Which llama_cpp's server gives, and its Llama does not have."""

_logger = logging.getLogger("headkv_local")

# "failed to allocate CUDA0 buffer of size 123", "unable to allocate CUDA0 buffer",
# "allocating 1.0 MiB on device 0"; "failed to allocate buffer of size 123" is of none
_NO_ROOM = re.compile(
    r"(?:fail|unable)\w* to alloc\w* (?!buffer )(\w+)|allocating [\d.]+ MiB on (device \d+)"
)


def arguments_of(retention: Retention | None, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of Llama as llama_cpp takes them."""
    given = {**kwargs}
    if given.get("flash_attn") is None:
        given["flash_attn"] = retention is not None
    if retention is not None:
        given.setdefault("swa_full", False)  # cells for the sliding windows, not for the whole context
    if given.get("seed") is not None:
        given["seed"] = seed_of(given["seed"])
    path = given.get("lora_path")  # an empty one is none, for sessions and states too
    given["lora_path"] = os.path.abspath(os.fsdecode(path)) if path else None
    if given.get("draft_model") is not None:
        given["logits_all"] = True  # llama_cpp turns this on by itself, but makes no room for them
    return given


def refuse_what_cannot_be(
    model_path: str | os.PathLike[str], retention: Retention | None, kwargs: dict[str, Any]
) -> None:
    """Raise for what can be told without reading the model."""
    refuse_settings(retention, kwargs)
    path = os.fsdecode(model_path)
    missing = why_no_file(path)
    if missing == "":
        raise ModelError(f"Model path does not exist: {path}")  # to the end: callers take the path from it
    if missing is not None:
        raise ModelError(f"Failed to load model from file: {path!r} cannot be opened: {missing}")
    require_room_for_means(path, kwargs)
    require_computable(path, kwargs.get("kv_overrides") or {})
    if adapter := kwargs.get("lora_path"):
        require_adapter(os.fsdecode(adapter))


def refuse_settings(retention: Retention | None, kwargs: dict[str, Any]) -> None:
    """Raise for arguments that go with no model. The sentence begins with the argument's name."""
    flash_attn = kwargs.get("flash_attn")
    if not isinstance(retention, Retention | None):
        raise ArgumentError(f"retention must be a Retention or None, not {retention!r}")
    refuse_fields(kwargs)
    if retention is not None:
        for setting in ("embedding", "vocab_only"):
            if kwargs.get(setting):
                raise UnsupportedError(f"{setting}=True: a model that is loaded so has no prompt to compact")
        require_last_logits(retention, bool(kwargs.get("logits_all") or kwargs.get("draft_model")))
        if flash_attn is not None and not flash_attn:
            raise UnsupportedError("flash_attn is off: a KV cache can be compacted with flash attention only")
    for name, least, most in (
        ("n_ctx", 0, INT32_MAX),  # 0: what the model was trained for
        ("n_batch", 1, INT32_MAX),
        ("n_ubatch", 1, INT32_MAX),
        ("n_threads", 0, MAX_THREADS),  # 0 and None: ours
        ("n_threads_batch", 0, MAX_THREADS),
        ("last_n_tokens_size", -1, MAX_LAST_TOKENS),  # each generation makes room for them
    ):
        number = kwargs.get(name)
        if name == "n_ctx" and number == AUTO:
            if kwargs.get("vocab_only"):
                raise UnsupportedError(
                    f'vocab_only=True: no cache is kept then, and n_ctx="{AUTO}" has nothing to fit'
                )
            continue
        if number is None and (name not in kwargs or name.startswith("n_threads")):
            continue
        whole = isinstance(number, int | np.integer) and not isinstance(number, bool)
        if not whole or not least <= int(number or 0) <= most:
            auto = f' or "{AUTO}"' if name == "n_ctx" and isinstance(number, str) else ""
            raise ArgumentError(f"{name} must be from {least} to {most}{auto}, not {number!r}")
    if kwargs.get("kv_overrides") is not None:
        require_overrides(kwargs["kv_overrides"])
    for name in ("type_k", "type_v"):
        if kwargs.get(name) is not None and kwargs[name] not in KV_TYPES.values():
            known = ", ".join(f"{number} ({text})" for text, number in KV_TYPES.items())
            raise ArgumentError(f"{name} must be one of {known}, not {kwargs[name]!r}")


def refuse_fields(kwargs: dict[str, Any]) -> None:
    """Raise ArgumentError for what belongs into a Retention: llama_cpp takes any name, and does nothing."""
    for name in (field.name for field in fields(Retention)):
        if name in kwargs and name not in _STOCK:
            raise ArgumentError(f"{name} is an argument of Retention: give retention=Retention({name}=...)")


def warn_of_unknown(kwargs: dict[str, Any]) -> None:
    """Of names that llama_cpp takes and does nothing with: programs still give it some of its past."""
    past = {name for name, value in _OF_ITS_PAST.items() if kwargs.get(name) == value}
    for name in sorted(kwargs.keys() - _STOCK - _OF_ITS_SERVER - past):
        meant = get_close_matches(name, _STOCK, n=1)
        hint = f": is {meant[0]} meant?" if meant else ""
        _logger.warning("%s is no argument of Llama, and changes nothing%s", name, hint)


def refuse_unknown(kwargs: dict[str, Any], known: Collection[str]) -> None:
    """Raise ArgumentError for an argument that is none of llama_cpp's, nor one of those that are known."""
    refuse_fields(kwargs)
    for name in kwargs:
        if name not in known and name not in _STOCK:
            raise ArgumentError(f"{name} is no argument of Llama")


def require_last_logits(retention: Retention | None, logits_all: bool) -> None:
    """Raise ArgumentError where a prompt is read layer by layer and the logits of all tokens are wanted."""
    if logits_all and retention is not None and retention.archives:
        raise ArgumentError(
            "logits_all=True, or a draft model, goes with neither an archive nor the order of layers: these "
            "leave the logits of a prompt's last token alone"
        )


def why_no_file(path: str) -> str | None:
    """Why a file cannot be opened, "" if it does not exist; None if it is one."""
    try:
        path.encode()
        found, is_file = Path(path).exists(), Path(path).is_file()
    except (OSError, ValueError) as error:  # too long, or no UTF-8: llama_cpp hands file names on as that
        return str(error.strerror) if isinstance(error, OSError) else "llama.cpp takes names in UTF-8 only"
    if not found:
        return ""
    return None if is_file else "it is not a file"


def require_adapter(path: str, lines: list[str] | None = None) -> None:
    """Raise AdapterError for a file that is none, or that llama.cpp refused with these errors."""
    reason = why_no_file(path) if lines is None else "; ".join(lines)
    if reason is not None:
        text = f"Failed to initialize LoRA adapter from lora path: {path}"
        raise AdapterError(f"{text}: {reason or 'the file does not exist'}")


@contextmanager
def explained_load_errors() -> Iterator[list[str]]:
    """Raise what an exception of llama_cpp's constructor means: ModelError, OutOfMemoryError, ArgumentError.

    Yields the errors that llama.cpp has logged until then.
    """
    with collected_errors() as lines, refusing():
        try:
            yield lines
        except BaseException as error:
            explained = load_error(error, lines)
            if explained is error:
                raise
            raise explained from error


def load_error(error: BaseException, lines: list[str]) -> BaseException:
    """What an exception of llama_cpp's constructor means; lines: llama.cpp's errors, the cause.

    llama_cpp's sentence stays: its users know errors by that. Any other exception is handed back as it is.
    """
    if isinstance(error, MemoryError) and not isinstance(error, HeadKVError):  # of NumPy
        return LoadMemoryError(
            f"no memory for the context: make n_ctx or n_batch smaller ({str(error) or 'Python had none'})",
            setting="n_ctx",
        )
    if type(error) is not ValueError:
        return error
    text = str(error)
    reason = "; ".join(lines) or "llama.cpp gave no reason"
    if text.startswith(("Failed to load model", "Failed to get vocab")):
        where = _full_device(lines)
        if where:
            return LoadMemoryError(
                f"{text}: no memory for the model on {where}: give it fewer layers (n_gpu_layers), or use a "
                f"smaller quantization ({reason})",
                setting="n_gpu_layers",
            )
        if f"architecture: '{SIDECAR}'" in reason:
            path = text.partition(": ")[2]
            return ModelError(f"{path} holds head scores and no model: load the model that they are of")
        return ModelError(f"{text}: {reason}")
    if text.startswith("Failed to create llama_context"):
        if "requires ctx_other" in reason:
            return ModelError(
                f"{text}: the model only drafts for another one, whose context it needs: {reason}"
            )
        if "alloc" in reason or "memory" in reason:
            where = _full_device(lines)
            place, settings = (f" on {where}", "n_ctx or n_gpu_layers") if where else ("", "n_ctx")
            return LoadMemoryError(
                f"{text}: no memory for the context{place}: make {settings} smaller ({reason})",
                setting="n_ctx",
            )
        return ArgumentError(f"{text}: the context cannot be made: {reason}")
    if text.startswith("Failed to create llama_batch"):
        return LoadMemoryError(
            f"{text}: no memory for a batch: make n_batch or n_ctx smaller ({reason})", setting="n_ctx"
        )
    return error


def _full_device(lines: list[str]) -> str | None:
    """The device, other than the CPU, that llama.cpp's errors say had no room."""
    for line in lines:
        if found := _NO_ROOM.search(line):
            name = found[1] or found[2]
            return None if name.startswith("CPU") else name
    return None
