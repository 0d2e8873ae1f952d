"""Who uses a context, without one: what it holds of a stream is set aside for others, and brought back."""

from __future__ import annotations

from typing import Any

import pytest

from headkv_local._core.lifetime import Lifetime
from headkv_local._core.turns import Turn
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
