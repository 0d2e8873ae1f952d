from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from gguf_factory import CHATML
from headkv_local.chat.commands import Commands
from headkv_local.chat.console import Console
from headkv_local.chat.display import show_answer
from headkv_local.chat.keeping import Keeper
from headkv_local.chat.options import Options
from headkv_local.chat.render import strip_control
from headkv_local.chat.session import Session, open_session
from headkv_local.chat.thinking import Thinking, parted

OPENED = CHATML.replace("assistant\n", "assistant\n<think>\n")


@pytest.mark.parametrize(
    ("prompt", "text", "thought", "said"),
    [
        ("", "<think>\nWell.\n</think>\n\nYes. </think>", "\nWell.\n", "Yes. </think>"),
        ("<|assistant|><think>\n", "Well.</think>\nYes.", "Well.", "Yes."),
        ("", "  [THINK]a[/THINK] b", "a", "b"),
        ("<think>\n\n</think>\n\n", "Yes.", "", "Yes."),
        ("", " Yes, <think> is a mark.", "", " Yes, <think> is a mark."),
        ("", "<thinly veiled", "", "<thinly veiled"),
        ("", "<think", "", "<think"),
        ("", "<think>it never ends </thin", "it never ends </thin", ""),
    ],
)
def test_parts_of_an_answer(prompt: str, text: str, thought: str, said: str) -> None:
    for n in (1, 2, 3, 5, len(text)):
        stream = Thinking(prompt)
        parts = [*(stream.feed(text[at : at + n]) for at in range(0, len(text), n)), stream.end()]
        assert ["".join(each) for each in zip(*parts, strict=True)] == [thought, said]
    if not prompt.endswith("</think>\n\n"):
        assert parted(text) == (thought, said)


@contextmanager
def thinking(model: Path, **given: Any) -> Iterator[tuple[Session, Callable[[], None], Commands]]:
    """A chat with a model whose template opens a block, a question that is shown, and commands."""
    options = Options(model=str(model), threads=1, ctx=512, temp=0.0, thinking="hide", **given)
    console = Console()
    with closing(open_session(options)) as session:

        def ask() -> None:
            show_answer(session, lambda show: session.ask("Which?", show), console, in_chat=True)

        yield session, ask, Commands(session, console, lambda _: None, Keeper(session, console))


@pytest.mark.parametrize(
    ("grammar", "shown", "thought"),
    [
        ('root ::= "yes"', "yes\n", "The last answer has no thinking in it."),
        ('root ::= "<think>a b c</think>yes"', "yes\n", "a b c"),
    ],
)
def test_an_answer_in_a_form_is_shown(
    tiny: Callable[..., Path], capsys: pytest.CaptureFixture[str], grammar: str, shown: str, thought: str
) -> None:
    with thinking(tiny(chat_template=OPENED), grammar=grammar, budget=None) as (_, ask, commands):
        ask()
        assert capsys.readouterr().out == shown
        commands.thinking("")
        assert capsys.readouterr().err.strip() == thought


def test_a_thought_that_was_cut_off_is_shown(
    tiny: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    with thinking(tiny(chat_template=OPENED), budget=None, max_tokens=8) as (session, ask, commands):
        ask()
        assert capsys.readouterr().out == ""
        commands.thinking("")
        (turn,) = session.answered
        assert turn.answer.strip()
        assert capsys.readouterr().err.split() == strip_control(turn.answer).split()
