"""What asks in a long message, through the C function: the first and the last of it, whatever the marks.

Tokens are words in one spelling and single characters in the other: every bound is of one or the other.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise
from time import process_time
from typing import Any

import pytest

from headkv_local._core.native.plan import question
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
        ("Is it there? It is.", True),
        *(
            (f"Here {c} is it.", False)
            for c in (
                *("open(path)?;", "a?.size", "(?:a|b)", "a ??= b", "<?xml v?>", "name?: string", "a ?: b"),
                *("x ? y : z", 'x ? "y" : 0', "a ?? b", "a ?? []", "id = ?", "(?, ?)", "| ? |", "b? = 0"),
            )
        ),
        *(
            (f"Why so{mark}", True)
            for mark in (
                *("?; So.", "?: So.", "?! So.", "?? So.", "?) So.", "?| So.", "?/Where? So.", "**?** So."),
                *(
                    " ? So : so.",
                    " ?\nso.",
                    " ?? So.",
                    "? so.",
                    "? so : so.",
                    "`?",
                    "%?",
                    '"? 1.',
                    "? Yes: a.",
                ),
            )
        ),
    ],
)
def test_the_first_sentence_of_a_long_line_asks_for_its_mark(
    spell: Callable[[str], list[str]], n_last: int, sentence: str, is_one: bool
) -> None:
    found = asking(spell, n_last, ("user", f"{sentence} {DOCUMENT}\n\n{TELL}"))
    assert [sentence[:6] in text for text in found] == ([True, False] if is_one else [False])


HEADING, TASK = "Log of the harbour of the north", f"Read the report and find the archive. {RULES}".strip()
MANY = "\n".join(f"{i}. What is the code of the archive in the town number {i}?" for i in range(1, 11))


def weighing(spell: Callable[[str], list[str]], n_last: int, text: str, *messages: tuple[str, Any]) -> float:
    """The least weight of the tokens that spell this text, which stands in the messages once."""
    told = [{"role": role, "content": content} for role, content in messages]
    said = [piece for role, content in messages for piece in (*spell(f"{role}\n"), *spell(content), "\n")]
    pieces = [*said, *spell("assistant\n")]
    spelled = Pieces(range(len(pieces)), lambda token: pieces[token].encode())
    weights = [0.0] * len(pieces)
    for part in question_of(spelled, spelled, told, n_last):
        weights[part.start : part.stop] = [part.weight] * part.n
    start = spelled.text.index(text.encode())
    first, stop = spelled.tokens_of(start, start + len(text.encode()))
    return min(weights[first:stop])


@SPELLINGS
@pytest.mark.parametrize("text", ["Summarize.", "Name the captain.", TASK, "说出船名。"])
@pytest.mark.parametrize("before", [f"{HEADING}\n\n", ""])
def test_a_heading_takes_no_weight_from_an_instruction(
    spell: Callable[[str], list[str]], n_last: int, before: str, text: str
) -> None:
    """Of few tokens, or of many, without a question mark."""
    assert weighing(spell, n_last, text[-12:], ("user", f"{before}{DOCUMENT}\n\n{text}")) >= 0.5**4


@SPELLINGS
@pytest.mark.parametrize(
    ("text", "of_others"),
    [("Summarize.", 0.1**4), ("Answer:", 0.5**4), ("答：", 0.5**4)],  # noqa: RUF001
)
def test_a_colon_tells_a_cue_from_an_instruction(
    spell: Callable[[str], list[str]], n_last: int, text: str, of_others: float
) -> None:
    said = ("user", f"{HEADING}\n\n{DOCUMENT[:-40]} It rained until they left.\n\n{text}")
    assert weighing(spell, n_last, text, said) == 1
    assert weighing(spell, n_last, "until they left.", said) == pytest.approx(of_others)


@SPELLINGS
def test_a_short_closing_line_does_not_ask_alone(spell: Callable[[str], list[str]], n_last: int) -> None:
    text = f"{DOCUMENT}\n\n{TASK}\n\nGive the answer as a table in Markdown:"
    assert weighing(spell, n_last, TASK[-40:], ("user", text)) == 0.5**4
    assert weighing(spell, n_last, text[-20:], ("user", text)) == 1
    marked = f"Is coffee healthy?\n\n{DOCUMENT}\n\n{TELL}\n\nAnswer as a list with one town per line."
    assert weighing(spell, n_last, TELL, ("user", marked)) == 0.5**4


@SPELLINGS
@pytest.mark.parametrize("after", ["{rules}", "## Task\n{tell}\n{list}", "{rules}\n\n{rules}"])
def test_an_instruction_before_long_rules_asks(
    spell: Callable[[str], list[str]], n_last: int, after: str
) -> None:
    """Without a mark, and further from the end than the last tokens: what is short there may be it."""
    task = f"{TELL}\n\n" if "{tell}" not in after else ""
    rules = f"{PARAGRAPH} {LINE * (n_last // 20)}"
    items = "\n".join(f"- Rule {n}: {LINE}" for n in range(n_last // 8))
    text = f"The harbour of Oslo\n\n{DOCUMENT}\n\n{task}" + after.format(rules=rules, tell=TELL, list=items)
    assert weighing(spell, n_last, TELL, ("user", text)) == 0.5**4
    assert weighing(spell, n_last, PARAGRAPH[-60:], ("user", text.replace(rules, ""))) < 1


@SPELLINGS
@pytest.mark.parametrize("feed", ["\n", "\r\n", "\r", "\u0085", "\u2028", "\u2029"])
def test_lines_end_in_many_ways(spell: Callable[[str], list[str]], n_last: int, feed: str) -> None:
    lines = [*[PARAGRAPH] * 4, TELL]
    (found,) = asking(spell, n_last, ("user", feed.join(lines)))
    assert TELL in found
    assert len(found) < len(TELL) + 30
    for apart in (3, 30):
        (found,) = asking(spell, n_last, ("user", (feed * apart).join(lines)))
        assert TELL in found
        assert len(found.strip()) < len(TELL) + 3


@SPELLINGS
def test_an_instruction_at_the_beginning_of_the_only_line_asks(
    spell: Callable[[str], list[str]], n_last: int
) -> None:
    for text in (f"{TELL[:60]} {PARAGRAPH * 4}", f'{{"task": "{TELL}", "text": "{PARAGRAPH * 4}"}}'):
        assert weighing(spell, n_last, TELL[:20], ("user", text)) == 0.5**4


@SPELLINGS
@pytest.mark.parametrize("order", ["{document}\n\n{many}", "{many}\n\n{document}"])
def test_all_questions_of_a_list_ask(spell: Callable[[str], list[str]], n_last: int, order: str) -> None:
    text = order.format(document=DOCUMENT, many=MANY)
    for i in range(1, 11):
        assert weighing(spell, n_last, f"town number {i}?", ("user", text)) == 1, i
    assert weighing(spell, n_last, LINE * 3, ("user", text)) < 1e-3


@SPELLINGS
def test_several_messages_before_an_answer_are_one_question(
    spell: Callable[[str], list[str]], n_last: int
) -> None:
    said = [("user", DOCUMENT), ("user", ASK), ("user", "Answer in German please.")]
    found = asking(spell, n_last, *said)
    assert (ASK in "".join(found), "German" in "".join(found)) == (True, True)
    assert len("".join(found)) < len(ASK) + 60


@SPELLINGS
def test_a_system_message_asks_about_every_document(spell: Callable[[str], list[str]], n_last: int) -> None:
    rules = f"{RULES}{RULES}{TELL} {RULES}{RULES}".strip()
    for before in (
        [],
        [("user", "Hi."), ("assistant", "Hello.")],
        [("user", DOCUMENT), ("assistant", "No.")],
    ):
        for system in (TELL, rules):
            found = asking(spell, n_last, ("system", system), *before, ("user", DOCUMENT))
            assert system in "".join(found), (system, before)


@SPELLINGS
def test_a_short_part_asks_wherever_it_stands(spell: Callable[[str], list[str]], n_last: int) -> None:
    found = asking(spell, n_last, ("user", [DOCUMENT, TELL, DOCUMENT]))
    assert [TELL in text and len(text) < len(TELL) + 6 for text in found] == [True]
    found = asking(spell, n_last, ("user", [f"{DOCUMENT}\n\n{ASK}", "Thank you."]))
    assert (ASK in "".join(found), "Thank you." in "".join(found)) == (True, True)


@SPELLINGS
def test_a_long_part_beside_a_marked_document_asks_as_a_whole(
    spell: Callable[[str], list[str]], n_last: int
) -> None:
    content = [{"text": DOCUMENT, "document": True}, {"text": f"{RULES}{MANY}"}]
    pieces = spell(f"user\n{DOCUMENT}\n{RULES}{MANY}\nassistant\n")
    spelled = Pieces(range(len(pieces)), lambda token: pieces[token].encode())
    (part,) = question_of(spelled, spelled, [{"role": "user", "content": content}], n_last)
    assert part.n > n_last
    found = "".join(pieces[part.start : part.stop])
    assert f"{RULES}{MANY}" in found
    assert len(found) < len(f"{RULES}{MANY}") + 6


@pytest.mark.parametrize("text", ["a", "\u3000说出船名。", f"{TELL}\u00a0", "art"])
def test_a_message_is_found_by_its_words(text: str) -> None:
    """Not in a word of the template, and whatever blanks that has taken away."""
    pieces = syllables(f"[start]user\n{text.strip()}\n[start]assistant\n")
    spelled = Pieces(range(len(pieces)), lambda token: pieces[token].encode())
    (part,) = question_of(spelled, spelled, [{"role": "user", "content": text}], 128)
    assert text.strip()[0] in "".join(pieces[part.start : part.stop])
    assert part.stop <= len(syllables(f"[start]user\n{text.strip()}")) + 1


@SPELLINGS
def test_a_greeting_does_not_silence_a_long_part(spell: Callable[[str], list[str]], n_last: int) -> None:
    long = f"{DOCUMENT}\n\n{TASK}"
    for said in ([("user", "Hi there."), ("user", long)], [("user", long), ("user", "Thanks!")]):
        assert weighing(spell, n_last, TASK[-40:], *said) == 0.5**4
    several = f"{DOCUMENT}\n\n{MANY}"
    for i in range(1, 11):
        assert weighing(spell, n_last, f"number {i}?", ("user", "Hi there."), ("user", several)) == 1


def test_a_message_that_is_no_text_is_not_found() -> None:
    spelled = Pieces(range(4), lambda token: b"[start]")
    assert question_of(spelled, spelled, [{"role": "user", "content": "\ud83d"}], 128) == ()


@SPELLINGS
@pytest.mark.parametrize(
    "line",
    [
        "{i}. Where is the mill of the town? It lies at the river, beyond the last houses.",
        "Anna: are you coming? I am already at the harbour, and it rains.",
        "  total = a > b ? c * {i} : d;",
    ],
)
def test_lines_that_hold_a_question_mark_are_no_list(
    spell: Callable[[str], list[str]], n_last: int, line: str
) -> None:
    rows = "\n".join(line.format(i=i) for i in range(60))
    for text in (f"{rows}\n\n{ASK}", f"{ASK}\n\n{rows}"):
        assert weighing(spell, n_last, ASK, ("user", text)) == 1
        asks = "".join(asking(spell, n_last, ("user", text)))
        assert len(asks) < len(ASK) + 600


@SPELLINGS
@pytest.mark.parametrize("last", ["</text>", "```", "---"])
def test_what_only_closes_the_text_is_no_instruction(
    spell: Callable[[str], list[str]], n_last: int, last: str
) -> None:
    said = ("user", f"{HEADING}\n\n{DOCUMENT}\n\n{TASK}\n\n{last}")
    assert weighing(spell, n_last, TASK[-40:], said) == 0.5**4


@SPELLINGS
def test_an_emphasized_cue_is_one(spell: Callable[[str], list[str]], n_last: int) -> None:
    said = ("user", f"{HEADING}\n\n{DOCUMENT}\n\n{TASK}\n\n**Answer:**")
    assert weighing(spell, n_last, TASK[-40:], said) == 0.5**4


@SPELLINGS
def test_beside_a_question_lines_at_the_other_end_ask_as_paragraphs_do(
    spell: Callable[[str], list[str]], n_last: int
) -> None:
    for border in ("\n", "\n\n"):
        said = ("user", f"Is coffee healthy?\n\n{DOCUMENT}{border}Answer as a list\nwith towns alone")
        assert weighing(spell, n_last, "Answer as a list", said) >= 0.5**4, border


def test_parts_that_a_template_joins_with_nothing() -> None:
    """The last copy of a question is the one that asks, though a word goes on before it."""
    turns = [[f"{DOCUMENT}", TELL], [f"{PARAGRAPH * 4}Total | 17", TELL]]
    texts = ["".join(part.strip() for part in parts) for parts in turns]
    pieces = syllables(f"[start]user\n{texts[0]}[end]") + syllables("[start]model\nNo.[end]")
    pieces += (last := syllables(f"[start]user\n{texts[1]}"))
    pieces += syllables("[end]\n[start]model\n")
    spelled = Pieces(range(len(pieces)), lambda token: pieces[token].encode())
    said = [{"role": "user", "content": [{"text": part} for part in parts]} for parts in turns]
    parts = question_of(spelled, spelled, [said[0], {"role": "assistant", "content": "No."}, said[1]], 256)
    asks = parts[-1]
    assert TELL in "".join(pieces[asks.start : asks.stop])
    assert asks.start > len(pieces) - len(last) // 2


def test_a_question_far_from_both_ends_asks() -> None:
    form = "Use the following format:\n\nThought: what to do\nAnswer: the answer\n\nBegin!\n\n"
    json = f'{{"text": "%s", "question": "{ASK}", "schema": "{PARAGRAPH * 4}"}}'
    for text in (
        f"%s\n\n{ASK}\n\n{DOCUMENT}",  # between two documents, or before a long disclaimer
        f"%s\n{form}Question: {ASK}\nObservation: {DOCUMENT}\nAnswer:",
        json,
    ):
        alone = weighing(words, 128, ASK, ("user", text % (PARAGRAPH * 4)))
        assert alone == (0.5**4 if text == json else 1), text
        several = text % f"{PARAGRAPH * 2}Were they late? {PARAGRAPH * 2}"
        assert weighing(words, 128, ASK, ("user", several)) == 0.5**4
    for n in range(0, 60, 3):  # where the last 128 tokens begin, in it or beside it
        text = f"{PARAGRAPH * 4}\n\n{ASK}\n\n{LINE * 7}{'so ' * n}"
        assert weighing(words, 128, ASK, ("user", text)) == 1, n
        text = f"{PARAGRAPH * 2}Were they late? {text}"
        assert weighing(words, 128, ASK, ("user", text)) >= 0.5**4, n
    code = f"{PARAGRAPH * 4}\nsay('Go on? [y]')\n{PARAGRAPH * 4}The end of it."
    assert weighing(words, 128, "say('Go on", ("user", code)) == 0.5**4
    assert weighing(words, 128, "The end of it.", ("user", code)) == 1
    many = "\n\n".join([*[ASK] * 4, *[PARAGRAPH] * 4, "Were they late?", *[PARAGRAPH] * 4, *[ASK] * 4])
    text = f"{DOCUMENT}\n\n{many}\n\n{DOCUMENT}"
    assert weighing(words, 128, "Were they late?", ("user", text)) == 0  # those nearest to an end ask
    text = f"{DOCUMENT}\n\nWere they late?\n\n{DOCUMENT}\n\n{ASK}"
    assert weighing(words, 128, "Were they late?", ("user", text)) == 0


@SPELLINGS
@pytest.mark.parametrize(
    "line",
    [
        *("let n = open(path)?;", "name?: string;", "items?: Item[];", "x = Y ? Y : Z;", "x = a ? b : c"),
        *(
            "x = Y ?? Z;",
            "x = a ?? 0",
            "x = a\n    ? Y\n    : Z",
            "id = ?",
            "VALUES (?, ?)",
            "1,?,?",
            "| ? | 2 |",
        ),
        *(
            "let y: Int? = nil",
            "String? name;",
            "if ready? {",
            "GET /x?id=1",
            "$a = $b?->name;",
            "val n = m[0] ?: 0",
            "grep -P '(?:a|b)'",
            "echo $?",
        ),
    ],
)
def test_a_question_before_code_asks(spell: Callable[[str], list[str]], n_last: int, line: str) -> None:
    text = f"{DOCUMENT}\n\n{ASK}\n\n" + f"{line}\n" * 60
    assert weighing(spell, n_last, ASK, ("user", text)) == 1


@SPELLINGS
def test_an_instruction_asks_behind_what_stands_before_it(
    spell: Callable[[str], list[str]], n_last: int
) -> None:
    role = LINE * 5  # no short paragraph
    for text in (
        f"{role}{TELL}\n\n{DOCUMENT}",
        f"{LINE[:40]}\n{LINE}\n{LINE}\n{LINE}\n{LINE}\n{TELL}\n\n{DOCUMENT}",
        f"You are an assistant that reads pages.\n\n{TELL}\n\n{DOCUMENT}\n\nWas it helpful?\nYes | No",
    ):
        assert weighing(spell, n_last, TELL, ("user", text)) == 0.5**4


def test_a_mark_counts_whatever_the_template_puts_after_it() -> None:
    """Role words may follow with no blank between, where control tokens spell nothing."""
    for after in ("assistant\n\n", ":", "=", "\nassistant\n"):
        pieces = [*words(f"{DOCUMENT}\n\n{ASK}"), after]
        spelled = Pieces(range(len(pieces)), [piece.encode() for piece in pieces].__getitem__)
        found = question(spelled, 0, len(pieces) - 1, 128)
        assert [part.weight for part in found if part.weight > 0.001] == [1], after
        assert found[-1].stop == len(pieces) - 1, after


def test_a_row_of_question_marks_is_read_once() -> None:
    def seconds(n: int) -> float:
        text = f"{DOCUMENT}\n{'?' * n}\n{DOCUMENT}".encode()
        pieces = Pieces(range(len(text)), lambda i: text[i : i + 1])
        started = process_time()
        question(pieces, 0, pieces.n_tokens, 128)
        return process_time() - started

    assert seconds(200_000) < 1 + 50 * seconds(20_000)
