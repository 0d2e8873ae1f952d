"""Markdown as lines for a terminal. markdown-it reads it; nothing of the text is left out but its marks."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final

from markdown_it import MarkdownIt
from markdown_it.rules_inline import StateInline, emphasis, newline
from markdown_it.token import Token
from markdown_it.tree import SyntaxTreeNode
from prompt_toolkit.utils import get_cwidth

from headkv_local.chat.styled import Styled, columns_of, painted, styled, wrapped

_DUNDER: Final = re.compile(r"(?<!\w)__[a-z0-9_]+__(?!\w)", re.ASCII)
_OPENING, _CLOSING, _QUOTES = "([{", ")]}", "\"'`"


def _emphasis(state: StateInline, silent: bool) -> bool:
    """Within words, formulas and code * and _ are no marks: 2*3*4, (a)*(b), '*' or __init__ lose nothing."""
    text, start = state.src, state.pos
    if silent or text[start] not in "*_":
        return False
    if found := _DUNDER.match(text, start, state.posMax):
        end = found.end()
    else:
        end = start
        while end < state.posMax and text[end] == text[start]:
            end += 1
        if not _between(text[start - 1 : start], text[end : end + 1]):
            return emphasis.tokenize(state, silent)
    state.pending += text[start:end]
    state.pos = end
    return True


def _between(before: str, after: str) -> bool:
    """Whether what stands between these, "" for nothing, marks neither the begin nor the end of anything."""
    if not before or not after:
        return False
    factors = (_in_word(before) or before in _CLOSING) and (_in_word(after) or after in _OPENING)
    return factors or (before in _QUOTES and after in _QUOTES) or (before in _OPENING and after in _CLOSING)


def _in_word(c: str) -> bool:
    """Of a script that writes blanks between words: those of wide characters do not."""
    return c.isalnum() and get_cwidth(c) == 1


def _newline(state: StateInline, silent: bool) -> bool:
    """Keeps the blanks that a line begins with: it may be code without a fence."""
    start = state.pos
    if not newline(state, silent):
        return False
    state.pos = start + 1
    return True


class _Markdown(MarkdownIt):
    def normalizeLink(self, url: str) -> str:
        """As it is written, not with percent signs for all but English letters: it is for people."""
        return url


# HTML, pictures and definitions of links would not be shown: they stay text. Without text_join it can be seen
# which characters had a backslash.
_PARSER: Final = (
    _Markdown("commonmark")
    .enable(["table", "strikethrough"])
    .disable(["html_block", "html_inline", "image", "reference", "text_join"])
)
_PARSER.inline.ruler.at("emphasis", _emphasis)
_PARSER.inline.ruler.at("newline", _newline)
_DIM = "2"
_STYLES: Final = {"strong_open": "1", "em_open": "3", "s_open": "9", "link_open": "4"}
_CONTROL: Final = re.compile(r"[\x00-\x1f]")  # as entities, such as &#13;
_CELL: Final = re.compile(r"(?<!\\)\|")
_RULE: Final = re.compile(r"([-*_])(?:[ \t]*\1){2,}[ \t]*$")
_HEADING: Final = {"h1": "1;4", "h2": "1;4"}
_MARKS: Final = "*_`~#>|-+.!<"  # a backslash before one of these is a mark; in formulas it is a part of them


def blocks_of(text: str) -> list[tuple[int, int]]:
    """The top-level blocks: of each its first line, and the one after its last."""
    tokens = _PARSER.parse(text)
    return [(t.map[0], t.map[1]) for t in tokens if t.level == 0 and t.map is not None and t.nesting >= 0]


def lines_of(text: str, width: int) -> list[str]:
    """`text` in lines of at most `width` columns, but for code and long words.

    Blank lines are where they are in the text; those before it and after it are left out.
    """
    source = text.split("\n")
    tree = SyntaxTreeNode(_PARSER.parse(text))
    return [painted(line) for line in _Lines(source, width).blocks(tree.children)]


class _Lines:
    """source: all lines of the text."""

    def __init__(self, source: Sequence[str], width: int) -> None:
        self._source, self._width = source, width

    def blocks(self, nodes: Sequence[SyntaxTreeNode]) -> list[Styled]:
        lines: list[Styled] = []
        at = None
        for node in nodes:
            if node.map is None:
                continue
            first, last = node.map
            if at is not None:
                lines += [[] for _ in range(first - at)]
            lines += self._block(node)
            while last > first + 1 and not self._source[last - 1].strip(" \t>"):
                last -= 1  # lists have the blank lines behind them
            at = last
        return lines

    def _block(self, node: SyntaxTreeNode) -> list[Styled]:
        if node.type in ("paragraph", "heading"):
            base = "" if node.type == "paragraph" else _HEADING.get(node.tag, "1")
            return wrapped([*self._indent(node), *_inline(node, base)], self._width)
        if node.type == "fence":
            return self._fence(node)
        if node.type == "blockquote":
            inner = _Lines(self._source, max(self._width - 2, 2)).blocks(node.children) or [[]]
            return [[*styled("> ", _DIM), *line] for line in inner]
        if node.type in ("bullet_list", "ordered_list"):
            return self.blocks(node.children)
        if node.type == "list_item":
            mark = f"{node.info}{node.markup} " if node.info else f"{node.markup} "
            inner = _Lines(self._source, max(self._width - len(mark), 2)).blocks(node.children) or [[]]
            return [
                [*styled(mark if i == 0 else " " * len(mark) * bool(line), ""), *line]
                for i, line in enumerate(inner)
            ]
        if node.type == "table":
            return self._table(node)
        if node.type == "code_block":
            code = node.content.rstrip("\n").split("\n")
            return [styled(f"    {line}" if line else "", "") for line in code]
        assert node.map is not None
        rule = _RULE.search(self._source[node.map[0]])  # the mark of a list may stand before it
        return [styled(rule[0].rstrip(" \t") if rule else node.markup, _DIM)]

    def _indent(self, node: SyntaxTreeNode) -> Styled:
        """Blanks before a paragraph, unless they are of a list or a quote."""
        if node.type != "paragraph" or node.level > 0 or node.map is None:
            return []
        line = self._source[node.map[0]]
        return styled(line[: len(line) - len(line.lstrip(" "))], "")

    def _fence(self, node: SyntaxTreeNode) -> list[Styled]:
        """As it stands there, so that it can be copied."""
        content = node.content.split("\n")
        if content[-1] == "":
            content.pop()
        lines = [styled(f"{node.markup}{node.info}", _DIM), *(styled(line, "") for line in content)]
        assert node.map is not None
        raw = self._source[node.map[0] : node.map[1]]
        closed = len(raw) > len(content) + 1 and raw[len(content) + 1].strip(" \t>").startswith(node.markup)
        return [*lines, styled(node.markup, _DIM)] if closed else lines

    def _table(self, node: SyntaxTreeNode) -> list[Styled]:
        """In columns, or as it is written if these are wider than the terminal."""
        rows = [
            [_inline(cell, "") for cell in row.children] for part in node.children for row in part.children
        ]
        assert node.map is not None
        raw = self._source[node.map[0] : node.map[1]]
        if any(len(_CELL.split(line.strip(" \t>|"))) > len(rows[0]) for line in raw):
            return [styled(line.strip(" \t>"), "") for line in raw]  # cells without a column would go
        widths = [max(map(columns_of, column)) for column in zip(*rows, strict=True)]
        if sum(widths) + 3 * (len(widths) - 1) > self._width:
            written = [
                [
                    *styled("|", ""),
                    *(c for cell in row for c in (*styled(" ", ""), *cell, *styled(" |", ""))),
                ]
                for row in rows
            ]
            return [written[0], styled("|---" * len(widths) + "|", _DIM), *written[1:]]
        lines = []
        for i, row in enumerate(rows):
            line: Styled = []
            for cell, width in zip(row, widths, strict=True):
                bold = [(c, ";".join(filter(None, ("1", style)))) for c, style in cell] if i == 0 else cell
                gap = styled(" | ", _DIM) if line else []
                line = [*line, *gap, *bold, *styled(" " * (width - columns_of(cell)), "")]
            while line and line[-1][0] == " ":
                line.pop()
            lines.append(line)
            if i == 0:
                lines.append(styled("-|-".join("-" * width for width in widths), _DIM))
        return lines


def _inline(node: SyntaxTreeNode, base: str) -> Styled:
    tokens = [child.token.children for child in node.children if child.token is not None]
    return list(_characters([token for each in tokens for token in each or ()], base))


def _characters(tokens: Sequence[Token], base: str) -> Iterator[tuple[str, str]]:
    styles, links = [base], list[tuple[str, str, int]]()
    written = ""
    for token in tokens:
        text = token.content
        if token.nesting == 1:
            styles.append(_STYLES.get(token.type, ""))
            if token.type == "link_open":
                title = f' "{token.attrs["title"]}"' if "title" in token.attrs else ""
                links.append((str(token.attrs.get("href", "")), title, len(written)))
        elif token.nesting == -1:
            styles.pop()
            if token.type == "link_close":  # where it leads is seen
                target, title, start = links.pop()
                told = not title and target.removeprefix("mailto:") == written[start:]
                text = "" if told else _CONTROL.sub(" ", f" ({target}{title})")
        if token.type in ("softbreak", "hardbreak"):
            text = "\n"
        elif token.type == "text_special" and (
            _CONTROL.search(text) or (token.markup[:1] == "\\" and text not in _MARKS)
        ):
            text = token.markup
        elif token.type == "code_inline":  # keeps its marks, as blocks of code do
            blank = " " if "`" in (text[:1], text[-1:]) else ""
            text = f"{token.markup}{blank}{text}{blank}{token.markup}"
        style = ";".join(filter(None, styles))
        written += text
        yield from ((c, style) for c in text)
