"""The largest context that memory has room for, n_ctx="auto", and those that are too large."""

from __future__ import annotations

import logging
from bisect import bisect_left
from typing import Any, Final

from .._gguf.reading import F16, UNLIKE, metadata, token_bytes
from ..devices import devices, gpus
from ..errors import LoadMemoryError
from ..machine import memory_free, memory_total
from ..memory import DeviceMemory
from ..retention import Retention
from ..settings import AUTO
from ..wording import size
from .estimate import Estimator

_STEP: Final = 256  # tokens: llama.cpp rounds a context up to that
_SPARED: Final = 0.1  # of what is free is left alone
_BESIDE: Final = 512 << 20  # at most beside what tokens take

_logger = logging.getLogger("headkv_local")


def with_context(path: str, retention: Retention | None, kwargs: dict[str, Any]) -> dict[str, Any]:
    """kwargs, with a number for n_ctx="auto". LoadMemoryError for one that is too large."""
    if kwargs.get("n_ctx") == AUTO:
        with Estimator(path, retention, kwargs) as estimator:
            return kwargs | {"n_ctx": largest_context(estimator)}
    refuse_too_large(path, retention, kwargs)
    return kwargs


def largest_context(estimator: Estimator) -> int:
    """The most tokens, up to what the model was trained for, whose peak fits what is free, less a tenth.

    Raises LoadMemoryError where not even 256 tokens fit.
    """
    free = {device.name: device.bytes_free for device in devices() if device.is_gpu}
    in_host = memory_free()
    if in_host is None:  # not known; 0 is
        in_host = memory_total()

    def room(device: str) -> float:
        n = free.get(device, in_host)
        return float("inf") if n is None else n * (1 - _SPARED)

    def too_much(n_ctx: int) -> DeviceMemory | None:
        """The first device that has no room."""
        found = estimator.at(n_ctx)
        return next((d for d in found.devices if d.peak(found.order) > room(d.name)), None)

    def fits(n_ctx: int) -> bool:
        try:
            return too_much(n_ctx) is None
        except LoadMemoryError:  # to count the cells takes too much already
            return False

    n_ctx = estimator.trained
    if not fits(n_ctx):
        sizes = range(_STEP, n_ctx, _STEP)
        n_fitting = bisect_left(sizes, True, key=lambda n: not fits(n))
        n_ctx = sizes[n_fitting - 1] if n_fitting > 0 else min(_STEP, n_ctx)
    if full := too_much(n_ctx):
        on_gpu = full.name in free
        advice = (
            "give it fewer layers (n_gpu_layers)"
            if on_gpu
            else "set n_ctx to a number (weights are then read from the file as they are needed, slowly)"
        )
        raise LoadMemoryError(
            f"Failed to create llama_context: already with {n_ctx} tokens the model takes "
            f"{size(full.peak(estimator.order))} on {full.name}, and "
            f"{size(room(full.name))} may be used there: {advice}, or use a smaller quantization",
            setting="n_gpu_layers" if on_gpu else None,
        )
    chosen = estimator.at(n_ctx)
    _logger.info(
        'n_ctx="auto" is %d tokens: at most %s while a prompt of that length is read, and a tenth of what is '
        "free is left alone",
        n_ctx,
        ", ".join(f"{size(d.peak(chosen.order))} on {d.name}" for d in chosen.devices),
    )
    return n_ctx


def refuse_too_large(path: str, retention: Retention | None, kwargs: dict[str, Any]) -> None:
    """Raise LoadMemoryError where a prompt that fills the context needs more than all memory there is.

    A system that promises more memory than it has, or a container's limit, would end the process once the
    cache is written to. Of a GPU only what is read layer by layer is counted, for which a context is small
    at first: of any other its driver says when it has no room.
    """
    by_layers = retention is not None and retention.by_layers
    found = gpus() if kwargs.get("n_gpu_layers") and kwargs.get("offload_kqv", True) else ()
    in_host, numbers = memory_total(), metadata(path)
    if in_host is None or (found and not by_layers) or any(key in numbers for key in UNLIKE):
        return
    n_ctx = kwargs.get("n_ctx", 512) or numbers.get("context_length", [0])[0]
    types = (kwargs.get(name) for name in ("type_k", "type_v"))
    most = n_ctx * token_bytes(numbers, *(F16 if kind is None else kind for kind in types))
    if retention is not None:  # kept rows, or an archive, and hidden states
        most = 2 * most + _BESIDE
    if not found and most <= in_host:  # without looking closer
        return
    totals = {gpu.name: gpu.bytes_total for gpu in found}
    with Estimator(path, retention, kwargs) as estimator:
        estimate = estimator.at(n_ctx)
    for device in estimate.devices:
        there = totals.get(device.name, in_host)
        needed = device.peak(estimate.order)
        if device.name not in totals:  # the system may drop weights; llama.cpp says where it cannot compute
            needed -= device.weights + device.compute
        if needed > there:
            advice = "make n_ctx smaller"
            if retention is not None and not (by_layers and retention.archive not in (None, "memory")):
                advice += ', or keep an archive in a file (Retention(archive="PATH"))'
            raise LoadMemoryError(
                f"Failed to create llama_context: {n_ctx} tokens take {size(needed)} of KV cache and what "
                f"goes with it on {device.name}, and this process may use {size(there)}: {advice}",
                setting="n_ctx",
            )
