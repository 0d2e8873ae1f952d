"""Chats that outlive their process: --session, /save and /load."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chat_driver import ENDLESS, TIMEOUT, Terminal, end, start, words

from headkv_local import ArgumentError, ContextFullError, Llama, Retention, SessionError, StateError
from headkv_local.chat import main
from headkv_local.chat.args import build_parser
from headkv_local.chat.config import parse_options
from headkv_local.chat.console import Console
from headkv_local.chat.documents import Document, compose
from headkv_local.chat.info import told
from headkv_local.chat.keeping import Keeper, saved_at
from headkv_local.chat.repl import Repl
from headkv_local.chat.saved import read_chat
from headkv_local.chat.session import Session, open_session
from headkv_local.chat.setting import change
from headkv_local.chat.switching import switch_model

DOCUMENT = Document("folder/document", "\nThe pilot knows the rocks. " * 12)
OTHER = Document("other", "The keeper lit the lamp. " * 12)
SHORT = ("-n", "8", "--temp", "0", "--budget", "16")

Kept = tuple[Session, Keeper]


@pytest.fixture
def chats(tiny_path: Path) -> Iterator[Callable[..., Kept]]:
    """Makes chats of the tiny model, or of the session that is given."""
    sessions: list[Session] = []

    def make(*argv: str, model: Path = tiny_path, **environment: str) -> Kept:
        options = parse_options(["-t", "1", "-m", str(model), *argv], build_parser(), environment)
        chat = None if options.session is None else saved_at(options.session)
        options = options if chat is None else options.completed(chat.settings, "a session")
        sessions.append(open_session(options, chat))
        keeper = Keeper(sessions[-1], Console())
        keeper.open(chat, options.system)
        return sessions[-1], keeper

    yield make
    for each in sessions:
        each.llm.close()


def ask(session: Session, question: str) -> tuple[Any, ...]:
    answer = session.ask(question, lambda _: None)
    return answer.text, answer.prompt_tokens, answer.read_tokens, answer.stats.archive_tokens


def holds(session: Session) -> tuple[Any, ...]:
    return (
        session.messages(session.answered),
        session.used_tokens,
        session.options.budget,
        session.llm.sampling,
    )


def test_goes_on_as_before(chats: Callable[..., Kept], tmp_path: Path) -> None:
    """Every later turn, and going back, with documents of several turns and one that waits."""
    path = str(tmp_path / "session")
    first, keeper = chats(*SHORT, "--temp", "0.8", "-c", "2048", "-sys", "Be brief.", "--session", path)
    for document, question in ((DOCUMENT, "Why?"), (OTHER, "Where?")):
        first.attach([document])
        ask(first, question)
    first.attach([DOCUMENT])
    keeper.leave()
    second, _ = chats("--session", path)
    assert holds(second) == holds(first)
    assert second.documents == first.documents == [DOCUMENT]
    assert ask(second, "Who?") == ask(first, "Who?")
    assert second.again(lambda _: None).text == first.again(lambda _: None).text
    for _ in range(2):
        for each in (first, second):
            each.undo()
    assert holds(second) == holds(first)
    assert second.used_tokens == second.answered[0].used
    assert [d.name for d in second.documents] == [d.name for d in first.documents]
    assert ask(second, "What?") == ask(first, "What?")


def test_the_settings_of_a_session_are_shown(
    chats: Callable[..., Kept], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(tmp_path / "session")
    session, keeper = chats(*SHORT, "--temp", "0.8", "-c", "2048", "--session", path)
    ask(session, "Why?")
    keeper.leave()
    assert main(["--show-config", "--session", path, "--temp", "0.5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"ctx = 2048  # the session {path}" in lines
    assert "temp = 0.5  # the command line" in lines
    assert main(["--show-config", "--session", str(tmp_path / "none" / "session")]) == 1
    assert "there is no folder" in capsys.readouterr().err
    assert main(["--show-config", "--session", str(tmp_path / "new")]) == 0


def test_scores_that_a_session_holds_are_told(
    tiny_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(tmp_path / "session")
    asked = [{"role": "user", "content": "Why?"}]
    retention = Retention(budget=16, scores=np.ones((2, 2)))
    with Llama(tiny_path, n_ctx=1024, n_threads=1, retention=retention) as llm:
        done: Any = llm.create_chat_completion(asked, max_tokens=8)
        llm.save_session(path, messages=[*asked, done["choices"][0]["message"]])
    assert main(["--show-config", "--session", path]) == 0
    assert f"# scores: numbers of the session {path}" in capsys.readouterr().out.splitlines()


def test_whether_it_is_saved_at_the_end_is_told(chats: Callable[..., Kept], tmp_path: Path) -> None:
    path = str(tmp_path / "session")
    session, keeper = chats(*SHORT)
    assert keeper.told() == ""
    ask(session, "Why?")
    keeper.save(path)
    assert keeper.told() == f"session: {path}, which only /save writes"
    assert chats("--session", path)[1].told() == f"session: {path}"


def test_what_waits_holds_for_a_chat_that_is_loaded(chats: Callable[..., Kept], tmp_path: Path) -> None:
    session, keeper = chats(*SHORT)
    session.attach([DOCUMENT])
    ask(session, "Why?")
    keeper.save(str(tmp_path / "session"))
    budget = session.stats().kept.sum() // session.stats().kept.size
    assert "after /clear" in change(session, "budget", "24")
    assert "budget: 16, 24 after /clear" in told(session)
    with pytest.raises(ArgumentError, match="less than the window"):
        change(session, "budget", "1KiB")  # which can never be, so it waits for nothing
    keeper.load()
    assert "budget: 24" in told(session)
    ask(session, "Who?")
    kept = session.stats().kept
    assert (budget, kept.sum() // kept.size) == (16, 24)


def test_a_context_that_nobody_asked_for_is_chosen_for_each_model(
    chats: Callable[..., Kept], tmp_path: Path, tiny: Callable[..., Path]
) -> None:
    longer, shorter, found = tiny(n_ctx_train=2048), tiny(arch="qwen2", n_ctx_train=512), {}
    for given in ((), ("-c", "auto"), ("-c", "0"), ("-c", "1024")):
        path = str(tmp_path / f"session{len(found)}")
        session, keeper = chats(*SHORT, *given, "--session", path, model=longer)
        ask(session, "Why?")
        keeper.leave()
        again, keeper = chats("--session", path, model=longer)
        found[given] = [again.llm.n_ctx()]
        switch_model(again, str(shorter), keeper)
        found[given].append(again.llm.n_ctx())
    asked = found.pop(("-c", "1024"))
    assert asked == [1024, 1024]
    assert set(map(tuple, found.values())) == {(2048, 512)}
    again, keeper = chats("--session", str(tmp_path / "session0"), model=longer, HEADKV_CHAT_CTX="768")
    before = again.llm.n_ctx()
    switch_model(again, str(shorter), keeper)
    assert (before, again.llm.n_ctx()) == (2048, 768)


def test_settings_that_are_not_given_are_as_they_were(chats: Callable[..., Kept], tmp_path: Path) -> None:
    path = str(tmp_path / "session")
    session, keeper = chats(*SHORT, "-c", "1024", "--window", "6", "--seed", "5", "--session", path)
    ask(session, "Why?")
    keeper.leave()
    again, keeper = chats("--session", path, "--temp", "0.5", "-sys", "Be brief.", "--archive", "off")
    assert (again.options.budget, again.options.window, again.options.max_tokens) == (16, 6, 8)
    assert (again.llm.n_ctx(), again.llm.sampling.temp, again.options.system) == (1024, 0.5, "Be brief.")
    keeper.save()
    last, _ = chats("--session", path, "--seed", "7")
    assert (last.llm.sampling.temp, last.options.system, last.options.archive) == (0.5, "Be brief.", "off")
    anew, _ = chats("--session", path, "-s", "-1")
    assert (last.llm._seed, again.llm._seed) == (7, session.llm._seed)
    assert anew.llm._seed != again.llm._seed


def test_another_system_message_is_told(
    chats: Callable[..., Kept], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("--session", str(tmp_path / "a"), *SHORT)
    session, keeper = chats(*given, "-sys", "Be short.")
    ask(session, "Why?")
    keeper.leave()
    anew = "There is another system message now. The chat is read anew with your next question."
    for system in ("Be short.", "Be long."):
        chats(*given, "-sys", system)
        assert (anew in words(capsys.readouterr().err)) is (system == "Be long.")
    with pytest.raises(ContextFullError, match="the system message has .* tokens"):
        chats(*given, "-sys", "Be long. " * 10_000)


def test_what_was_left_open_stays_open(chats: Callable[..., Kept], tmp_path: Path) -> None:
    """A session is of defaults, too, and these hold before nothing."""
    path = str(tmp_path / "session")
    session, keeper = chats(*SHORT, "--session", path)
    ask(session, "Why?")
    keeper.leave()
    names = ("fold", "draft", "observe", "window")
    given = {
        f"HEADKV_CHAT_{name.upper()}": value
        for name, value in zip(names, ("off", "0", "9", "6"), strict=True)
    }
    again, _ = chats("--session", path, **given)
    assert again.llm.retention is not None
    assert [getattr(again.llm.retention, name) for name in names] == [None, 0, 9, 6]


def test_a_session_has_its_model(
    chat: Callable[..., subprocess.CompletedProcess[str]], tiny: Callable[..., Path], tmp_path: Path
) -> None:
    """Before those of the environment and the configuration file; one on the command line holds."""
    own, other = str(tiny()), str(tiny(n_layer=3))
    (tmp_path / "chat.toml").write_text(f"model = {json.dumps(other)}\n")
    again = (*SHORT, "--session", "kept", "-p", "Where?", "--config", "chat.toml")
    assert chat("-m", own, *SHORT, "--session", "kept", "-p", "Why?").returncode == 0
    gone = {"HEADKV_CHAT_MODEL": str(tmp_path / "chat.toml")}
    assert [chat(*again, **env).returncode for env in ({}, gone)] == [0, 0]
    assert "of the model" in chat(*again, "-m", other).stderr


def test_a_session_of_python(chats: Callable[..., Kept], tiny_path: Path, tmp_path: Path) -> None:
    """And back: its messages are what create_chat_completion() takes."""
    path = tmp_path / "session"
    asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why? " * 30}]
    with Llama(tiny_path, n_ctx=1024, n_threads=1, retention=Retention(budget=16)) as llm:
        done: Any = llm.create_chat_completion(asked, max_tokens=8)
        llm.save_session(path, messages=[*asked, done["choices"][0]["message"]])
    session, keeper = chats("--session", str(path))
    assert (session.options.system, session.turns, session.used_tokens) == (
        "Be brief.",
        1,
        session.llm.n_tokens,
    )
    session.attach([DOCUMENT])
    _, prompt_tokens, read_tokens, _ = ask(session, "Where does he go?")
    assert prompt_tokens - read_tokens > 150
    keeper.leave()
    with Llama.open_session(path, n_threads=1) as llm:
        llm.create_chat_completion([*llm.session_messages, {"role": "user", "content": "Who?"}], max_tokens=1)
        assert llm.n_tokens > session.used_tokens > llm.cache_stats().prompt_tokens  # it was not read again


@pytest.mark.parametrize(
    "retention",
    [
        Retention(budget=32, draft=0, observe=16, fold=None, order="tokens"),
        Retention(budget=32, beta=2, kernel=9, fold=64, archive="memory", reselect=False, panel=100),
    ],
)
def test_a_session_of_python_keeps_what_it_kept(
    chats: Callable[..., Kept], tiny_path: Path, tmp_path: Path, retention: Retention
) -> None:
    """Also once the chat has saved it."""
    path = tmp_path / "session"
    asked = [{"role": "user", "content": "Why? " * 30}]
    with Llama(tiny_path, n_ctx=1024, n_threads=1, retention=retention) as llm:
        done: Any = llm.create_chat_completion(asked, max_tokens=8)
        llm.save_session(path, messages=[*asked, done["choices"][0]["message"]])
    for _ in range(2):
        session, keeper = chats("--session", str(path), "--archive", retention.archive or "off")
        assert session.llm.retention == retention
        ask(session, "Where?")
        keeper.leave()
    again, _ = chats("--session", str(path), "--fold", "128", "--archive", "off")
    assert again.llm.retention == retention.having(fold=128, archive=None, reselect=None)


DOC = {"type": "text", "text": "The pilot knows the rocks. " * 12, "document": True}
Q = {"type": "text", "text": "Why?"}


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ([DOC, Q], [""]),
        ([DOC, DOC, Q], ["", ""]),
        ([DOC | {"name": "a.txt"}, Q], ["a.txt"]),
        ([Q, DOC], [""]),
        ([DOC | {"name": "-"}, Q], ["-"]),
        ([{"type": "text", "text": "Be brief."}, Q], []),
    ],
)
def test_documents_of_python_stay_as_they_are(
    chats: Callable[..., Kept], tiny_path: Path, tmp_path: Path, content: Any, names: list[str]
) -> None:
    """Nothing is read again, the messages are saved as they were, and /undo gives the documents back."""
    path = tmp_path / "session"
    asked = {"role": "user", "content": content}
    with Llama(tiny_path, n_ctx=2048, n_threads=1, retention=Retention(budget=16)) as llm:
        done: Any = llm.create_chat_completion([asked], max_tokens=8)
        llm.save_session(path, messages=[asked, done["choices"][0]["message"]])
    session, keeper = chats("--session", str(path))
    read_tokens = ask(session, "Where?")[2]
    assert read_tokens < 100
    keeper.leave()
    assert read_chat(str(path)).turns[0].content == content
    session.undo()
    assert session.undo().question.splitlines()[-1] == "Why?"
    assert [(each.name, each.text) for each in session.documents] == [(name, DOC["text"]) for name in names]
    attached = {"": "A document without a name", "-": "Standard input", "a.txt": "a.txt"}
    assert [line for line in told(session) if line.startswith("attached: ")] == [
        f"attached: {attached[name]}" for name in names
    ]
    texts = [part["text"] for part in compose(session.documents, "Why?")[:-1]] if names else []
    assert texts == [("a.txt:\n\n" if name == "a.txt" else "") + DOC["text"] + "\n" for name in names]


def broken(path: Path, tiny: Callable[..., Path], what: str) -> None:
    """Makes a session into one that cannot be used."""
    data = path.read_bytes()
    if what == "damaged":
        path.write_bytes(data[:-3000] + bytes([data[-3000] ^ 1]) + data[-2999:])
    elif what == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif what == "no session":
        path.write_text("mine")
    elif what == "missing":
        path.unlink()
    elif what == "folder":
        path.unlink()
        path.mkdir()
    else:
        messages: list[dict[str, Any]] = [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b"},
        ]
        path.unlink()
        model = tiny(n_layer=3) if what == "other model" else tiny()
        change: dict[str, Callable[[], Any]] = {
            "no messages": messages.clear,
            "half a turn": messages.pop,
            "picture": lambda: messages[0].update(content=[{"type": "image_url"}]),
            "half a character": lambda: messages[0].update(content="\ud800"),
            "setting": lambda: messages[1].update(chat={"settings": {"temp": "hot"}}),
            "state": lambda: messages[1].update(chat={"documents": [1]}),
        }
        change.get(what, list)()
        with Llama(model, n_ctx=512, n_threads=1, flash_attn=True) as llm:
            llm.eval([1, 2, 3])
            llm.save_session(path, messages=messages)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("damaged", "checksum"),
        ("cut", "cut short"),
        ("no session", "does not begin as a session does"),
        ("missing", "No such file"),
        ("folder", "is not a file"),
        ("other model", "of the model"),
        ("no messages", "without messages"),
        ("half a turn", "not questions with an answer each"),
        ("picture", "holds no chat"),
        ("half a character", "holds no chat"),
        ("setting", "'hot' is not a number"),
        ("state", "holds no chat"),
    ],
)
def test_what_cannot_be_opened_leaves_the_chat(
    chats: Callable[..., Kept], tiny: Callable[..., Path], tmp_path: Path, what: str, said: str
) -> None:
    path = tmp_path / "session"
    (chat, keeper), (other, _) = chats(*SHORT), chats(*SHORT)
    for each in (chat, other):
        each.attach([DOCUMENT])
        ask(each, "Why?")
        each.attach([OTHER])
    keeper.save(str(path))
    broken(path, tiny, what)
    with pytest.raises(SessionError, match=said) as error:
        keeper.load()
    assert "\n" not in str(error.value)
    assert chat.documents == [OTHER]
    assert ask(chat, "And then?") == ask(other, "And then?")


def test_which_file_is_meant(chats: Callable[..., Kept], tmp_path: Path) -> None:
    """That of --session is saved before another one is loaded; what somebody else has written stays."""
    own, other = str(tmp_path / "own"), str(tmp_path / "other")
    session, keeper = chats(*SHORT, "--session", own)
    with pytest.raises(StateError, match="no question has been answered"):
        keeper.save()
    ask(session, "Why?")
    keeper.save(other)
    assert (keeper.path, os.path.exists(own)) == (own, False)
    ask(session, "Where?")
    keeper.load(other)
    assert (session.turns, keeper.path, len(read_chat(own).turns)) == (1, other, 2)
    ask(session, "Who?")
    os.replace(own, other)
    before = Path(other).read_bytes()
    with pytest.raises(SessionError, match="written by another process"):
        keeper.leave()
    assert Path(other).read_bytes() == before
    keeper.load()  # back to what the file says
    assert [turn.question for turn in session.answered] == ["Why?", "Where?"]
    session.clear()
    keeper.leave()
    assert Path(other).read_bytes() == before


def test_leaving_once_more_gives_up_the_same_chat_only(chats: Callable[..., Kept], tmp_path: Path) -> None:
    path = tmp_path / "session"
    session, keeper = chats(*SHORT, "--session", str(path))
    repl = Repl(session, Console(), keeper)
    ask(session, "Why?")
    path.write_bytes(b"somebody else's")
    assert not repl._left()
    ask(session, "Where?")
    assert not repl._left()
    repl._turn("/info", False)
    assert (repl._left(), repl._failed is None) == (True, False)
    keeper.save(str(tmp_path / "kept alone"), light=True)
    assert (repl._left(), repl._failed is None) == (True, False)  # which is not all of it
    keeper.save(str(tmp_path / "elsewhere"))
    assert (repl._left(), repl._failed is None) == (True, True)
    assert path.read_bytes() == b"somebody else's"


def test_a_file_that_has_gone_is_written_again(chats: Callable[..., Kept], tmp_path: Path) -> None:
    path = tmp_path / "session"
    session, keeper = chats(*SHORT, "--session", str(path))
    for question in ("Why?", "Where?"):
        ask(session, question)
        keeper.leave()
        assert read_chat(str(path)).turns[-1].question == question
        path.unlink()


def test_an_interrupt_does_not_divide_a_save(
    chats: Callable[..., Kept], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else what is in the file would be somebody else's, and the end of the chat not saved."""
    path = str(tmp_path / "kept")
    session, keeper = chats(*SHORT, "--session", path)
    ask(session, "Why?")
    write = session.llm.save_session

    def interrupted(*args: Any, **kwargs: Any) -> None:
        write(*args, **kwargs)
        signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(session.llm, "save_session", interrupted)
        with suppress(KeyboardInterrupt):
            keeper.save()
    ask(session, "Where?")
    keeper.leave()
    assert len(read_chat(path).turns) == 2


NO_LOGITS = "there are no logits of the compacted prompt's end, and no archive has the rest"


def test_light(chats: Callable[..., Kept], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    session, keeper = chats(*SHORT)
    session.attach([DOCUMENT])
    ask(session, "Why?")
    keeper.save(str(tmp_path / "whole"))
    keeper.save(str(tmp_path / "light"), light=True)
    assert keeper.path == str(tmp_path / "light")
    keeper.load()
    assert "It has no archive here" in capsys.readouterr().err
    assert (session.stats().archive_tokens, session.stats().compacted) == (0, True)
    assert session.again(lambda _: None).reread_reason == NO_LOGITS
    keeper.load(str(tmp_path / "whole"))
    assert session.again(lambda _: None).reread_reason is None
    assert "no archive" not in capsys.readouterr().err
    assert session.stats().archive_tokens > 0
    own, its_keeper = chats(*SHORT, "--session", str(tmp_path / "own"))
    ask(own, "Why?")
    with pytest.raises(StateError, match="own is saved whole at the end: give another file"):
        its_keeper.save(light=True)


@pytest.mark.parametrize("budget", ["full", "50%"])
def test_a_setting_that_waits_is_not_saved(chats: Callable[..., Kept], tmp_path: Path, budget: str) -> None:
    """Else it would hold in the next run, where nobody has cleared the chat, and cost its archive."""
    path = str(tmp_path / "session")
    session, keeper = chats(*SHORT, "--window", "6", "--session", path)
    session.attach([DOCUMENT])
    ask(session, "Why?")
    for name, value in (("budget", budget), ("window", "7"), ("temp", "0.5")):
        change(session, name, value)
    assert session.options.window == 7
    keeper.leave()
    again, _ = chats("--session", path)
    assert (again.options.budget, again.options.window, again.options.temp) == (16, 6, 0.5)
    assert again.stats().archive_tokens == session.stats().archive_tokens > 0


@pytest.mark.parametrize("without", [("--archive", "off"), ("--budget", "full"), ("--archive", "full-disk")])
def test_a_run_without_an_archive_leaves_that_of_the_file(
    chats: Callable[..., Kept], tmp_path: Path, without: tuple[str, str]
) -> None:
    path = str(tmp_path / "session")
    session, keeper = chats(*SHORT, "--session", path)
    session.attach([DOCUMENT])
    ask(session, "Why?")
    keeper.leave()
    whole = Path(path).read_bytes()
    if without[1] == "full-disk":
        without = ("--archive", str(tmp_path / "rows"))
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        poorer, keeper = chats("--session", path, *without)
    finally:
        if "rows" in without[1]:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert poorer.stats().archive_tokens == 0
    ask(poorer, "Where?")
    with pytest.raises(SessionError, match="the archive that this chat goes on without, and stays as it is"):
        keeper.leave()
    assert Path(path).read_bytes() == whole
    keeper.save(path)  # the user may
    ask(poorer, "Who?")
    keeper.leave()
    assert len(read_chat(path).turns) == 3


def test_one_shot(
    chat: Callable[..., subprocess.CompletedProcess[str]], tiny_path: Path, tmp_path: Path
) -> None:
    (tmp_path / "document").write_text(DOCUMENT.text)
    (tmp_path / "kept").symlink_to("folder/real")
    (tmp_path / "folder").mkdir()
    first = chat(str(tiny_path), *SHORT, "-f", "document", "-p", "Why?", "--session", "kept")
    assert first.returncode == 0
    assert first.stderr.splitlines()[-1].startswith("Saved in kept: 1 turn, ")
    second = chat("--session", "kept", "--json", stdin="Where?")
    told, *_, saved = second.stderr.splitlines()
    assert told.startswith("kept: 1 turn, ")
    assert saved.startswith("Saved in kept: 2 turns, ")
    answer = json.loads(second.stdout)
    assert answer["stats"]["read_tokens"] < 100 < answer["usage"]["prompt_tokens"]
    assert answer["usage"]["completion_tokens"] <= 8 + 3  # the rest of a character may follow
    (tmp_path / "other").write_text(OTHER.text)
    files = ("-f", "document", "-f", "other", "--json", "-p", "Who?")
    third, fourth = (chat("--session", "kept", *files) for _ in range(2))
    assert "\nIn the chat already, not read again: document.\n" in third.stderr
    assert "\nIn the chat already, not read again: document and 1 other.\n" in fourth.stderr
    used = [json.loads(each.stdout)["stats"]["read_tokens"] for each in (third, fourth)]
    assert used[1] < 100 < used[0]
    before = (tmp_path / "folder" / "real").read_bytes()
    poorer = chat("--session", "kept", "--archive", "off", "-p", "Why?")
    assert (poorer.returncode, bool(poorer.stdout)) == (1, True)
    assert "stays as it is: this chat is not saved" in poorer.stderr.splitlines()[-1]
    full = chat("--session", "kept", "-p", "why " * 10_000)
    assert full.returncode == 1
    assert (tmp_path / "kept").read_bytes() == before
    os.mkfifo(tmp_path / "pipe")
    piped = chat("pipe", "-p", "Why?")
    assert (piped.returncode, "is no GGUF model" in piped.stderr) == (1, True)
    reasons = {"no/folder": "there is no folder", "pipe": "is not a file", "document": "does not begin as a"}
    for path, said in reasons.items():
        refused = chat(str(tiny_path), "-p", "Why?", "--session", path)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert said in refused.stderr


def test_a_model_that_cannot_be_saved(chats: Callable[..., Kept], tiny: Callable[..., Path]) -> None:
    session, keeper = chats("--budget", "full", "-n", "8", model=tiny(arch="mamba"))
    ask(session, "Why?")
    with pytest.raises(StateError, match="cannot be saved: the model has recurrent layers only"):
        keeper.save("kept")


def test_full_disk(tiny_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "kept"
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))"
    code = f"import sys; {limit}; from headkv_local.chat import main; sys.exit(main())"
    ask = [str(tiny_path), "-p", "Why?", "-t", "1", *SHORT, "--session", str(path)]
    done = subprocess.run(
        [sys.executable, "-c", code, *ask], capture_output=True, timeout=TIMEOUT, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 1
    assert done.stdout
    assert done.stderr.decode().splitlines()[-1] == f"error: {path} cannot be written: File too large"
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("smollm2")
def test_stopped_answer_is_saved(environment: dict[str, str], tmp_path: Path) -> None:
    process = start(["-p", "Write a story.", *ENDLESS, "--session", "kept"], environment, tmp_path)
    assert process.stdout is not None
    assert process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    assert "Saved in kept: 1 turn" in end(process)
    assert process.returncode == 130
    process = start(["-p", "Another one.", "--session", "kept"], environment, tmp_path)
    assert process.stdout is not None
    assert process.stdout.read(1)
    process.stdout.close()  # as head does
    assert "Saved in kept: 2 turns" in end(process)
    assert process.returncode == 0


def test_in_a_terminal(terminal: Terminal, tiny_path: Path, tmp_path: Path) -> None:
    (tmp_path / "waits.txt").write_text("a")
    terminal.start(str(tiny_path), *SHORT, "--session", "kept")
    terminal.wait_prompt()
    terminal.line("hi")
    terminal.wait(r"tokens/s, read")
    terminal.wait_prompt()
    for line, said in (
        ("/load missing", "error: the session 'missing' cannot be opened"),
        ("/save --Light F", "error: /save takes --light, before the path, and no --Light"),
        ("/save F --light", "error: /save takes --light, before the path, and no --light"),
        ("/save my chat - part 2", r"Saved in my chat - part 2: 1 turn, \d+ tokens"),
        ("/save --light 'a name'", r"Saved in a name: 1 turn, \d+ tokens, [\d.]+ KiB, without the archive\."),
        ("/file waits.txt", "waits.txt: 1 tokens"),
        ("/save", r"Saved in kept: 1 turn, \d+ tokens"),
        ("/load", r"kept: 1 turn, \d+ tokens, saved [\d :-]+\. waits.txt is read with your next question\."),
    ):
        terminal.line(line)
        terminal.wait(said)
    terminal.type("/lo", "Tab", "a", "Tab", "Enter")
    terminal.wait(r"a name: 1 turn, \d+ tokens, saved 20")
    terminal.line("hi again")
    terminal.wait(r"tokens/s, read", count=2)
    terminal.wait_prompt()
    (tmp_path / "a name").write_bytes(b"")  # somebody else's now
    terminal.type("C-d")
    terminal.wait("error: a name has been written by another process since.* leaving once more gives it up")
    terminal.wait_prompt()
    terminal.line("/save kept")
    terminal.wait("Saved in kept: 2 turns")
    terminal.type("C-d")
    assert terminal.exit_code() == 0
    assert "a name stays as it is; the chat is saved in kept." in words(terminal.screen())
    assert len(read_chat(str(tmp_path / "kept")).turns) == 2
