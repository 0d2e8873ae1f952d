"""Which tokens of a prompt ask: found in its text, or told by the caller."""

from __future__ import annotations

import re
from typing import Any

import pytest

from headkv_local import ArgumentError
from headkv_local._core.native.plan import Part, observers, question
from headkv_local._core.pieces import Pieces
from headkv_local._core.question import checked, question_of

LINE = "The harbour was quiet, and the cranes stood still in the fog of the morning. "
DOCUMENT = "\n".join(LINE * 5 for _ in range(6))
ASK, TELL = "What is the code of the archive in Oslo?", "Name the code of the archive in Oslo."
N_LAST = 60


def spelled(text: str) -> list[bytes]:
    """Words as tokens, with the space before them, and line ends."""
    return [piece.encode() for piece in re.findall(r"\n+| ?[^ \n]+| ", text)]


def found(messages: list[dict[str, Any]], rendered: str) -> list[str]:
    """What asks with full weight. Words in angle brackets are control tokens, which spell nothing."""
    written = spelled(rendered)
    pieces = [b"" if piece.strip()[:1] == b"<" else piece for piece in written]
    of = [Pieces(range(len(written)), either.__getitem__) for either in (pieces, written)]
    parts = question_of(*of, messages, N_LAST)
    return [b"".join(written[part.start : part.stop]).decode().strip() for part in parts if part.weight == 1]


def chat(*messages: tuple[str, Any]) -> list[str]:
    """What asks in messages, of which each is a role and its content."""
    texts = [
        f"<{role}>\n" + (content if isinstance(content, str) else "\n".join(part["text"] for part in content))
        for role, content in messages
    ]
    return found(
        [{"role": role, "content": content} for role, content in messages],
        "\n".join(texts) + "\n<assistant>\n",
    )


def asked(content: Any) -> list[str]:
    text = content if isinstance(content, str) else "\n".join(part["text"] for part in content)
    return found([{"role": "user", "content": content}], f"<user> {text} <assistant>")


def part(text: str, document: bool = False) -> dict[str, Any]:
    return {"type": "text", "text": text, **({"document": True} if document else {})}


def test_a_short_message_asks_as_a_whole() -> None:
    assert asked(f"Please. {ASK} Thank you.") == [f"Please. {ASK} Thank you."]


def test_what_is_not_a_marked_document_asks() -> None:
    document = part(DOCUMENT, document=True)
    assert asked([document, part(TELL)]) == [TELL]
    assert asked([part(TELL), document]) == [TELL]
    assert asked([part("One?"), document, part("Two!"), part(LINE, document=True), part("Three.")]) == [
        "One?",
        "Two!",
        "Three.",
    ]


def test_a_long_part_that_is_no_marked_document_asks_where_a_long_message_would() -> None:
    """Text that was pasted beside a document, or an instruction with examples."""
    document = part(DOCUMENT, document=True)
    assert asked([part(f"{ASK}\n{DOCUMENT}"), document, part(TELL)]) == [ASK, TELL]
    assert asked([document, part(f"{DOCUMENT}\n\n{ASK}")]) == [ASK]


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (f"{DOCUMENT}\n\n{ASK}", [ASK]),
        (f"{DOCUMENT}\n\n{ASK}\nNo other words.\n\nThanks.", [f"{ASK}\nNo other words.\n\nThanks."]),
        (f"{DOCUMENT}\n\n1. {ASK}\n2. {ASK}\nAnswer both.", [f"1. {ASK}\n2. {ASK}\nAnswer both."]),
        (f"{DOCUMENT}\n\n{TELL}", [TELL]),
        (f"{ASK}\n\n{DOCUMENT}", [ASK]),
        (f"Read this first.\n{ASK}\n\n{DOCUMENT}\n\nYour answer:", [f"Read this first.\n{ASK}"]),
        (f"{ASK}\n\n{DOCUMENT}\n\n{ASK}", [ASK, ASK]),
        (f"Harbours of the north\n\n{DOCUMENT}\n\n{ASK}", [ASK]),
    ],
)
def test_lines_and_question_marks_tell_a_question_from_a_document(content: str, wanted: list[str]) -> None:
    assert [text.strip() for text in asked(content)] == wanted


def test_without_a_mark_both_ends_may_ask() -> None:
    assert asked(f"{TELL}\n\n{DOCUMENT}") == [TELL]  # the last line is long
    assert asked(f"{TELL}\n\n{DOCUMENT}\n\n{TELL}") == [TELL, TELL]


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (f"{DOCUMENT}\n\n{TELL}\nAnswer with the number only.", f"{TELL}\nAnswer with the number only."),
        (f"{DOCUMENT}\n\nAnswer with the number only.\n{TELL}", f"Answer with the number only.\n{TELL}"),
        (f"{DOCUMENT}\n\nTask: {TELL}\n\nAnswer:", f"Task: {TELL}\n\nAnswer:"),
        (f"{DOCUMENT}\n{TELL}\nAnswer:", f"{TELL}\nAnswer:"),
    ],
)
def test_without_a_mark_more_than_the_last_words_ask(content: str, wanted: str) -> None:
    assert asked(content) == [wanted]
    pieces = spelled(f"{content}\nassistant\n")  # where nobody knows which tokens are the template's
    asks = question(Pieces(range(len(pieces)), pieces.__getitem__), -1, len(pieces), N_LAST)[-1]
    assert b"".join(pieces[asks.start : asks.stop]).decode().startswith(wanted)


def test_few_rows_before_what_asks_do() -> None:
    rows = "\n".join(f"crane {i} lifts stone in the {i}th dock of the east" for i in range(30))
    last = f"{TELL} Give no other words, no reason, and no word of thanks."
    for found in asked(f"{rows}\n{last}"):
        assert len(found.split()) <= 45
    assert found.endswith(f"\n{last}")


def test_a_text_that_is_read_as_control_tokens_is_found() -> None:
    assert chat(("user", f"{TELL} It is after <filename> there.")) == [
        f"{TELL} It is after <filename> there."
    ]
    document = part(f"{DOCUMENT} usage: tool <filename> {LINE}", document=True)
    assert chat(("user", [document, part(ASK)])) == [ASK]
    assert chat(("user", [part(ASK), document])) == [ASK]


def test_a_marked_document_that_the_template_has_changed_does_not_hide_the_question() -> None:
    messages = [{"role": "user", "content": [part(DOCUMENT.upper(), document=True), part(ASK)]}]
    assert found(messages, f"<user> {DOCUMENT}\n{ASK}\n<assistant>") == [ASK]


def test_documents_alone_are_asked_about_by_what_came_before() -> None:
    document = [part(DOCUMENT, document=True)]
    assert chat(("system", TELL), ("user", document)) == [TELL]
    assert chat(("system", LINE), ("user", TELL), ("assistant", "Send it."), ("user", document)) == [TELL]
    assert chat(("developer", TELL), ("user", document), ("user", document)) == [TELL]
    assert chat(("assistant", TELL), ("user", document)) == []


def test_what_repeats_the_question_later_does_not_ask() -> None:
    n_words = len(spelled(f"<user>\n{ASK}"))
    for later in ("tool", "assistant"):
        messages = [{"role": "user", "content": ASK}, {"role": later, "content": f"{LINE} {ASK} {LINE}"}]
        pieces = spelled(f"<user>\n{ASK}\n<{later}>\n{messages[1]['content']}\n<assistant>\n")
        prompt = Pieces(range(len(pieces)), pieces.__getitem__)
        (asks,) = question_of(prompt, prompt, messages, N_LAST)
        assert asks.stop == n_words


def test_a_message_that_the_template_has_changed_is_not_found() -> None:
    assert found([{"role": "user", "content": "Why?"}], "<user> WHY? <assistant>") == []
    assert found([{"role": "assistant", "content": "Why?"}], "Why?") == []
    assert found([], "Why?") == []


def test_what_else_may_ask_weighs_little() -> None:
    pieces = spelled(f"{DOCUMENT}\n\n{ASK} {LINE}")
    prompt, n = Pieces(range(len(pieces)), pieces.__getitem__), len(pieces)
    before, asks = question(prompt, -1, n, N_LAST)
    assert (before.start, before.stop, asks.stop) == (n - N_LAST, asks.start, n)
    assert before.weight == 0.1**4
    assert b"".join(pieces[asks.start :]).decode() == f"{ASK} {LINE}"
    assert question(prompt, -1, n - 60, 20) == (Part(n - 80, n - 60),)  # in the middle of a line


def test_who_observes() -> None:
    first, again, weights = observers([Part(900, 950, 0.1**4), Part(950, 990)], 1000, 16)[:3]
    assert (first, again) == (900, ())
    assert weights.tolist() == pytest.approx([0.1**4] * 50 + [1] * 50)
    assert observers([Part(995, 1000)], 1000, 16)[:2] == (984, ())  # some models ask in the last tokens
    assert observers([Part(5, 8)], 1000, 16)[:2] == (984, (5, 6, 7))
    first, again, weights = observers([Part(5, 7), Part(600, 602), Part(950, 980)], 1000, 16)[:3]
    assert (first, again, len(weights)) == (950, (5, 6, 600, 601), 54)
    assert observers([Part(0, 20)], 20, 16)[:2] == (1, ())
    first, again = observers([Part(948, 960), Part(961, 980)], 1000, 16)[:2]  # parts joined by a line end
    assert (first, again) == (948, ())
    seen = observers([Part(5, 9, 0.1**4), Part(6, 8), Part(8, 11)], 1000, 16)  # a token that two parts share
    assert seen.again == (5, 6, 7, 8, 9, 10)
    assert seen.weights[-6:].tolist() == pytest.approx([0.1**4] * 4 + [1] * 2)
    weights = observers([Part(5, 7, 0.1**4), Part(7, 9), Part(990, 1000)], 1000, 10, 3).weights
    assert weights.tolist() == pytest.approx([1] * 10 + [0.1**4, 1, 1])


def test_a_question_that_there_is_no_room_for_is_left_out_from_its_beginning() -> None:
    first, again, weights, n_left_out, _ = observers([Part(5, 9)], 1000, 16, 3)
    assert (first, again, len(weights), n_left_out) == (984, (6, 7, 8), 19, 1)


def test_tokens_that_stay_do_not_observe() -> None:
    asking = [Part(900, 950, 0.1**4), Part(950, 990)]
    seen = observers(asking, 1000, 16, n_stay=960)
    assert (seen.first, seen.n_stay, seen.weights.tolist()) == (960, 960, [1.0] * 40)
    seen = observers(asking, 1000, 16, n_stay=300)
    assert (seen.first, seen.n_stay, len(seen.weights)) == (900, 300, 100)
    silent = [Part(5, 8, 1.0), Part(900, 1000, 0.0)]
    seen = observers(silent, 1000, 16, n_room=0, n_stay=950)  # nothing after them asks: all is read
    assert (seen.first, seen.n_stay, len(seen.weights)) == (900, 0, 100)


def test_parts_that_are_not_in_the_prompt() -> None:
    for parts in ([], [Part(-1, 3)], [Part(5, 5)], [Part(90, 101)], [Part(9, 12), Part(3, 5)]):
        with pytest.raises(ArgumentError):
            observers(parts, 100, 16)
    with pytest.raises(ArgumentError, match="-5 last tokens cannot observe"):
        observers([Part(0, 2)], 60, -5)


def test_a_prompt_of_one_token_observes() -> None:
    assert observers([Part(0, 1)], 1, 16)[:2] == (0, ())
    assert observers([Part(0, 1)], 1, 16).weights.tolist() == [1]


def test_bounds_are_those_of_python() -> None:
    assert checked(None, 100) == ()
    assert checked(slice(-20, None), 100) == (Part(80, 100),)
    assert checked([slice(90, 95), slice(None, 3)], 100) == (Part(0, 3), Part(90, 95))


@pytest.mark.parametrize(
    ("question", "text"),
    [
        (slice(90, 101), r"slice\(90, 101, None\), is not inside the prompt of 100 tokens"),
        (slice(-101, None), "not inside the prompt of 100 tokens"),
        (slice(200, 210), "not inside the prompt of 100 tokens"),
        (slice(5, 5), "the question is empty"),
        (slice(9, 5), "the question is empty"),
        ([], "the question is empty"),
        (slice(40, None), "the question of 60 tokens is longer than the document, the other 40 tokens"),
        ([slice(0, 30), slice(70, 100)], "longer than the document"),
        (slice(0, 10, 2), "must be a slice of the prompt's tokens"),
        (slice(0.5, 10), "whole numbers"),
        ([7], "must be a slice"),
    ],
)
def test_a_question_that_cannot_be_one(question: Any, text: str) -> None:
    with pytest.raises(ArgumentError, match=text) as caught:
        checked(question, 100)
    assert "\n" not in str(caught.value)
