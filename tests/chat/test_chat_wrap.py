from __future__ import annotations

import random

import pytest
from prompt_toolkit.utils import get_cwidth

from headkv_local.chat.wrap import Wrapper


def wrapped(text: str, columns: int | None, sizes: random.Random | None = None) -> str:
    """`text` through a Wrapper, in pieces of random sizes."""
    wrapper, out, at = Wrapper(lambda: columns), [], 0
    while at < len(text):
        n = sizes.randrange(1, 9) if sizes else len(text)
        out.append(wrapper.feed(text[at : at + n]))
        at += n
    return "".join(out) + wrapper.end()


PROSE = "A nice long sentence, with words of several lengths - extraordinarily so.\n\n  And a second one.\n"


@pytest.mark.parametrize("columns", [10, 20, 40, 80])
def test_lines_break_between_words(columns: int) -> None:
    lines = wrapped(PROSE * 3, columns).split("\n")
    assert [word for line in lines for word in line.split()] == (PROSE * 3).split()
    assert all(len(line) < columns or "extraordinarily" in line for line in lines)


@pytest.mark.parametrize(
    "text", [PROSE * 2, "日本語の文章は、語と語の間に空白がない。" * 4, "a\tb " * 30, "```\nx   y\n```\n"]
)
@pytest.mark.parametrize("columns", [5, 12, 40])
def test_the_pieces_do_not_matter(text: str, columns: int) -> None:
    whole = wrapped(text, columns)
    for seed in range(20):
        assert wrapped(text, columns, random.Random(seed)) == whole


def test_what_is_no_terminal_gets_the_text_as_it_is() -> None:
    assert wrapped("a b  " * 50, None, random.Random(1)) == "a b  " * 50


def test_wide_characters_take_two_columns() -> None:
    text = "日本語の文章は、語と語の間に空白がない。" * 3
    lines = wrapped(text, 20).split("\n")
    assert "".join(lines) == text
    assert all(get_cwidth(line) < 22 for line in lines)
    assert all(get_cwidth(line) >= 16 for line in lines[:-1])
    assert not any(line.startswith(("、", "。")) for line in lines)


def test_brackets_and_joined_pictures_stay_together() -> None:
    for text in ("日本「東京」は。" * 9, "👩\u200d👩\u200d👧" * 9):
        lines = wrapped(text, 9).split("\n")
        assert "".join(lines) == text
        assert not any(line.endswith(("「", "\u200d")) or line.startswith("」") for line in lines)


def test_words_among_wide_characters_are_whole() -> None:
    lines = wrapped("これは headkv という Python のパッケージです。" * 3, 24).split("\n")
    for word in ("headkv", "Python"):
        assert sum(line.count(word) for line in lines) == 3


def test_code_and_long_words_are_left_to_the_terminal() -> None:
    code = "```python\nresult = " + "some_function(argument) + " * 5 + "1\n```\n"
    assert wrapped(code, 20) == code
    address = "https://example.org/" + "x" * 60
    assert wrapped(f"see {address} now", 20).replace("\n", " ") == f"see {address} now"
    assert address in wrapped(f"see {address} now", 20)


def test_prose_after_code_is_wrapped_again() -> None:
    lines = wrapped("```\n" + "a b " * 20 + "\n```\n" + "word " * 20, 20).split("\n")
    assert max(map(len, lines[3:])) < 20


@pytest.mark.parametrize(
    "before", ["```code``` in a line", "````md\n```\n````", "~~~\n```\n~~~", "```\n~~~\n```py\n````"]
)
def test_prose_behind_other_marks_of_code_is_wrapped(before: str) -> None:
    assert wrapped(f"{before}\none two three four five six", 24) == f"{before}\none two three four five\nsix"


def test_code_between_shorter_fences_is_left_to_the_terminal() -> None:
    code = "````\n```\n" + "code " * 20 + "\n```\n````\n"
    assert wrapped(code, 24) == code


def test_blank_space_at_the_edge_is_dropped_and_indentation_stays() -> None:
    assert wrapped("aaaa bbbb", 6) == "aaaa\nbbbb"
    assert wrapped("    indented", 40) == "    indented"
    assert wrapped("end ", 40) == "end "


def test_an_empty_terminal_width_does_no_harm() -> None:
    assert wrapped("a b", 1).split() == ["a", "b"]
