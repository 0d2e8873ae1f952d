"""An answer in a loop is stopped; one that repeats something for a reason is not."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

import pytest

from headkv_local.chat.repetition import Loop, LoopDetector, periodic_end

# as a tokenizer does it, roughly: words with the blank before them, single digits and signs
_PIECES = re.compile(r" ?[^\W\d_]+|\d|\s|[^\w\s]|_")


def look(text: str, question: str = "") -> tuple[Loop | None, int]:
    """The loop that is found while `text` comes, and after how many tokens."""
    pieces = _PIECES.findall(text)
    names = sorted(set(pieces))
    ids = {piece: i for i, piece in enumerate(names)}

    def detokenize(tokens: Sequence[int]) -> str:
        return "".join(names[token] for token in tokens)

    detector = LoopDetector(question, detokenize)
    for count, piece in enumerate(pieces, 1):
        if loop := detector.add(ids[piece]):
            return loop, count
    return None, len(pieces)


PARAGRAPH = "The river comes from the hills. " + " ".join(
    f"It then passes the town of {name}, where people fish."
    for name in ("Ulm", "Linz", "Wien", "Pest", "Novi")
)
START = "Paris is the capital of France. It lies on the Seine.\n\n"


@pytest.mark.parametrize(
    ("unit", "most"),
    [
        (" la femme au roi,", 336),  # a phrase
        ("The answer is Paris, the capital.\n", 672),  # a line
        (" the", 672),  # a token
        ("\n", 672),
        ("| a | 0 |\n", 672),  # a row of a table
        ("    x = x + 1\n", 672),  # a line of code
        (PARAGRAPH + "\n\n", 400),  # a longer paragraph
        ("巴黎是法国的首都。", 336),
    ],
)
def test_a_loop_is_found(unit: str, most: int) -> None:
    loop, count = look(START + unit * 2000)
    assert loop is not None
    assert sorted(loop.unit) == sorted(unit)
    assert count <= most + len(_PIECES.findall(START)) + 16


def test_a_loop_of_many_tokens_is_found_after_four_times() -> None:
    numbers = random.Random(1)
    unit = "".join(f" {''.join(numbers.choices('abcdefgh', k=6))}" for _ in range(400)) + "."
    loop, count = look(unit * 8)
    assert loop is not None
    assert count <= 4 * 401 + 16


@pytest.mark.parametrize(
    "text",
    [
        "ha " * 100,
        "I must not be late.\n" * 50,
        "| --- " * 20 + "|\n" + "| 0 | 0 | 0 | 0 |\n" * 30,
        "\n".join(f"{n}. The square of {n} is {n * n}." for n in range(300)),
        "\n".join(f"| {n} | {n % 7} | no |" for n in range(200)),
        "```c\n" + '    printf("Hello\\n");\n' * 50 + "```\n",
        "x = [" + "0, " * 200 + "0]\n",
        "-" * 200 + "\n" + "=" * 200,
        (PARAGRAPH + "\n\n") * 3,
        "\n".join(f"def test_{n}() -> None:\n    assert f({n}) == {n * 3}\n" for n in range(100)),
        ", ".join(str(n) for n in range(1000)),
    ],
)
def test_what_repeats_for_a_reason_is_left_alone(text: str) -> None:
    assert look(START + text + "\nThat is all.")[0] is None


def test_as_often_as_the_question_wants_it() -> None:
    text = "I must not be late.\n" * 300
    assert look(text)[0] is not None
    assert look(text, "Write 'I must not be late' 300 times.")[0] is None
    assert look(text * 2, "Write 'I must not be late' 300 times.")[0] is not None
    assert look(text, "What happened in 1789?")[0] is not None  # another number


def test_a_loop_is_cut_to_one_unit() -> None:
    assert Loop("b a").cut("Yes: a b a b a b a b") == "Yes: a b a b a b a b"
    assert Loop(" b a").cut("Yes: a b a b a b a") == "Yes: a b a"
    assert Loop(" a b").cut("Yes: a b a b a b a") == "Yes: a b a"  # begun elsewhere
    assert Loop("").cut("Yes") == "Yes"


def test_periodic_end_agrees_with_its_definition() -> None:
    numbers = random.Random(7)
    for _ in range(2000):
        tokens = [numbers.randrange(2) for _ in range(numbers.randrange(1, 24))]
        wanted = None
        for length in range(6, len(tokens) + 1):
            end = tokens[-length:]
            period = next(p for p in range(1, length + 1) if end[:-p] == end[p:])
            if length >= 4 * period:
                wanted = length, period
        assert periodic_end(tokens, 6) == wanted
