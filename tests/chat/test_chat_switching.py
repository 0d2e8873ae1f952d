"""/model: the chat goes on with another model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from headkv_local import HeadKVError, ModelError, StateError
from headkv_local.chat import setting
from headkv_local.chat.console import Console
from headkv_local.chat.documents import Document
from headkv_local.chat.keeping import Keeper
from headkv_local.chat.options import Options
from headkv_local.chat.saved import read_chat
from headkv_local.chat.session import Session, open_session
from headkv_local.chat.switching import switch_model
from helpers import needed

DOCUMENT = Document("a.txt", "some words " * 60)


@pytest.fixture
def session(tiny_path: Path, tmp_path: Path) -> Iterator[Session]:
    file = str(tmp_path / "session")
    options = Options(model=str(tiny_path), budget=16, threads=1, max_tokens=8, temp=0.0, session=file)
    session = open_session(options)
    session.attach([DOCUMENT])
    session.ask("Why?", lambda _: None)
    yield session
    session.close()


def test_the_other_model_reads_it_anew(session: Session, tiny: Callable[..., Path], tmp_path: Path) -> None:
    other, keeper = tiny(arch="qwen2"), Keeper(session, Console())
    turns, before = session.answered, session.llm
    session.attach([Document("b.txt", "more")])
    notes = switch_model(session, str(other), keeper)
    assert notes[0].endswith("The chat of 1 turn is read anew with your next question.")
    assert (session.llm.file_name, session.options.model) == (other.name, str(other))
    assert [turn.answer for turn in session.answered] == [turn.answer for turn in turns]
    assert [document.name for document in session.documents] == ["b.txt"]
    assert 100 < session.used_tokens < session.llm.n_ctx()
    assert len(read_chat(str(tmp_path / "session")).turns) == 1  # saved, as --session asks for
    with pytest.raises(HeadKVError):
        before.tokenize(b"closed")
    keeper.leave()  # nothing is new, and there is nothing that could be saved
    session.options = session.options.having({"temp": 0.5}, "/set")
    assert not keeper.keep()  # what is set is not a reason either
    with pytest.raises(StateError, match="the model has not read this chat yet"):
        keeper.save()
    answer = session.ask("And then?", lambda _: None)
    assert answer.read_tokens == answer.prompt_tokens > 100
    assert session.archive.where is not None
    assert answer.stats.archive_tokens == answer.prompt_tokens
    keeper.leave()
    assert read_chat(str(tmp_path / "session")).settings["model"] == str(other)


def test_a_system_message_counts_in_the_other_model_too(session: Session, tiny: Callable[..., Path]) -> None:
    session.instruct("why " * 40, "/system")
    switch_model(session, str(tiny(arch="qwen2")), Keeper(session, Console()))
    with_it, its_own = session.used_tokens, session.system_tokens
    session.instruct(None, "/system")
    assert session.used_tokens == with_it - its_own > 100


def test_what_cannot_be_switched_to(session: Session, tiny: Callable[..., Path], tmp_path: Path) -> None:
    keeper, (turns, llm) = Keeper(session, Console()), (session.answered, session.llm)
    (tmp_path / "text").write_text("no model")
    (tmp_path / "cut.gguf").write_bytes(tiny().read_bytes()[:5000])
    keeper.save(str(tmp_path / "saved"))
    for path, reason in {
        "text": "is no GGUF model; a document is given with /file",
        "": "is no GGUF model; a document is given with /file",
        "saved": "is no GGUF model; /load goes on with a session",
        "missing": "there is no model file",
        "cut.gguf": "Failed to load model",
    }.items():
        with pytest.raises(ModelError, match=reason):
            switch_model(session, str(tmp_path / path), keeper)
    with pytest.raises(HeadKVError, match="its context has room for 256: the chat goes on with"):
        switch_model(session, str(tiny(n_ctx_train=128)), keeper)
    assert (session.answered, session.llm, session.options.model) == (turns, llm, str(tiny()))
    assert session.ask("And then?", lambda _: None).read_tokens < 50


def test_a_file_that_is_named_goes_from_one_to_the_other(
    tiny_path: Path,
    tiny: Callable[..., Path],
    tmp_path: Path,
    container: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both have contexts for which only an archive in a file leaves room."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    container((needed(tiny_path, "rows") + needed(tiny_path, "memory")) // 2)
    rows, cut = tmp_path / "rows", tmp_path / "cut.gguf"
    cut.write_bytes(tiny_path.read_bytes()[:5000])
    options = Options(
        model=str(tiny_path), budget=16, threads=1, max_tokens=8, temp=0.0, ctx=0, archive=str(rows)
    )
    with closing(open_session(options)) as chat:
        keeper = Keeper(chat, Console())
        chat.attach([DOCUMENT])
        chat.ask("Why?", lambda _: None)
        with pytest.raises(ModelError):
            switch_model(chat, str(cut), keeper)
        answer = chat.ask("And?", lambda _: None)
        assert (answer.archive, answer.stats.archive_tokens) == (str(rows), answer.prompt_tokens)
        switch_model(chat, str(tiny(arch="qwen2")), keeper)
        answer = chat.ask("And then?", lambda _: None)
        assert (answer.archive, answer.stats.archive_tokens) == (str(rows), answer.prompt_tokens)
        assert rows.exists()
        assert not list((tmp_path / "cache").rglob("archive-*"))
    assert not rows.exists()


def test_settings_while_it_runs(session: Session) -> None:
    assert setting.change(session, "temp", "0.7") == "temp: 0.7 (/set)"
    assert session.llm.sampling.temp == 0.7
    assert setting.change(session, "temp", "default") == "temp: 0.6 (default)"
    assert session.llm.scores_from is None
    assert setting.told(session, "window") == "window: 8 (default)"
    assert setting.change(session, "window", "4") == (
        "window: 4 (/set), after /clear (this chat's prompt is compacted already)"
    )
    for name, value in (
        ("budget", "3"),
        ("top-p", "2"),
        ("stream", "perhaps"),
        ("wat", "1"),
        ("markdown", "on"),
    ):
        before = session.options
        with pytest.raises(HeadKVError):
            setting.change(session, name, value)
        assert session.options is before
    retention = session.llm.retention
    assert retention is not None
    assert (retention.budget, retention.window) == (16, 8)
    session.clear()
    retention = session.llm.retention
    assert retention is not None
    assert (retention.budget, retention.window) == (16, 4)
    assert [line.split(":")[0] for line in setting.listed(session)] == list(setting.NAMES)
