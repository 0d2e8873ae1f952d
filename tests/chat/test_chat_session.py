from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from headkv_local import CancelToken
from headkv_local.chat.console import Console
from headkv_local.chat.display import show_answer
from headkv_local.chat.documents import Document, DocumentError
from headkv_local.chat.options import Options
from headkv_local.chat.session import Session, open_session
from headkv_local.errors import ContextFullError


@pytest.fixture
def session(tiny_path: Path) -> Iterator[Session]:
    options = Options(model=str(tiny_path), budget=16, threads=1, ctx=1024, max_tokens=4, temp=0.0)
    with closing(open_session(options)) as session:
        yield session


def test_a_stop_that_comes_before_the_model_is_at_work(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is asked, and nothing of the turn before is taken for its answer."""
    ask = session.llm.create_chat_completion

    def stopped_first(*args: Any, **kwargs: Any) -> Any:
        (token,) = CancelToken.entered()
        os.kill(os.getpid(), signal.SIGINT)
        while not token.cancelled:
            time.sleep(0.001)
        return ask(*args, **kwargs)

    session.ask("why " * 20, lambda event: None)
    used = session.used_tokens
    with monkeypatch.context() as patched:
        patched.setattr(session.llm, "create_chat_completion", stopped_first)
        answer = session.ask("And then?", lambda event: None)
    assert (answer.text, answer.finish_reason) == ("", "interrupt")
    assert (answer.prompt_tokens, answer.read_tokens, answer.completion_tokens) == (0, 0, 0)
    assert answer.prefill_seconds < 60
    assert (session.turns, session.used_tokens) == (1, used)
    later = session.ask("And then?", lambda event: None)
    assert (session.turns, later.reread_reason) == (2, None)
    assert 0 < later.read_tokens < later.prompt_tokens


def test_a_system_message_that_is_too_long_is_named(session: Session) -> None:
    """When it is set, and when it leaves no room for a question."""
    with pytest.raises(
        ContextFullError, match="the system message has .* the context of 1024 has room for 960"
    ):
        session.instruct("why " * 2000, "/system")
    assert session.options.system is None
    tokens = session.llm.count_tokens("why " * 200, 1024)[0]
    session.instruct("why " * 200, "/system")
    with pytest.raises(DocumentError, match=f"has room for {960 - tokens}:"):
        session.attach([Document("a", "why " * 200)])
    asking = partial(session.ask, "why " * 200)
    for in_chat, advice in ((True, '/system "" goes on without it'), (False, "A larger --ctx")):
        with pytest.raises(ContextFullError, match=f"the system message takes {tokens}.*{advice}"):
            show_answer(session, asking, Console(), in_chat=in_chat)


def test_a_system_message_has_the_room_that_the_chat_leaves(session: Session) -> None:
    def tokens(n_words: int) -> int:
        return session.llm.count_tokens("why " * n_words, 1024)[0]

    session.instruct("why " * 20, "/system")
    session.ask("Why?", lambda _: None)
    used = session.used_tokens
    session.attach([Document("a", "why " * 100)])
    room = 960 - used - tokens(100) + tokens(20)
    with pytest.raises(ContextFullError, match=f"the context of 1024 has room for {room}:"):
        session.instruct("why " * 300, "/system")
    session.instruct("why " * 60, "/system")
    assert session.used_tokens == used + tokens(60) - tokens(20)
    with pytest.raises(DocumentError, match=f"has room for {room - tokens(60)}:"):
        session.attach([Document("b", "why " * 300)])
    session.ask("Why?", lambda _: None)
    session.instruct(None, "/system")
    assert session.used_tokens > 0
