"""What earlier turns asked and answered: found in the messages, whatever the template made of them."""

from __future__ import annotations

import re
from time import process_time
from typing import Any

import pytest

from headkv_local._core.earlier import earlier_of
from headkv_local._core.pieces import Pieces
from headkv_local._core.question import question_of

LINE = "The harbour was quiet, and the cranes stood still in the fog of the morning. "
DOCUMENT = "\n\n".join([LINE * 5] * 6).strip()
LETTER = f"Harbour Office\nOslo, 12 May\n\n{DOCUMENT}\n\nYours sincerely\nAnton Berg, Captain"
POLITE = " Please answer with as few words as you can, and do not add what nobody has asked you for."
ASK, OTHER, TELL = (
    f"Where is the code?{POLITE}",
    f"And who has the key?{POLITE}",
    "Name the code of the archive.",
)
N_LAST = 60


def words(text: str) -> list[bytes]:
    return [piece.encode() for piece in re.findall(r"\n+| ?[^ \n]+| ", text)]


def syllables(text: str) -> list[bytes]:
    return [piece.encode() for piece in re.findall(r".{1,3}", text, re.DOTALL)]


def told(*said: tuple[str, Any]) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in said]


def rendered(*said: tuple[str, Any]) -> str:
    """As a template may write it: roles in angle brackets are control tokens."""
    texts = [
        (role, content if isinstance(content, str) else "\n".join(part["text"] for part in content or ()))
        for role, content in said
    ]
    return "".join(f"<{role}>\n{text}\n" for role, text in texts) + "<assistant>\n"


def earlier(messages: list[dict[str, Any]], text: str, n_last: int = N_LAST, spell: Any = words) -> list[str]:
    written = spell(text)
    pieces = [b"" if piece.strip()[:1] == b"<" else piece for piece in written]
    of = [Pieces(range(len(written)), either.__getitem__) for either in (pieces, written)]
    parts = earlier_of(*of, messages, n_last, question_of(*of, messages, n_last))
    assert list(parts) == sorted(parts)
    return [b"".join(written[part.start : part.stop]).decode().strip() for part in parts]


def of(*said: tuple[str, Any]) -> list[str]:
    return earlier(told(*said), rendered(*said))


def part(text: str, document: bool = False) -> dict[str, Any]:
    return {"type": "text", "text": text, **({"document": True} if document else {})}


def answered(text: str) -> str:
    """With what the template puts around it."""
    return f"<assistant>\n{text}\n<user>"


MARKED = [part(DOCUMENT, document=True), part(ASK)]
ANSWER = ("assistant", "It is 4711.")


@pytest.mark.parametrize("first", [MARKED, MARKED[::-1], f"{DOCUMENT}\n\n{ASK}", f"{ASK}\n\n{DOCUMENT}"])
def test_questions_and_answers_are_and_documents_are_not(first: Any) -> None:
    turns = [("user", first), ANSWER]
    assert of(turns[0]) == []
    for last in (OTHER, [part(DOCUMENT, document=True), part(OTHER)], f"{DOCUMENT}\n\n{OTHER}"):
        assert of(*turns, ("user", last)) == [ASK, answered("It is 4711.")]
    more = [("user", OTHER), ANSWER, ("user", TELL), ANSWER, ("user", ASK)]
    found = [ASK, answered("It is 4711."), OTHER, answered("It is 4711."), TELL, answered("It is 4711.")]
    assert of(*turns, *more) == found


@pytest.mark.parametrize("first", [LETTER, f"{LETTER}\n\nSummarize this letter.", f"{LETTER}\n\n{ASK}"])
def test_of_a_document_without_marks_nothing_is_but_its_question(first: str) -> None:
    assert of(("user", first), ANSWER, ("user", OTHER)) == [
        *([ASK] if ASK in first else []),
        answered("It is 4711."),
    ]


def test_what_may_be_about_something_itself() -> None:
    note = (
        "My sister works as a plumber in Lund, and her boat lies at the second quay, beside the yellow crane."
    )
    story = LINE * 20
    found = of(("user", MARKED), ANSWER, ("user", note), ("assistant", story), ("user", OTHER))
    assert found == [ASK, answered("It is 4711.")]


def test_where_no_message_holds_a_document_nothing_else_can_be_lost() -> None:
    said = [("system", LINE), ("user", ASK), ANSWER, ("user", OTHER)]
    assert of(*said) == []
    with_tool = [("user", ASK), ("assistant", None), ("tool", LINE), ANSWER, ("user", OTHER)]
    assert of(*with_tool) == [ASK, "<assistant>\n\n<tool>", answered("It is 4711.")]


@pytest.mark.parametrize("last", ["Are you sure?", "Repeat your last answer word by word."])
def test_a_very_short_question_may_be_about_the_answer_before_it(last: str) -> None:
    turns = [("user", MARKED), ANSWER]
    assert of(*turns, ("user", last)) == []
    assert of(*turns, ("user", last), ANSWER, ("user", OTHER))[0] == ASK


def test_what_asks_now_is_not() -> None:
    document = [part(DOCUMENT, document=True)]
    assert of(("user", TELL), ("assistant", "Send it."), ("user", document)) == []
    assert of(("system", TELL), ("assistant", LINE), ("user", document)) == []
    assert of(("user", MARKED), ("assistant", "It is")) == []  # an answer that has been begun


def test_examples_before_a_document_are() -> None:
    said = [("user", "2 + 2?"), ("assistant", "4"), ("user", MARKED)]
    assert of(*said) == ["2 + 2?", answered("4")]


@pytest.mark.parametrize("spell", [words, syllables])
@pytest.mark.parametrize("gone", ["", "It is 4711."])
def test_answers_that_the_template_shortens_or_leaves_out(gone: str, spell: Any) -> None:
    """A part of an answer, "No.", stands in the document too."""
    text = f"{DOCUMENT}\n\nShe said: No. Then they left.\n\n{DOCUMENT}"
    said = [
        ("user", [part(text, document=True), part(ASK)]),
        ("assistant", f"<think>No.</think>{gone}" if gone else "No."),
        ("user", TELL),
        ("assistant", "No."),
        ("user", OTHER),
    ]
    messages = told(*said)
    said[1], said[3] = ("assistant", gone), ("assistant", "")
    found = "\n".join(earlier(messages, rendered(*said), 2 * N_LAST, spell))
    assert (ASK in found, gone in found, TELL in found) == (True, True, True)
    assert "She said" not in found
    assert OTHER not in found


def test_a_message_that_is_not_found_leaves_what_is_around_it_out() -> None:
    said = [("user", MARKED), ANSWER, ("user", TELL), ANSWER, ("user", OTHER)]
    text = rendered(*said).replace(TELL, TELL.upper())
    assert earlier(told(*said), text) == [ASK]


def test_a_long_conversation_takes_no_longer_than_its_length() -> None:
    def seconds(n: int) -> float:
        said = [("user", MARKED), *[turn for i in range(n) for turn in (ANSWER, ("user", f"{LINE * 6}{i}?"))]]
        said += [ANSWER, ("user", OTHER)]
        messages, text = told(*said), rendered(*said)
        started = process_time()
        assert len(earlier(messages, text)) >= n
        return process_time() - started

    seconds(4)
    assert seconds(160) < 12 * max(seconds(40), 0.01)  # 4 times as long
