"""The slash commands of the interactive chat."""

from __future__ import annotations

import os
import shlex
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from headkv_local.chat import echo, info, setting
from headkv_local.chat.console import Console
from headkv_local.chat.folders import read_documents
from headkv_local.chat.kept import kept_text, show_kept
from headkv_local.chat.kept_page import write_page
from headkv_local.chat.options import expand
from headkv_local.chat.render import counted
from headkv_local.chat.switching import switch_model
from headkv_local.chat.thinking import parted
from headkv_local.chat.worker import interrupts
from headkv_local.errors import ArgumentError

if TYPE_CHECKING:
    from headkv_local.chat.keeping import Keeper
    from headkv_local.chat.session import Session, Show
    from headkv_local.chat.turn import Answer


_SHOWN: Final = 60  # characters of a question
_LIGHT: Final = "--light"
_HTML: Final = "--html"


class Leave(Exception):
    """/exit was typed."""


@dataclass(frozen=True)
class Command:
    """One slash command: its argument as the help shows it, what it does, and the method that does it."""

    argument: str
    help: str
    run: Callable[[Commands, str], None]


class Commands:
    """Runs the slash commands on a session. Raises HeadKVError or ValueError with a sentence, or Leave."""

    def __init__(
        self,
        session: Session,
        console: Console,
        answer: Callable[[Callable[[Show], Answer]], None],
        keeper: Keeper,
    ) -> None:
        """answer: asks, and shows what comes."""
        self._session, self._keeper = session, keeper
        self._console = console
        self._answer = answer

    def run(self, line: str) -> None:
        """Run a line that starts with a slash; an unknown command is answered with a note."""
        name, _, argument = line[1:].partition(" ")
        argument = argument.strip()
        command = COMMANDS.get(_ALIASES.get(name, name))
        if command is None:
            now = f"; /set {name} {argument}".rstrip() + " is one" if name in setting.NAMES else ""
            self._console.error(f"there is no command /{name}{now}; /help lists them")
        elif bool(argument) and not command.argument:
            self._console.error(f"/{name} takes no argument")
        else:
            command.run(self, argument)

    def help(self, _: str) -> None:
        for name, command in COMMANDS.items():
            self._console.note(f"{f'/{name} {command.argument}'.rstrip()}: {command.help}")
        self._console.note(", ".join(f"/{alias} is /{name}" for alias, name in _ALIASES.items()) + ".")
        self._console.note(
            '""" starts and ends a text of several lines. Ctrl-C stops an answer, Ctrl-D leaves.'
        )

    def info(self, _: str) -> None:
        for line in info.told(self._session):
            self._console.note(line)
        if where := self._keeper.told():
            self._console.note(where)

    def stats(self, _: str) -> None:
        for line in info.figures(self._session):
            if isinstance(line, str):
                self._console.note(line)
            else:
                self._console.figures(line)

    def clear(self, _: str) -> None:
        self._session.clear()
        self._console.note(f"A new chat.{self._keeper.clear()}")

    def file(self, argument: str) -> None:
        if not argument:
            raise ArgumentError("/file takes the path of a document, or of a folder")
        if argument == "-":
            raise ArgumentError("standard input is this chat; /file takes a path")
        path = _unquoted(argument)
        found = read_documents(path)
        before = len(self._session.documents)
        tokens = self._session.attach(found.documents)
        n_found = len(self._session.documents) - before
        for note in found.notes:
            self._console.note(note)
        what = f"{path}, {counted(n_found, 'document')}" if found.folder else path
        self._console.note(f"{what}: {tokens} tokens, read with your next question.")

    def again(self, _: str) -> None:
        self._answer(self._session.again)

    def undo(self, _: str) -> None:
        turn = self._session.undo()
        self._console.note(f"Taken back: {_shortened(turn.question)}")
        if turn.documents:
            self._console.note("Its documents go with the next question.")

    def save(self, argument: str) -> None:
        word, _, rest = argument.partition(" ")
        light = word == _LIGHT
        path = rest.strip() if light else argument
        words = [] if os.path.exists(os.path.expanduser(path)) else _words(path)
        for i, each in enumerate(words):
            if each.lower() == _LIGHT or (i == 0 and each.startswith("-")):
                raise ArgumentError(f"/save takes {_LIGHT}, before the path, and no {each}")
        self._keeper.save(_unquoted(path), light)

    def load(self, argument: str) -> None:
        with interrupts(lambda: None):  # a chat is here as a whole, or the one before it
            self._keeper.load(_unquoted(argument))
        for note in info.attached(self._session):
            self._console.note(note)

    def set(self, argument: str) -> None:
        name, _, value = argument.partition(" ")
        if name in COMMANDS and name not in setting.NAMES:
            raise ArgumentError(f"/set knows no '{name}'; /{name} {value.strip()}".rstrip() + " is a command")
        if name == "parameter":  # as Ollama has it
            raise ArgumentError("/set takes the name of a setting at once, such as /set temp 0.2")
        if value.strip():
            self._console.note(setting.change(self._session, name, value.strip()))
        elif name:
            self._console.note(setting.told(self._session, name))
        else:
            for line in setting.listed(self._session):
                self._console.note(line)

    def system(self, argument: str) -> None:
        session = self._session
        if argument:
            text = argument if argument not in ('""', "''") else None
            session.instruct(text, "/system")
            anew = " The chat is read anew with your next question." if session.turns else ""
            self._console.note(f"{'There is a' if text else 'There is no'} system message now.{anew}")
        elif session.options.system:
            self._console.note(session.options.system)
        else:
            self._console.note("There is no system message.")

    def model(self, argument: str) -> None:
        if not argument:
            self._console.note(f"model: {self._session.llm.model_path}")
            return
        with echo.hidden():
            notes = switch_model(self._session, expand(_unquoted(argument)), self._keeper)
        for note in notes:
            self._console.note(note)

    def thinking(self, _: str) -> None:
        last = self._session.answered[-1:]
        thought = "".join(parted(turn.answer, turn.opened)[0] for turn in last).strip()
        self._console.note(thought or "The last answer has no thinking in it.")

    def kept(self, argument: str) -> None:
        text = kept_text(self._session.llm)
        word, _, rest = argument.partition(" ")
        if word == _HTML:
            path = expand(_unquoted(rest.strip()))
            write_page(path, text, self._session.llm.file_name)
            self._console.note(f"Written to {path}; a browser shows it.")
        elif argument:
            raise ArgumentError(f"/kept takes nothing, or {_HTML} and the path of a file")
        else:
            show_kept(text, self._console)

    def exit(self, _: str) -> None:
        raise Leave


COMMANDS: dict[str, Command] = {
    "help": Command("", "this list", Commands.help),
    "info": Command("", "model, context and settings", Commands.info),
    "clear": Command("", "start a new chat", Commands.clear),
    "file": Command("PATH", "put a document, or those of a folder, before the next question", Commands.file),
    "again": Command("", "answer the last question anew", Commands.again),
    "undo": Command("", "take back the last question and its answer", Commands.undo),
    "save": Command(
        f"[{_LIGHT}] [PATH]", "save the chat in a file; light: without its archive", Commands.save
    ),
    "load": Command("[PATH]", "go on with the chat in a file", Commands.load),
    "set": Command("[NAME] [VALUE]", "show settings, or change one; default leaves it open", Commands.set),
    "system": Command("[TEXT]", 'show the system message, or have another one; "" for none', Commands.system),
    "model": Command("[MODEL]", "go on with another model, which reads the chat anew", Commands.model),
    "thinking": Command("", "what the model thought before its last answer", Commands.thinking),
    "kept": Command(f"[{_HTML} PATH]", "the prompt, shaded by how many heads keep each token", Commands.kept),
    "stats": Command("", "the KV cache in figures", Commands.stats),
    "exit": Command("", "leave", Commands.exit),
}

_ALIASES = {"quit": "exit", "bye": "exit", "?": "help", "new": "clear"}


def _shortened(text: str) -> str:
    """Its beginning, on one line."""
    return textwrap.shorten(text, _SHOWN, placeholder=" ...")


def _unquoted(path: str) -> str:
    """A path as a shell would take it: terminals quote the names of files that are dropped on them."""
    if os.path.exists(os.path.expanduser(path)):
        return path
    words = _words(path)
    return words[0] if len(words) == 1 else path


def _words(text: str) -> list[str]:
    """As a shell has them; none where a quote is open."""
    try:
        return shlex.split(text)
    except ValueError:
        return []
