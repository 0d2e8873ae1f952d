"""The archive of a chat: where it lies, what happens without it, and going back."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from headkv_local import ArchiveError, ArgumentError, StateError, defaults
from headkv_local.chat.archive import load_with_archive
from headkv_local.chat.documents import Document
from headkv_local.chat.model import ChatLlama
from headkv_local.chat.options import Options
from headkv_local.chat.session import Session, open_session
from headkv_local.chat.setting import change
from headkv_local.chat.turn import Answer, Event, Notice, Prefill, Text
from headkv_local.errors import LoadMemoryError

DOCUMENT = Document("document", "The pilot knows the rocks. " * 12)
OTHER = Document("other", "The keeper lit the lamp. " * 12)


@pytest.fixture
def session(tiny_path: Path) -> Iterator[Callable[..., Session]]:
    """Makes sessions of a tiny model."""
    sessions: list[Session] = []

    def make(**given: object) -> Session:
        options = Options(
            **(
                {
                    "model": str(tiny_path),
                    "budget": 16,
                    "threads": 1,
                    "ctx": 2048,
                    "max_tokens": 8,
                    "temp": 0.0,
                }
                | given
            )  # type: ignore[arg-type]
        )
        sessions.append(open_session(options))
        return sessions[-1]

    yield make
    for each in sessions:
        each.llm.close()


def test_none_where_prompts_choose_for_all_questions(session: Callable[..., Session]) -> None:
    """Unless one is asked for, which is refused. A later question is read behind what was kept."""
    chat = session(observe="all")
    assert chat.llm.retention is not None
    assert (chat.llm.retention.archive, chat.llm.retention.observe) == (None, "all")
    chat.documents.append(DOCUMENT)
    for question in ("Who knows the rocks?", "Who else?"):
        ask(chat, question)
    assert len(set(chat.llm.cache_stats().kept.ravel().tolist())) > 1
    with pytest.raises(ArgumentError, match='observe="all" chooses once'):
        session(observe="all", archive="memory")


@pytest.mark.parametrize("in_memory", [True, False])
def test_an_archive_goes_and_comes_with_what_is_set(
    session: Callable[..., Session], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_memory: bool
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if not in_memory:
        monkeypatch.setattr(defaults, "memory_free", lambda: 1000)
    chat, folder = session(), tmp_path / "headkv-local"
    for observe in ("all", "32", "all", "all", "64"):
        change(chat, "observe", observe)
        assert (chat.archive.where is None) is (observe == "all")
        assert (chat.archive.where == "memory") is (in_memory and observe != "all")
        assert folder.exists() is not in_memory
        assert in_memory or len(list(folder.iterdir())) == (observe != "all")
        assert chat.llm.retention is not None
        assert chat.llm.retention.archive == chat.archive.where
    chat.documents.append(DOCUMENT)
    ask(chat, "Who knows the rocks?")
    before = chat.archive
    assert "after /clear" in change(chat, "observe", "all")
    assert chat.archive == before
    ask(chat, "Who else?")
    assert chat.stats().archive_tokens > 0
    chat.clear()
    assert chat.archive.where is None


def test_why_none_comes_is_said(session: Callable[..., Session], folder: Path) -> None:
    chat = session(observe="all")
    folder.write_text("a file where the folder would be")
    said = change(chat, "observe", "32")
    assert "The chat goes on without an archive: " in said
    assert (chat.archive.where, bool(chat.archive.reason)) == (None, True)


def test_one_that_is_asked_for_stays(session: Callable[..., Session]) -> None:
    for archive, where in (("memory", "memory"), ("off", None)):
        chat = session(archive=archive)
        if where:
            with pytest.raises(ArgumentError, match='observe="all" chooses once'):
                change(chat, "observe", "all")
        change(chat, "observe", "32")
        assert chat.archive.where == where


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache folder, on a machine that has no memory for an archive."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(defaults, "memory_free", lambda: 1000)
    return tmp_path / "headkv-local"


def ask(session: Session, question: str, events: list[Event | None] | None = None) -> Answer:
    return session.ask(question, (lambda _: None) if events is None else events.append)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def test_in_memory_while_there_is_room(
    session: Callable[..., Session], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    chat = session()
    shape = chat.llm.shape
    needed = 2048 * shape.n_heads * shape.row_bytes
    for free, in_memory in ((2 * needed, True), (2 * needed - 1, False)):
        monkeypatch.setattr(defaults, "memory_free", lambda free=free: free)
        assert (session().archive.where == "memory") is in_memory


def test_a_file_of_its_own(session: Callable[..., Session], folder: Path) -> None:
    """Those of dead processes go, those of others stay, and so does what else is there."""
    folder.mkdir()
    for name in ("archive-1-left", "notes"):
        (folder / name).write_text("")
    with locked(folder / "archive-2-alive"):
        first, second = session(), session()
        files = {Path(chat.archive.where or "") for chat in (first, second)}
        assert set(folder.iterdir()) == {folder / "archive-2-alive", folder / "notes", *files}
        chat = first
        chat.attach([DOCUMENT])
        answer = ask(chat, "Why?")
        assert (answer.archive, answer.stats.archive_tokens) == (chat.archive.where, answer.prompt_tokens)
        for budget in (None, 16):  # nothing to keep there meanwhile
            chat.clear()
            chat.retain(chat.options.having({"budget": budget}, "a test"))
            assert Path(chat.archive.where or "").exists() is (budget is not None)
        for each in (first, second):
            each.llm.close()
        assert not any(path.exists() for path in files)


def test_nobody_waits_for_a_file_that_another_makes(session: Callable[..., Session], folder: Path) -> None:
    """Which takes as long as a model loads. What was left meanwhile goes at a later start."""
    folder.mkdir()
    left = folder / "archive-1-left"
    left.write_text("")
    other = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(other, fcntl.LOCK_SH)
        assert Path(session().archive.where or "").exists()
        assert left.exists()
    finally:
        os.close(other)
    session()
    assert not left.exists()


def test_a_full_cache_without_room_is_loaded_once(folder: Path) -> None:
    """Its archive would be none, wherever it was."""
    loaded: list[str | None] = []

    def load(where: str | None) -> ChatLlama:
        loaded.append(where)
        raise LoadMemoryError("no memory for the context", setting="n_ctx")

    for budget, n_loads in ((None, 1), (16, 2)):
        loaded.clear()
        with pytest.raises(LoadMemoryError):
            load_with_archive(load, Options(model="m", budget=budget))
        assert len(loaded) == n_loads


def test_no_folder_for_it(session: Callable[..., Session], folder: Path) -> None:
    folder.write_text("a file")
    chat = session()
    assert chat.archive.where is None
    assert "File exists" in chat.archive.told
    assert not chat.stats().archive_tokens
    with pytest.raises(ArchiveError, match="cannot be made"):
        session(archive=str(folder / "archive"))
    with pytest.raises(ArchiveError, match="another file"):
        session(archive=str(folder))
    assert folder.read_text() == "a file"


def test_a_chat_that_loses_its_archive(session: Callable[..., Session], tmp_path: Path) -> None:
    """The conversation goes on from the kept rows: nothing is read again."""
    path = tmp_path / "archive"
    chat = session(archive=str(path))
    chat.attach([DOCUMENT])
    ask(chat, "Why?")
    os.truncate(path, 5)
    chat.attach([OTHER])
    events: list[Event | None] = []
    answer = ask(chat, "And then?", events)
    assert (
        events.count(Notice(f"The chat goes on without an archive: the archive {path} has been cut short."))
        == 1
    )
    assert (chat.turns, answer.archive, answer.reread_reason) == (2, None, None)
    assert answer.stats.compacted
    assert answer.read_tokens < answer.prompt_tokens
    assert not path.exists()
    assert ask(chat, "So?").read_tokens < 100


def test_every_document_is_compacted(session: Callable[..., Session]) -> None:
    chat = session()
    ask(chat, "hi")
    for turn, document in enumerate((DOCUMENT, OTHER), 2):
        chat.attach([document])
        answer = ask(chat, "Why?")
        stats = answer.stats
        assert chat.turns == turn
        assert answer.read_tokens < answer.prompt_tokens
        assert stats.archive_tokens == stats.prompt_tokens == answer.prompt_tokens
        assert int(stats.kept.sum()) == 16 * chat.llm.shape.n_heads


def test_again(session: Callable[..., Session]) -> None:
    chat = session()
    with pytest.raises(StateError, match="no answer"):
        chat.again(lambda _: None)
    chat.attach([DOCUMENT])
    first = ask(chat, "Why?")
    chat.attach([OTHER])  # for the next question
    again = chat.again(lambda _: None)
    assert (again.text, again.prompt_tokens, again.read_tokens) == (first.text, first.prompt_tokens, 0)
    assert (chat.turns, chat.documents) == (1, [OTHER])


def test_undo(session: Callable[..., Session]) -> None:
    chat, other = session(), session()
    for each in (chat, other):
        each.attach([DOCUMENT])
        ask(each, "Why?")
    used = chat.used_tokens
    chat.attach([OTHER])
    ask(chat, "Where?")
    assert chat.undo().question == "Where?"
    assert (chat.turns, chat.used_tokens, chat.documents) == (1, used, [OTHER])
    chat.documents.clear()
    later = ask(chat, "Who?")
    assert later.read_tokens < later.prompt_tokens / 4
    assert later.text == ask(other, "Who?").text
    for _ in range(2):
        chat.undo()
    assert (chat.turns, chat.used_tokens, chat.documents) == (0, 0, [DOCUMENT])
    with pytest.raises(StateError, match="no question"):
        chat.undo()
    assert ask(chat, "What?").read_tokens < 100  # the document has been read


def test_a_later_prompt_that_is_stopped(session: Callable[..., Session]) -> None:
    chat, other = session(), session()
    for each in (chat, other):
        each.attach([DOCUMENT])
        ask(each, "Why?")
    used = chat.used_tokens

    def stop(event: Event | None) -> None:
        if isinstance(event, Prefill) and event.done > event.total / 2:
            chat.llm.cancel()

    chat.attach([OTHER])
    stopped = chat.ask("Where?", stop)
    assert (stopped.finish_reason, stopped.completion_tokens) == ("interrupt", 0)
    assert (chat.turns, chat.used_tokens, chat.documents) == (1, used, [OTHER])
    chat.documents.clear()
    assert ask(chat, "Who?").text == ask(other, "Who?").text


def test_an_answer_that_cannot_be_added(session: Callable[..., Session], tmp_path: Path) -> None:
    """It goes on, and the chat says that it does so without the archive."""

    def is_long(question: str) -> bool:
        tried = session(max_tokens=80)
        tried.attach([DOCUMENT])
        return ask(tried, question).completion_tokens > 64

    long = next(
        question for question in ("How?", "Why?", "Where?", "Who?", "What?", "When?") if is_long(question)
    )
    path = tmp_path / "archive"
    chat = session(archive=str(path), max_tokens=80)
    chat.llm.retention = replace(chat.llm.retention, fold=64)
    chat.attach([DOCUMENT])
    events: list[Event | None] = []

    def show(event: Event | None) -> None:
        events.append(event)
        if isinstance(event, Text) and path.exists():
            os.truncate(path, 5)

    answer = chat.ask(long, show)
    assert answer.completion_tokens > 64
    assert [event for event in events if isinstance(event, Notice)] == [Notice(chat.archive.told)]
    assert answer.archive is chat.archive.where is None
    assert not path.exists()
