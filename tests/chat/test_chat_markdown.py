"""Markdown in a terminal: nothing is lost, and what is streamed looks as if it had come at once."""

from __future__ import annotations

import os
import random
import re

import pytest
from prompt_toolkit.utils import get_cwidth

from headkv_local.chat import markdown
from headkv_local.chat.markdown import Markdown
from headkv_local.chat.markup import lines_of

PAGE = """\
# Title of this

Some **bold text** and *italic*, `code`, a [link](http://a.b/c), <b>html</b>, List<String>, snake_case and
2 ** 3 \\(x^2\\) 日本語の長い文章はここで折り返される必要がありますよね。
second line
- item one with **bold words that go on for a long time so that they wrap**
- item two
  - nested `a`

1. first
2. second

```python
def f(x):
    return "a line of code that is longer than forty columns"

```

> quote with *em*
> more

| a | b |
|---|---|
| 1 | **two** |

[ref]: http://x.y

---
last **open"""
BITS = (
    *("**", "*", "`", "```\n", "\n", "\n\n", "- ", "1. ", "> ", "word ", "# ", "日本語", "    ", "\t"),
    *("| a | b |\n", "|---|---|\n", "| c | d | e |\n", "[x](http://u)", "\\(", "---\n", "_a_", "~~"),
    *("longer " * 9, "x" * 50 + " ", "<b>", "\\*", "``a`b``", "\xa0", "===\n", "1) ", "~~~\n"),
)


class Screen:
    """A terminal of endless height, for the sequences that are used here."""

    def __init__(self, columns: int) -> None:
        self._columns, self._rows, self._at, self._column = columns, [""], 0, 0

    def feed(self, text: str) -> None:
        """Some terminals put all rows into their history before they clear from the first one on."""
        for move, to, clear, style, c in re.findall(
            r"\x1b\[(\d*)([AB])|\x1b\[([JK])|(\x1b\[[\d;]*m)|(.|\n)", text
        ):
            if to:
                self._at += int(move or 1) * (1 if to == "B" else -1)
                assert 0 <= self._at < len(self._rows)
            elif clear:
                assert self._column == 0
                assert clear == "K" or self._at > 0
                self._rows[self._at :] = ["", *(self._rows[self._at + 1 :] if clear == "K" else ())]
            elif c == "\r":
                self._column = 0
            elif c == "\n":
                self._down()
            elif not style:
                self._put(c)

    def shown(self) -> list[str]:
        """Up to the cursor, or to what is behind it."""
        rows = [row.rstrip() for row in self._rows]
        while len(rows) > self._at + 1 and not rows[-1]:
            rows.pop()
        return rows

    def _put(self, c: str) -> None:
        width = min(8 - self._column % 8, self._columns - 1 - self._column) if c == "\t" else get_cwidth(c)
        if self._column + width > self._columns:
            self._down()
        self._rows[self._at] += c
        self._column += width

    def _down(self) -> None:
        self._at, self._column = self._at + 1, 0
        if self._at == len(self._rows):
            self._rows.append("")


def plain(lines: list[str]) -> str:
    return re.sub(r"\x1b\[[\d;]*m", "", "\n".join(lines))


def texts() -> list[str]:
    draw = random.Random(1)
    return [PAGE, *("".join(draw.choices(BITS, k=draw.randint(1, 50))) for _ in range(30))]


@pytest.mark.parametrize("columns", [20, 40, 80])
def test_streamed_as_at_once(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(markdown, "_LEAST", 0.0)
    monkeypatch.setattr(markdown, "_SHARE", 0.0)
    for seed, text in enumerate(texts()):
        sizes = random.Random(seed)
        view, streamed, whole = (
            Markdown(lambda: os.terminal_size((columns, 999))),
            *map(Screen, [columns] * 2),
        )
        at = 0
        while at < len(text):
            n = sizes.randint(1, 9)
            streamed.feed(view.feed(text[at : at + n]))
            at += n
        streamed.feed(view.end())
        whole.feed("\n".join(lines_of(text, columns - 1)))
        assert streamed.shown() == whole.shown(), text


def test_nothing_but_marks_is_left_out() -> None:
    for text in texts():
        for columns in (20, 80):
            shown = plain(lines_of(text, columns))
            assert sorted(re.sub(r"[\W_]", "", shown)) == sorted(re.sub(r"[\W_]", "", text)), text


def test_what_it_looks_like() -> None:
    lines = lines_of(PAGE, 39)
    assert lines[0] == "\x1b[1;4mTitle of this\x1b[0m"
    shown = plain(lines)
    assert "\n- item one with bold words that go on\n  for a long time so that they wrap\n" in shown
    assert (
        '\n```python\ndef f(x):\n    return "a line of code that is longer than forty columns"\n\n```\n'
        in shown
    )
    assert (
        "\n> quote with em\n> more\n\na | b\n--|----\n1 | two\n\n[ref]: http://x.y\n\n---\nlast **open"
        in shown
    )
    assert "\\(x^2\\)" in shown
    assert "`code`" in shown
    assert plain(lines_of("| a | b |\n|---|---|\n| 1 | two |", 6)) == "| a | b |\n|---|---|\n| 1 | two |"


@pytest.mark.parametrize(
    "text",
    [
        "2*3*4 = 24 and 5*6*7, x**2 + y**2, a*b + c*d",
        "(a+b)*(c+d)*(e+f), (x)**(2)+(y)**(2), 2*(x)*y, a[1]*b[2]*c",
        "'*'.join('*'), (*) and (*)",
        "self.__dict__ of __init__ in __main__.py",
        "def f(x):\n    if x:\n        return x",
        "  return x\nor\n  else",
        "As in\n\n    def f(x):\n        return x\n\nor so",
        "- as in\n\n      x = 1\n  y",
        "> a\n>   b",
        "1) ---\n2) * * *\n\n- ***\n- b\n\n> ___",
    ],
)
def test_what_is_no_markup_stays_as_it_is(text: str) -> None:
    assert plain(lines_of(text, 80)) == text


def test_emphasis_is_shown_in_scripts_without_blanks_and_titles_beside_links() -> None:
    assert lines_of("日本**語**日 (*a*)", 80) == ["日本\x1b[1m語\x1b[0m日 (\x1b[3ma\x1b[0m)"]
    assert plain(lines_of('[a](b "title")', 80)) == 'a (b "title")'
    assert plain(lines_of("[a](http://b/Käse) <http://b/Käse>", 80)) == "a (http://b/Käse) http://b/Käse"
    for text in ("**Note (final)**: x", "*(a)*, b", "__Warning__: hot", 'He said "**no**".', "(**x**)"):
        assert not set("*_") & set(plain(lines_of(text, 80)))


def test_entities_cannot_steer_a_terminal() -> None:
    """Control characters in them would have passed by what takes these out of an answer."""
    assert plain(lines_of("a&#13;b&NewLine;c &#27;[2J &nbsp;&lt;", 80)) == "a&#13;b&NewLine;c \ufffd[2J \xa0<"
    assert plain(lines_of("[a](b&#13;c 'd&#12;e')", 80)) == 'a (b c "d e")'


def test_a_block_that_has_left_the_screen_is_shown_again() -> None:
    view = Markdown(lambda: os.terminal_size((20, 5)))
    view.feed("**" + "word " * 60)
    view._next = 0.0
    assert view.feed("end**").startswith("\n\x1b[1mword")


def test_a_table_that_has_left_the_screen_is_shown_twice_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    """However often a row makes a column wider; and so is what comes behind it."""
    monkeypatch.setattr(markdown, "_LEAST", 0.0)
    monkeypatch.setattr(markdown, "_SHARE", 0.0)
    rows = [f"| {i} | {'x' * i} |\n" for i in range(1, 33)]
    for behind in ("", "\nThe end."):
        view, screen = Markdown(lambda: os.terminal_size((60, 10))), Screen(60)
        for piece in re.findall(".|\n", "".join(["| a | b |\n", "|---|---|\n", *rows, behind])):
            screen.feed(view.feed(piece))
        screen.feed(view.end())
        shown = screen.shown()
        whole = plain(lines_of("".join(["| a | b |\n", "|---|---|\n", *rows, behind]), 59)).split("\n")
        assert shown[-len(whole) :] == [line.rstrip() for line in whole]
        assert len(shown) <= 2 * len(whole) + 2
