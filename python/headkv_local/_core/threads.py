"""How many threads decode where the caller leaves it open: as many as there are free cores now.

Threads wait for each other some hundred times per token. Where other processes need the cores, two threads
are slower than one: each waits for the other to get a core again.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any, Final

import llama_cpp

from ..machine import default_threads

_INTERVAL: Final = 0.25  # seconds between two looks at the load
_SPARE: Final = 0.25  # cores that others may use before a thread less decodes


class FreeCores:
    """Looks at the load of the cores that this process may use. Linux only: elsewhere the default stays."""

    def __init__(self, stat: Path = Path("/proc/stat")) -> None:
        self.default = default_threads()
        self._stat = stat
        self._looked = -_INTERVAL
        self._before: tuple[float, float] | None = None  # seconds that the cores, and this process, were busy
        self._threads = self.default

    def threads(self) -> int:
        """One for each core that others have left free between the last two looks, at least one."""
        now = monotonic()
        passed = now - self._looked
        if passed < _INTERVAL:
            return self._threads
        self._looked = now
        before, self._before = self._before, self._busy()
        if before is not None and self._before is not None:
            others = (self._before[0] - before[0] - (self._before[1] - before[1])) / passed
            free = len(os.sched_getaffinity(0)) - others
            self._threads = max(1, min(self.default, int(free + _SPARE)))
        return self._threads

    def _busy(self) -> tuple[float, float] | None:
        try:
            lines = self._stat.read_text(encoding="utf-8").splitlines()
            ours = {f"cpu{cpu}" for cpu in os.sched_getaffinity(0)}
        except (OSError, AttributeError):
            return None
        ticks = 0
        for name, *fields in (line.split() for line in lines):
            if name in ours:  # user, nice, system, idle, iowait, irq, softirq, steal
                numbers = [int(field) for field in fields[:8]]
                ticks += sum(numbers) - sum(numbers[3:5])
        used = os.times()
        return ticks / os.sysconf("SC_CLK_TCK"), used.user + used.system


class Threads:
    """How many threads compute in one context."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        """arguments: of llama_cpp's constructor, filled in here: it would take half of the machine's CPUs."""
        self.cores = None if arguments.get("n_threads") else FreeCores()
        """Where the caller leaves open how many decode."""
        for name in ("n_threads", "n_threads_batch"):
            arguments[name] = arguments.get(name) or default_threads()
        self._n_batch: int = arguments["n_threads_batch"]

    def fit(self, ctx: llama_cpp.llama_context_p, same: Callable[[], bool]) -> None:
        """Before a token is decoded. same: whether any number of threads comes to the same logits."""
        if self.cores is not None:
            self._set(ctx, self.cores.threads() if same() else self.cores.default)

    def fit_prompt(self, ctx: llama_cpp.llama_context_p) -> None:
        """Before a prompt is read, whose last batch may be one token."""
        if self.cores is not None:
            self._set(ctx, self.cores.default)

    def _set(self, ctx: llama_cpp.llama_context_p, n: int) -> None:
        llama_cpp.llama_set_n_threads(ctx, n, self._n_batch)
