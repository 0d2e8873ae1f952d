"""Who uses a context, without one: what it holds of a stream is set aside for others, and brought back."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from contextlib import contextmanager
from contextvars import copy_context
from functools import partial
from types import FrameType
from typing import Any

import pytest

from headkv_local import CancelToken
from headkv_local._core.lifetime import Lifetime
from headkv_local._core.turns import Turn, Turns
from headkv_local.errors import StateError


@pytest.fixture
def said() -> list[tuple[str, Any, Turn]]:
    return []


@pytest.fixture
def lifetime(said: list[tuple[str, Any, Turn]]) -> Lifetime:
    return Lifetime(
        lambda user, turn: said.append(("aside", user, turn)),
        lambda user, turn: said.append(("back", user, turn)),
    )


def test_a_stream_makes_way_and_goes_on(lifetime: Lifetime, said: list[tuple[str, Any, Turn]]) -> None:
    first, second = Turn(), Turn()
    for turn in (first, first, second, first):
        with lifetime.used("llm", turn):
            pass
    back = [("back", "llm", turn) for turn in (first, first, second, first)]
    assert said == [*back[:2], ("aside", "llm", first), back[2], ("aside", "llm", second), back[3]]


def test_a_call_beside_a_stream_leaves_it_there(
    lifetime: Lifetime, said: list[tuple[str, Any, Turn]]
) -> None:
    turn = Turn()
    with lifetime.used("llm", turn):
        pass
    with lifetime.used("llm", beside=True):
        pass
    assert said == [("back", "llm", turn)]
    with lifetime.used("llm"):
        pass
    assert said[1:] == [("aside", "llm", turn)]


def test_a_stream_that_cannot_come_back_holds_nobody_up(said: list[tuple[str, Any, Turn]]) -> None:
    def fail(_: Any, __: Turn) -> None:
        raise StateError("lost")

    lifetime = Lifetime(lambda user, turn: said.append(("aside", user, turn)), fail)
    turn = Turn()
    with pytest.raises(StateError, match="lost"), lifetime.used("llm", turn):
        raise AssertionError("it has not come back")
    lifetime.turns.leave(turn)
    with lifetime.used("llm"):
        pass
    assert said == []


def test_nobody_comes_after_the_end(lifetime: Lifetime) -> None:
    with lifetime.ended() as first:
        assert first
    with lifetime.ended() as again:
        assert not again
    with pytest.raises(StateError, match="closed"), lifetime.used("llm"):
        raise AssertionError("it is closed")


def test_the_end_is_not_begun_in_the_middle_of_something(lifetime: Lifetime) -> None:
    with lifetime.used("llm"), pytest.raises(StateError, match="in the middle"), lifetime.ended():
        raise AssertionError("it is used")
    with lifetime.ended() as first, lifetime.ended() as again:  # a signal's handler
        assert (first, again) == (True, False)


FILES = {sys.modules[of.__module__].__file__ for of in (Turns, Lifetime, CancelToken, threading.Condition)}
FILES |= {sys.modules[contextmanager.__module__].__file__}


def interrupted(work: Callable[[], None], after: int) -> bool:
    """Whether Ctrl-C came: where the so many-th function of these files begins, where Python looks for it."""
    left = after

    def trace(frame: FrameType, event: str, arg: Any) -> None:
        nonlocal left
        if frame.f_code.co_filename in FILES:
            left -= 1
            if left == 0:
                sys.settrace(None)
                raise KeyboardInterrupt

    sys.settrace(trace)
    try:
        work()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(None)
    return False


def step(lifetime: Lifetime) -> None:
    with lifetime.used("llm", Turn()):
        pass


def under_a_token(lifetime: Lifetime) -> None:
    with CancelToken(), lifetime.used("llm"):
        pass


def beside(lifetime: Lifetime) -> None:
    with lifetime.still():
        pass


@pytest.mark.parametrize("work", [step, under_a_token, beside])
def test_an_interrupt_leaves_nothing_taken(
    work: Callable[[Lifetime], None],
) -> None:
    """Wherever it comes: other threads compute, and the end comes."""
    for after in range(1, 100):
        lifetime = Lifetime(lambda user, turn: None, lambda user, turn: None)
        if not copy_context().run(interrupted, partial(work, lifetime), after):
            assert after > 5
            return
        done: list[bool] = []

        def use(lifetime: Lifetime = lifetime, done: list[bool] = done) -> None:
            with lifetime.used("other"), lifetime.still():
                done.append(True)
            with lifetime.ended() as first:
                done.append(first)

        other = threading.Thread(target=use, daemon=True)
        other.start()
        other.join(60)
        assert done == [True, True], after
    raise AssertionError("it does not end")
