"""Text in which each character has a style, broken into lines and painted."""

from __future__ import annotations

from prompt_toolkit.utils import get_cwidth

from headkv_local.chat.wrap import Wrapper, width_of

Styled = list[tuple[str, str]]
"""Characters, each with its style: the numbers of an SGR sequence, "" for none."""


def wrapped(text: Styled, width: int) -> list[Styled]:
    """Broken as other answers are; the blanks at which a line is broken go."""
    plain = "".join(c for c, _ in text)
    wrapper = Wrapper(lambda: width + 1)  # it leaves the last column free
    lines: list[Styled] = [[]]
    i = 0
    for c in wrapper.feed(plain) + wrapper.end():
        if c == "\n" and plain[i] != "\n":
            while plain[i] in " \t":
                i += 1
            lines.append([])
            continue
        while plain[i] != c:  # blanks before a line end
            i += 1
        if c == "\n":
            lines.append([])
        else:
            lines[-1].append(text[i])
        i += 1
    return lines


def styled(text: str, style: str) -> Styled:
    return [(c, style) for c in text]


def columns_of(text: Styled) -> int:
    return width_of("".join(c for c, _ in text))


def painted(line: Styled) -> str:
    """With the sequences of its styles; each ends on its line."""
    parts, now = [], ""
    for c, style in line:
        if style != now:
            parts.append(("\x1b[0m" if now else "") + (f"\x1b[{style}m" if style else ""))
            now = style
        parts.append(c)
    return "".join(parts) + ("\x1b[0m" if now else "")


def rows_of(line: str, columns: int) -> int:
    """Rows that a painted line takes on a terminal, which breaks it where it is too long."""
    rows, column, escape = 1, 0, False
    for c in line:
        if c == "\x1b" or escape:
            escape = c != "m"
            continue
        width = min(8 - column % 8, columns - 1 - column) if c == "\t" else max(get_cwidth(c), c == "\ufe0f")
        if column + width > columns:
            rows, column = rows + 1, 0
        column += width
    return rows
