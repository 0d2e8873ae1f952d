"""Reads what is typed: lines, texts in triple quotes, history and Tab."""

from __future__ import annotations

import os
from typing import Final

from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app
from prompt_toolkit.filters import Condition
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.keys import Keys
from prompt_toolkit.output import create_output
from prompt_toolkit.shortcuts import CompleteStyle

from headkv_local.chat import setting
from headkv_local.chat.commands import COMMANDS
from headkv_local.chat.completion import ChatCompleter
from headkv_local.chat.console import Console
from headkv_local.chat.worker import interrupts
from headkv_local.errors import HeadKVError

_QUOTES = '"""'

_HISTORY: Final = b"\n# "  # how prompt_toolkit's begin


class Dropped(Exception):
    """Ctrl-C. text: what stood there; remembered: whether the up key brings it back."""

    def __init__(self, text: str, remembered: bool) -> None:
        super().__init__()
        self.text, self.remembered = text, remembered


def open_history(path: str | None) -> History:
    """History in memory, or in the file `path`. Raises HeadKVError where that cannot be."""
    if path is None:
        return InMemoryHistory()
    try:
        # what is typed is nobody else's; of a file that is there the mode stays
        file = os.open(os.path.expanduser(path), os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(file, "rb") as found:
            begin = found.read(len(_HISTORY)) if found.seekable() else b""
    except (OSError, ValueError) as error:
        cause = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise HeadKVError(f"cannot write the history file '{path}': {cause}") from error
    if begin and begin != _HISTORY:
        raise HeadKVError(f"'{path}' is another file, no history of lines: give another name")
    return _FileHistory(os.path.expanduser(path))


class _FileHistory(FileHistory):
    """A line that cannot be written is not kept: prompt_toolkit would show a traceback for it."""

    failed: OSError | None = None

    def store_string(self, string: str) -> None:
        try:
            super().store_string(string)
        except OSError as error:
            self.failed = error


class Prompt:
    """The line that the user types at; a text in triple quotes is one input of several lines."""

    def __init__(self, console: Console, history: str | None) -> None:
        self._history = open_history(history)
        # The prompt is no part of the answer, so it is drawn on standard error.
        output = create_output(stdout=console.err if console.err_tty else None)
        self._session: PromptSession[str] = PromptSession(
            history=self._history,
            output=output,
            key_bindings=_bindings(),
            prompt_continuation=lambda width, line, wrapped: "" if wrapped else "... ",
            completer=ChatCompleter(
                {name: entry.argument for name, entry in COMMANDS.items()}, setting.NAMES, setting.choices
            ),
            complete_while_typing=False,
            enable_suspend=True,
            complete_style=CompleteStyle.READLINE_LIKE,
        )

    def read(self) -> tuple[str, bool]:
        """The next text, and whether it stood in triple quotes. Raises EOFError and Dropped."""
        stopped: list[bool] = []

        def stop() -> None:
            stopped.append(True)
            if self._session.app.loop is not None:
                self._session.app.loop.call_soon_threadsafe(self._leave)

        # Until the terminal is set up, and from Enter on, Ctrl-C is a signal. prompt_toolkit's own handler
        # ends the prompt a second time then, for which asyncio shows a traceback, and without one Python
        # would raise KeyboardInterrupt anywhere in the event loop. So it is noted, and looked at afterwards;
        # before the prompt stands there is nothing to stop.
        with interrupts(stop):
            try:
                text = self._session.prompt("> ", pre_run=stopped.clear, handle_sigint=False)
            except KeyboardInterrupt:
                text = self._session.default_buffer.text
                stopped.append(True)
        if stopped:
            remembered = is_open_block(text) and text.strip() != _QUOTES
            if remembered:
                self._history.append_string(text)
            raise Dropped(text, remembered)
        text = text.strip()
        if not text.startswith(_QUOTES):
            return text, False
        return text.removeprefix(_QUOTES).removesuffix(_QUOTES).strip("\n"), True

    def _leave(self) -> None:
        """End the prompt, unless it has ended."""
        app = self._session.app
        if app.future is not None and not app.future.done():
            app.exit(exception=KeyboardInterrupt(), style="class:aborting")

    def history_failure(self) -> OSError | None:
        """Why a line could not be written into the history file; told once for each failure."""
        if not isinstance(self._history, _FileHistory):
            return None
        failed, self._history.failed = self._history.failed, None
        return failed


def is_open_block(text: str) -> bool:
    """Whether `text` begins with triple quotes and does not end with others."""
    text = text.strip()
    return text.startswith(_QUOTES) and not (len(text) >= 2 * len(_QUOTES) and text.endswith(_QUOTES))


def _bindings() -> KeyBindings:
    bindings = KeyBindings()

    @bindings.add("enter", filter=Condition(lambda: is_open_block(get_app().current_buffer.text)))
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @bindings.add(Keys.Vt100MouseEvent)
    def _(event: KeyPressEvent) -> None:
        """Colours in what was pasted amid an answer: nobody asks for a mouse, which they are taken for."""
        event.current_buffer.insert_text(event.data)

    return bindings
