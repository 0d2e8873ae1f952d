"""Threads that decode where the caller leaves their number open: they follow the load of the cores."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import llama_cpp
import pytest

from headkv_local import Llama, Retention
from headkv_local._core import threads
from headkv_local._core.threads import FreeCores

TICK = os.sysconf("SC_CLK_TCK")


class Machine:
    """Four cores that this process may use, and /proc/stat as it stands."""

    def __init__(self, stat: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.stat, self.now, self.ours, self.busy = stat, 100.0, 0.0, 0.0
        monkeypatch.setattr(threads, "default_threads", lambda: 4)
        monkeypatch.setattr(threads, "monotonic", lambda: self.now)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 5}, raising=False)
        monkeypatch.setattr(os, "times", lambda: os.times_result((self.ours, 0.0, 0.0, 0.0, 0.0)))
        self.pass_time(0.0, 0.0, 0.0)

    def pass_time(self, seconds: float, others: float, ours: float) -> None:
        """others, ours: cores that they use meanwhile."""
        self.now += seconds
        self.ours += seconds * ours
        self.busy += seconds * (others + ours)
        ticks = round(self.busy * TICK)
        self.stat.write_text(
            f"cpu 0 0 0 0\ncpu0 {ticks} 0 0 500 70 0 0 0 9 9\ncpu5 0 0 0 1\ncpu3 900000 0 0 1\n"
        )


@pytest.mark.parametrize(("others", "threads"), [(0.0, 4), (0.2, 4), (1.0, 3), (1.9, 2), (3.0, 1), (4.0, 1)])
def test_threads_follow_what_others_leave(
    others: float, threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(tmp_path / "stat", monkeypatch)
    cores = FreeCores(machine.stat)
    assert cores.threads() == 4  # nothing is known yet
    machine.pass_time(0.1, others, 4 - others)
    assert cores.threads() == 4  # too soon to tell
    machine.pass_time(0.9, others, 4 - others)
    assert cores.threads() == threads
    machine.pass_time(1.0, 0.0, threads)
    assert cores.threads() == 4


def test_the_default_stays_where_the_system_does_not_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(tmp_path / "stat", monkeypatch)
    cores = FreeCores(tmp_path / "missing")
    cores.threads()
    machine.pass_time(1.0, 4.0, 0.0)
    assert cores.threads() == 4


@pytest.mark.parametrize("retention", [None, Retention(budget=64)])
def test_where_the_result_depends_on_threads_their_number_stays(
    retention: Retention | None, load: Callable[..., Llama], tiny_path: Path
) -> None:
    """Also right after it did not: a full cache that grows past what one thread looks at alone."""
    llm = load(tiny_path, n_threads=None, flash_attn=True, retention=retention)
    cores = llm._threads.cores
    assert cores is not None
    cores.default, cores.threads = 2, lambda: 1
    used = {}
    llm.prefill([token % 200 for token in range(250)])
    for token in range(12):
        n = llm.n_tokens
        llm.eval([token])
        used[n] = llama_cpp.llama_n_threads(llm._ctx.ctx)
    assert used == {n: 2 if n >= 256 and retention is None else 1 for n in range(250, 262)}
    assert pickle.loads(pickle.dumps(llm))._threads.cores is not None
