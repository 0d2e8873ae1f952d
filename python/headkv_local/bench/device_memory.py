"""Free memory of the GPUs, as their drivers report it."""

from __future__ import annotations

from headkv_local.devices import gpus


def free_bytes(names: tuple[str, ...]) -> int | None:
    """Of the GPUs among these devices together; None where there is none among them."""
    free = [device.bytes_free for device in gpus() if device.name in names]
    return sum(free) if free else None
