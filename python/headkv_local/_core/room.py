"""The largest context that memory has room for: n_ctx="auto"."""

from __future__ import annotations

import logging
from bisect import bisect_left
from typing import Final

from ..devices import devices
from ..errors import LoadMemoryError
from ..machine import memory_free, memory_total
from ..memory import DeviceMemory
from .estimate import Estimator

_STEP: Final = 256  # tokens: llama.cpp rounds a context up to that
_SPARED: Final = 0.1  # of what is free is left alone

_logger = logging.getLogger("headkv_local")


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
        raise LoadMemoryError(
            f"Failed to create llama_context: already with {n_ctx} tokens the model takes "
            f"{full.peak(estimator.order) / 2**30:.1f} GiB on {full.name}, and "
            f"{room(full.name) / 2**30:.1f} GiB may be used there: give it fewer layers (n_gpu_layers), "
            "or use a smaller quantization",
            setting="n_gpu_layers" if full.name in free else None,
        )
    chosen = estimator.at(n_ctx)
    _logger.info(
        'n_ctx="auto" is %d tokens: at most %s while a prompt of that length is read, and a tenth of what is '
        "free is left alone",
        n_ctx,
        ", ".join(f"{d.peak(chosen.order) / 2**30:.1f} GiB on {d.name}" for d in chosen.devices),
    )
    return n_ctx
