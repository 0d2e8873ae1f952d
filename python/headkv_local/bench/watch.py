"""The least or the most that a figure was while something ran."""

from __future__ import annotations

import threading
from collections.abc import Callable

_INTERVAL = 0.001


class Watch:
    """Between entering and leaving, asked for every millisecond.

    look: the figure now, None where there is none. worse: min or max.
    """

    def __init__(self, look: Callable[[], int | None], worse: Callable[[int, int], int]) -> None:
        self._look, self._worse = look, worse
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.value = look()

    def __enter__(self) -> Watch:
        if self.value is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        if self._thread.is_alive():
            self._thread.join()
        self._take()

    def _run(self) -> None:
        while not self._done.wait(_INTERVAL):
            self._take()

    def _take(self) -> None:
        now = self._look()
        if now is not None and self.value is not None:
            self.value = self._worse(self.value, now)
