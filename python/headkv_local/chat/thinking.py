"""Blocks in which a model thinks before it answers, told from the answer."""

from __future__ import annotations

from typing import Final

_BLOCKS: Final = {
    "<think>": "</think>",
    "<thinking>": "</thinking>",
    "<thought>": "</thought>",
    "<seed:think>": "</seed:think>",
    "[THINK]": "[/THINK]",
}


def opened_by(prompt: str) -> str:
    """The mark of the block that stands open at its end, "" for none."""
    return next((begin for begin in _BLOCKS if prompt.rstrip().endswith(begin)), "")


class Thinking:
    """Text goes in as it comes, and comes out as what was thought and what is answered.

    prompt: its end; a template may have opened the block already. A block that begins later is text. What may
    be the beginning of a mark is held back until it is known.
    """

    def __init__(self, prompt: str) -> None:
        self._close = _BLOCKS.get(opened_by(prompt), "")
        self._held = ""
        self._known = bool(self._close)  # whether there is a block
        self._blank = False  # nothing has followed the block yet

    @property
    def inside(self) -> bool:
        return self._known and bool(self._close)

    def feed(self, text: str) -> tuple[str, str]:
        """What of it is thought, and what is answered."""
        self._held += text
        if not self._known:
            begin = self._held.lstrip()
            mark = next((mark for mark in _BLOCKS if begin.startswith(mark)), None)
            if mark is not None:
                self._close, self._held = _BLOCKS[mark], begin[len(mark) :]
            elif any(mark.startswith(begin) for mark in _BLOCKS):
                return "", ""
            self._known = True
        if not self._close:
            return "", self._said()
        thought, closed, rest = self._held.partition(self._close)
        if closed:
            self._close, self._held, self._blank = "", rest, True
            return thought, self._said()
        cut = next(n for n in range(len(self._close) - 1, -1, -1) if self._held.endswith(self._close[:n]))
        return self._take(len(self._held) - cut), ""

    def end(self) -> tuple[str, str]:
        """What was held back."""
        rest = self._take(len(self._held))
        return (rest, "") if self.inside else ("", rest)

    def _said(self) -> str:
        said = self._take(len(self._held))
        if self._blank:
            said = said.lstrip()
            self._blank = not said
        return said

    def _take(self, n: int) -> str:
        taken, self._held = self._held[:n], self._held[n:]
        return taken


def parted(answer: str, opened: str | None = None) -> tuple[str, str]:
    """What of a whole answer is thought, and what is answered.

    opened: as opened_by() says it of the prompt; None if that is not known.
    """
    if opened is None:
        begins = answer.lstrip().startswith(tuple(_BLOCKS))
        opened = "" if begins else next((begin for begin, end in _BLOCKS.items() if end in answer), "")
    stream = Thinking(opened)
    (thought, said), (more_thought, more) = stream.feed(answer), stream.end()
    return thought + more_thought, said + more
