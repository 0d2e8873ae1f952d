"""What asks in a long message, through the C function: the first and the last of it, whatever the marks.

Tokens are words in one spelling and single characters in the other: every bound is of one or the other.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from headkv_local._core.pieces import Pieces
from headkv_local._core.question import question_of

LINE = "The harbour was quiet, and the cranes stood still in the fog of the morning. "
PARAGRAPH = LINE * 6
DOCUMENT = "\n\n".join([PARAGRAPH] * 4).strip()
ASK, TELL = "What is the code of the archive in Oslo?", "Name the code of the archive in Oslo."
POLITE = "Answer with the number only, without any explanation."
RULES = "Do not repeat what I have asked for, and add no word of thanks. " * 4
GREEK = "Ποιος είναι ο κωδικός του αρχείου στο Όσλο;"  # noqa: RUF001
CHINESE = "说出奥斯陆档案馆的密码。"


def words(text: str) -> list[str]:
    return re.findall(r"\n+| ?[^ \n\u4e00-\u9fff]+|[\u4e00-\u9fff]| +", text)


def syllables(text: str) -> list[str]:
    """Up to three characters each, line ends and blanks among them: no border of a token is one of a word."""
    return re.findall(r".{1,3}", text, re.DOTALL)


SPELLINGS = pytest.mark.parametrize(("spell", "n_last"), [(words, 128), (syllables, 256)])


def asking(spell: Callable[[str], list[str]], n_last: int, *messages: tuple[str, Any]) -> list[str]:
    """What asks with full weight. A message: its role, and its text or its parts, joined by a blank."""
    said = [(role, [text] if isinstance(text, str) else text) for role, text in messages]
    pieces = spell("".join(f"{role}\n{' '.join(texts)}\n" for role, texts in said) + "assistant\n")
    spelled = Pieces(range(len(pieces)), lambda token: pieces[token].encode())
    told = [{"role": role, "content": [{"text": text} for text in texts]} for role, texts in said]
    parts = question_of(spelled, spelled, told, n_last)
    assert all(a.stop <= b.start for a, b in pairwise(parts))
    return ["".join(pieces[part.start : part.stop]) for part in parts if part.weight == 1]


@SPELLINGS
@pytest.mark.parametrize(
    ("before", "wanted", "after"),
    [
        (f"{DOCUMENT}\n\n", f"{TELL}\n\n{POLITE}", ""),
        (f"{DOCUMENT}\n", f"<question>\n{TELL}\n</question>\n\n<format>\nOne number\n</format>", ""),
        (f"{DOCUMENT}\n\n", f'{TELL}\n\n```json\n{{"code": 0}}\n```', ""),
        (f"{DOCUMENT}\n\n", f"{CHINESE}\n\n只写数字。", ""),
        (f"{DOCUMENT}\n\n", f"{ASK}\n{POLITE}\nCan you do that?", ""),
        (f"{DOCUMENT}\n\n", f"{TELL}\n{POLITE}\nCan you do that?", ""),
        (f"{DOCUMENT}\n", f"1. {ASK}\n2. Name the street of the mill.\n3. Who owns the boat?", ""),
        (f"{DOCUMENT}\n\n", f"{ASK}\n\n{RULES}".strip(), ""),
        (f"{DOCUMENT}\n\n", f"{TELL}\n{POLITE}", "\n\nAnswer:"),
        (f"{DOCUMENT}\n\n", GREEK, ""),
        ("", f"### Instruction\n{TELL}", f"\n\n### Input\n{DOCUMENT}"),
        ("", f"<task>\n{TELL}\n</task>", f"\n\n<document>\n{DOCUMENT}\n</document>"),
        ("", f"Answer briefly.\n{TELL}", f"\n\n{DOCUMENT}"),
        ("", ASK, f" {DOCUMENT}"),
        ("", GREEK, f" {DOCUMENT}"),
        ("", f"{RULES}\nQuestion: {ASK}".strip(), f"\n\nReport:\n{DOCUMENT}"),
        ("", TELL, f'\n\n{DOCUMENT}\n"Are you coming?" she asked.\nHe nodded, and they walked home.'),
        ("", TELL, f"\n\n{DOCUMENT}\n\nBest regards, and see https://x.org/a?b=c for more"),
        ("Frequently asked: what is a harbour?\n\n" + DOCUMENT + "\n\n", TELL, ""),
        ("Summarize https://x.org/a?b=c\n\n" + DOCUMENT + "\n\n", TELL, ""),
    ],
)
def test_an_instruction_asks_at_either_end_whatever_stands_beside_it(
    spell: Callable[[str], list[str]], n_last: int, before: str, wanted: str, after: str
) -> None:
    found = asking(spell, n_last, ("user", before + wanted + after))
    assert any(wanted in text for text in found), found
    assert all(len(text) < len(wanted) + 300 for text in found)  # and little of the document


@SPELLINGS
def test_beside_an_end_with_a_question_mark_one_paragraph_of_the_other_asks(
    spell: Callable[[str], list[str]], n_last: int
) -> None:
    title, short = "A history of the harbours of the north", "It was written in the winter of that year."
    first, last = asking(spell, n_last, ("user", f"{title}\n\n{short}\n\n{DOCUMENT}\n\n{ASK}"))
    assert (title in first, ASK in last, short in first) == (True, True, False)
    first, last = asking(spell, n_last, ("user", f"{ASK}\n\n{DOCUMENT}\n\n{short}\n\n{title}"))
    assert (ASK in first, title in last, short in last) == (True, True, False)
    first, last = asking(spell, n_last, ("user", f"{title}\n\n{short}\n\n{DOCUMENT}\n\n{TELL}"))
    assert (short in first, TELL in last) == (True, True)
    rows = "\n".join(f"crane {i} lifts stone in the {i}th dock of the east" for i in range(30))
    (found,) = asking(spell, n_last, ("user", f"{ASK}\n\n{rows}"))
    assert ASK in found


@SPELLINGS
def test_parts_of_a_message_are_paragraphs(spell: Callable[[str], list[str]], n_last: int) -> None:
    for parts in ([TELL, DOCUMENT], [DOCUMENT, TELL], ["Read this.", DOCUMENT, f"{TELL} {POLITE}"]):
        found = asking(spell, n_last, ("user", parts))
        assert any(TELL in text and len(text) < len(TELL) + 80 for text in found), parts


@SPELLINGS
def test_a_question_mark_far_from_a_short_last_paragraph_is_not_its_own(
    spell: Callable[[str], list[str]], n_last: int
) -> None:
    (found,) = asking(
        spell, n_last, ("user", f'{DOCUMENT}\n"Are you coming?" she asked.\n{PARAGRAPH}\n\n{TELL}')
    )
    assert TELL in found
    assert len(found) < len(TELL) + 8


@SPELLINGS
def test_a_long_message_may_be_a_document_that_the_one_before_it_asks_about(
    spell: Callable[[str], list[str]], n_last: int
) -> None:
    for before in (
        [("system", f"{TELL} {POLITE}")],
        [("system", "Be brief."), ("user", f"I will send you a report. {TELL}"), ("assistant", "Send it.")],
    ):
        found = asking(spell, n_last, *before, ("user", DOCUMENT))
        assert any(TELL in text for text in found), before
    last = asking(spell, n_last, ("user", DOCUMENT), ("system", TELL))  # wherever it stands
    assert TELL in last[-1]
    found = asking(spell, n_last, ("system", "Be brief."), ("user", ASK))  # a short one is none
    assert [text.strip() for text in found] == [ASK]
    found = asking(spell, n_last, ("system", DOCUMENT), ("user", f"{DOCUMENT}\n\n{ASK}"))
    assert [text.strip() for text in found] == [ASK]


@SPELLINGS
def test_blanks_that_a_tokenizer_adds_hide_no_message(spell: Callable[[str], list[str]], n_last: int) -> None:
    """As those do that write a blank before each text, also after a control token."""
    message = f"It says <s> price </s> there. {ASK}"
    pieces = spell(f"[INST]  It says <s>  price </s>  there. {ASK}\n[/INST]")
    spelled = Pieces(range(len(pieces)), lambda token: pieces[token].encode())
    (part,) = question_of(spelled, spelled, [{"role": "user", "content": message}], n_last)
    text = "".join(pieces[part.start : part.stop])
    assert re.search(r"^\S{0,2} *It says", text)
    assert ASK in text


@SPELLINGS
@pytest.mark.parametrize(
    ("sentence", "is_one"),
    [
        *((f"Πού είναι{mark}", True) for mark in "?？؟՞፧;\u037e"),  # noqa: RUF001
        ("Here it is.", False),
        ("a b; c d.", False),
        ("See x.org/a?b=c for it.", False),
    ],
)
def test_the_first_sentence_of_a_long_line_asks_for_its_mark(
    spell: Callable[[str], list[str]], n_last: int, sentence: str, is_one: bool
) -> None:
    found = asking(spell, n_last, ("user", f"{sentence} {DOCUMENT}\n\n{TELL}"))
    assert [sentence[:6] in text for text in found] == ([True, False] if is_one else [False])
