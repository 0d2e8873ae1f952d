from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from headkv_local import CancelToken
from headkv_local.chat.turn import Event, Text
from headkv_local.chat.worker import Job, interrupts, on_interrupt


def until_stopped() -> None:
    (token,) = CancelToken.entered()
    while not token.cancelled:
        time.sleep(0.001)


def ignore(event: Event | None) -> None:
    """Show nothing."""


def test_events_are_shown_in_the_callers_thread_and_in_order() -> None:
    seen: list[tuple[str, int]] = []

    def work(job: Job[int]) -> int:
        for i in range(100):
            job.emit(Text(str(i)))
        return threading.get_ident()

    def show(event: Event | None) -> None:
        if isinstance(event, Text):
            seen.append((event.text, threading.get_ident()))

    worker = Job(work).run(show)
    assert seen == [(str(i), threading.get_ident()) for i in range(100)]
    assert worker != threading.get_ident()


def test_error_of_the_worker_is_raised() -> None:
    def work(job: Job[None]) -> None:
        raise LookupError("inside")

    with pytest.raises(LookupError, match="inside"):
        Job(work).run(ignore)


def test_error_of_show_stops_the_worker_first() -> None:
    ended = threading.Event()

    def work(job: Job[None]) -> None:
        job.emit(Text("first"))
        until_stopped()
        ended.set()

    def show(event: Event | None) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        Job(work).run(show)
    assert ended.is_set()


def test_interrupt_stops_the_worker_and_is_not_raised() -> None:
    before = signal.getsignal(signal.SIGINT)

    def work(job: Job[str]) -> str:
        os.kill(os.getpid(), signal.SIGINT)
        until_stopped()
        return "stopped"

    assert Job(work).run(ignore) == "stopped"
    assert signal.getsignal(signal.SIGINT) is before


def test_interrupts_go_where_they_are_wanted() -> None:
    seen: list[int] = []
    with interrupts(lambda: seen.append(1)):
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt), interrupts(None):
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
    assert seen == [1, 1]


def test_an_interrupt_while_the_model_is_loaded_ends_the_process() -> None:
    """As the system does it: there is nothing to tidy up. Afterwards it is a KeyboardInterrupt again."""
    before = signal.getsignal(signal.SIGINT)
    with on_interrupt(signal.SIG_DFL):
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is before


def test_a_job_that_was_started_without_interrupts_gets_none() -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupts(lambda: seen.append(1)), interrupts(None), on_interrupt(signal.SIG_DFL):
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen == []


def test_time_passes_for_the_display(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headkv_local.chat.worker.TICK_SECONDS", 0.01)
    ticked = threading.Event()

    def show(event: Event | None) -> None:
        if event is None:
            ticked.set()

    assert Job(lambda job: ticked.wait(10)).run(show)
