"""The slash commands of the interactive chat."""

from __future__ import annotations

import os
import shlex
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from headkv_local.chat.console import Console
from headkv_local.chat.documents import read_document
from headkv_local.chat.options import MEMORY, budget_text, parse_budget
from headkv_local.chat.render import seconds, share, size
from headkv_local.chat.worker import interrupts

if TYPE_CHECKING:
    from headkv_local.chat.keeping import Keeper
    from headkv_local.chat.session import Session, Show
    from headkv_local.chat.turn import Answer


_SHOWN: Final = 60  # characters of a question
_LIGHT: Final = "--light"


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
            self._console.error(f"there is no command /{name}; /help lists them")
        elif bool(argument) and not command.argument:
            self._console.error(f"/{name} takes no argument")
        else:
            command.run(self, argument)

    def help(self, _: str) -> None:
        for name, command in COMMANDS.items():
            self._console.note(f"{f'/{name} {command.argument}'.rstrip()}: {command.help}")
        self._console.note(
            '""" starts and ends a text of several lines. Ctrl-C stops an answer, Ctrl-D leaves.'
        )

    def info(self, _: str) -> None:
        session = self._session
        llm, meta = session.llm, session.llm.metadata
        self._console.note(f"model: {llm.model_path}")
        name, architecture = meta.get("general.name", "no name"), meta.get("general.architecture", "?")
        self._console.note(f"its own name: {name} ({architecture})")
        self._console.note(f"context: {session.used_tokens} of {llm.n_ctx()} tokens")
        self._console.note(f"budget: {budget_text(session.budget)}")
        self._console.note(f"head scores: {llm.scores_from or 'none'}")
        self._console.note(f"threads: {llm.n_threads}")
        self._console.note(f"sampling: {llm.sampling.told()}")
        stats = session.stats()
        self._console.note(f"cache on: {', '.join(stats.devices)}")
        if stats.compacted:
            kept = f"{share(stats.kept_share)} of {stats.prompt_tokens} tokens, {size(stats.kept_bytes)}"
            self._console.note(f"kept: {kept}")
        self._console.note(f"archive: {self._archive()}")
        self._console.note(f"turns: {session.turns}")
        if self._keeper.path is not None:
            self._console.note(f"session: {self._keeper.path}")
        for document in session.documents:
            self._console.note(f"attached: {document.name}")

    def _archive(self) -> str:
        """What is in it, and where it is."""
        archive, stats = self._session.archive, self._session.stats()
        if self._session.llm.retention is None:
            return "none" if stats.compacted else "none, the cache keeps everything"
        if archive.where is None:
            return f"none, {archive.reason}" if archive.reason else "none"
        place = "in memory" if archive.where == MEMORY else f"in {archive.where}"
        if not stats.archive_tokens:
            return f"empty, {place}"
        return f"{stats.archive_tokens} tokens, {size(stats.archive_bytes)} {place}"

    def clear(self, _: str) -> None:
        self._session.clear()
        self._console.note(f"A new chat.{self._keeper.told_of_clear()}")

    def file(self, argument: str) -> None:
        if not argument:
            self._console.error("/file takes the path of a document")
            return
        if argument == "-":
            self._console.error("standard input is this chat; /file takes a path")
            return
        document = read_document(_unquoted(argument))
        tokens = self._session.attach(document)
        self._console.note(f"{document.name}: {tokens} tokens, read with your next question.")

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
        self._keeper.save(_unquoted(rest.strip() if light else argument), light)

    def load(self, argument: str) -> None:
        with interrupts(lambda: None):  # a chat is here as a whole, or the one before it
            self._keeper.load(_unquoted(argument))

    def budget(self, argument: str) -> None:
        session = self._session
        if not argument:
            self._console.note(f"budget: {budget_text(session.budget)}")
        elif session.set_budget(parse_budget(argument)):
            self._console.note(f"budget: {budget_text(session.budget)}, from the next prompt on")
        else:
            waiting = "after /clear (this chat's prompt is compacted already)"
            self._console.note(f"budget: {budget_text(session.budget)}, {waiting}")

    def stats(self, _: str) -> None:
        stats = self._session.stats()
        how = f"kept {share(stats.kept_share)} ({stats.policy})" if stats.compacted else "kept whole"
        self._console.note(f"prompt: {stats.prompt_tokens} tokens, {how}")
        self._console.note(f"tail: {stats.tail_tokens} tokens")
        self._console.note(f"context: {self._session.used_tokens} of {stats.n_ctx} tokens")
        full, now, peak = (size(n) for n in (stats.full_bytes, stats.resident_bytes, stats.peak_bytes))
        self._console.figures([f"cache: {full} full", f"{now} now", f"{peak} peak"])
        self._console.note(f"archive: {self._archive()}")
        if stats.compacted:
            work = stats.select_seconds + stats.compact_seconds
            self._console.note(
                f"times: prefill {seconds(stats.prefill_seconds)}, compaction {1000 * work:.0f} ms"
            )

    def exit(self, _: str) -> None:
        raise Leave


COMMANDS: dict[str, Command] = {
    "help": Command("", "this list", Commands.help),
    "info": Command("", "model, context and settings", Commands.info),
    "clear": Command("", "start a new chat", Commands.clear),
    "file": Command("PATH", "put a document before the next question", Commands.file),
    "again": Command("", "answer the last question anew", Commands.again),
    "undo": Command("", "take back the last question and its answer", Commands.undo),
    "save": Command(
        f"[{_LIGHT}] [PATH]", "save the chat in a file; light: without its archive", Commands.save
    ),
    "load": Command("[PATH]", "go on with the chat in a file", Commands.load),
    "budget": Command("N", "what to keep: 128, 5%, 64MiB or full", Commands.budget),
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
    try:
        words = shlex.split(path)
    except ValueError:
        return path
    return words[0] if len(words) == 1 else path
