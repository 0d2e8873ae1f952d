"""Free memory of the GPUs, as their drivers report it, while something runs."""

from __future__ import annotations

import threading
from types import TracebackType

from headkv_local.devices import gpus

_INTERVAL = 0.001


def free_bytes(names: tuple[str, ...]) -> int | None:
    """Of the GPUs among these devices together; None where there is none among them."""
    free = [device.bytes_free for device in gpus() if device.name in names]
    return sum(free) if free else None


class Watch:
    """The least that is free between entering and leaving, asked about every millisecond."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = names
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.least = free_bytes(names)

    def __enter__(self) -> Watch:
        if self.least is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        if self._thread.is_alive():
            self._thread.join()
        self._look()

    def _run(self) -> None:
        while not self._done.wait(_INTERVAL):
            self._look()

    def _look(self) -> None:
        free = free_bytes(self._names)
        if free is not None and self.least is not None:
            self.least = min(self.least, free)
