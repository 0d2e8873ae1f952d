"""What of an answer is seen, and how: as Markdown, broken between words, or as it is; its thinking folded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from headkv_local.chat.console import Console
from headkv_local.chat.markdown import Markdown
from headkv_local.chat.options import Options
from headkv_local.chat.thinking import Thinking
from headkv_local.chat.wrap import Wrapper


class Painter(Protocol):
    """Text goes in as it comes, and comes out as what standard output has to be sent."""

    def feed(self, text: str) -> str: ...

    def tick(self) -> str:
        """Time has passed."""
        ...

    def end(self) -> str:
        """What was held back."""
        ...


class View:
    """One answer on standard output.

    prompt: the end of the prompt that the answer goes on from, once it is known. in_chat: there are commands.
    """

    def __init__(
        self, console: Console, options: Options, prompt: Callable[[], str], *, in_chat: bool
    ) -> None:
        self._console, self._prompt, self._in_chat = console, prompt, in_chat
        hidden = options.thinking == "hide" or (options.thinking == "auto" and console.out_tty)
        self._hides = hidden and not options.json
        self._thinking: Thinking | None = None
        self._thought = ""
        self._last = ""  # character that was written
        self._painter: Painter = Wrapper(console.answer_width)
        if options.markdown == "auto" and console.renders and not options.json:
            self._painter = Markdown(console.answer_size)

    def feed(self, text: str) -> None:
        """The next piece of the answer."""
        if self._hides:
            if self._thinking is None:
                self._thinking = Thinking(self._prompt())
            thought, text = self._thinking.feed(text)
            self._thought += thought
            if self._thinking.inside:
                self._console.hint(f"Thinking, {self._thought.count(' ')} words so far ...")
            elif self._thought:
                self._fold()
        self._write(self._painter.feed(self._console.printable(text)))

    def tick(self) -> None:
        self._write(self._painter.tick())

    def end(self) -> None:
        """Of the answer, or of what there is of it."""
        if self._thinking is not None:
            thought, text = self._thinking.end()
            self._thought += thought
            if self._thought or self._thinking.inside:
                self._fold()
            self._write(self._painter.feed(self._console.printable(text)))
        self._thinking = None
        self._write(self._painter.end())
        if self._last not in ("", "\n"):
            self._write("\n")

    def _write(self, text: str) -> None:
        if text:
            self._console.answer(text)
            self._last = text[-1]

    def _fold(self) -> None:
        self._console.erase_line()
        if self._thought.strip():
            how = "/thinking shows them" if self._in_chat else "--thinking show prints them"
            words = len(self._thought.split())
            self._console.note(f"Thought for {words} words; {how}." if words > 1 else f"Thought; {how}.")
        self._thought = ""
