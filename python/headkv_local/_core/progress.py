"""How far the reading of a prompt is."""

from __future__ import annotations

from collections.abc import Callable


class Progress:
    """Adds up what was done and tells a callback, with 0 first, and with all at the end."""

    def __init__(self, callback: Callable[[int, int], None] | None, total: int) -> None:
        self._callback, self._done, self._total = callback, 0, total
        self.add(0)

    def add(self, n: int) -> None:
        self._done += n
        if self._done < self._total:
            self._tell()

    def reach(self, done: int, total: int) -> None:
        """done of total: as another counts it, from the beginning of what is counted here."""
        if (n := min(done, total) - self._done) > 0:
            self.add(n)

    def end(self) -> None:
        self._done = self._total
        if self._total > 0:
            self._tell()

    def _tell(self) -> None:
        if self._callback is not None:
            self._callback(self._done, self._total)
