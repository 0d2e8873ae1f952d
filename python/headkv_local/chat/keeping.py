"""The file that a chat is kept in: --session, /save and /load."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from headkv_local.chat.console import Console
from headkv_local.chat.options import FLAG, Options, expand
from headkv_local.chat.render import counted
from headkv_local.chat.saved import SavedChat, read_chat, state_of, with_state
from headkv_local.chat.session import Session
from headkv_local.chat.signatures import is_model
from headkv_local.chat.worker import interrupts
from headkv_local.errors import ArgumentError, HeadKVError, SessionError, StateError, UnsupportedError
from headkv_local.wording import size

State = tuple[Sequence[Mapping[str, Any]], Mapping[str, Any]]
"""A chat, to be compared: its messages, and what else it is made of."""


class Keeper:
    """Saves a chat, and opens another one in its place.

    path: the file that is meant where none is named: that of --session, else the one named last; None: none.
    """

    def __init__(self, session: Session, console: Console) -> None:
        self._session, self._console = session, console
        self.path = session.options.session
        self._at_end = self.path is not None
        self._stamp = _stamp(self.path)
        self._kept: State | None = None
        self._copy: tuple[str, State] | None = None  # what /save has written elsewhere
        self._archived = False  # the file has an archive of the chat that is here

    def save(self, name: str = "", light: bool = False) -> None:
        """Raises StateError for a chat without turns, and what Llama.save_session() raises."""
        path = self._named(name)
        if light and self._at_end and _same(path, self.path):
            raise StateError(f"{path} is saved whole at the end: give another file, /save --light PATH")
        if not self._session.turns:
            raise StateError("there is nothing to save: no question has been answered yet")
        if not self._session.llm.n_tokens:
            raise StateError("the model has not read this chat yet: it can be saved after the next answer")
        self._require_savable()
        messages, rest = now = self.state()
        whole = with_state(messages, self._session.answered, rest)
        with interrupts(lambda: None):  # else the file would be somebody else's afterwards
            self._session.llm.save_session(path, light=light, messages=whole)
            if self.path is None or not self._at_end or _same(path, self.path):
                self._hold(path, not light and self._session.stats().archive_tokens > 0)
            elif not light:
                self._copy = path, now
        without = ", without the archive" if light else ""
        self._console.note(f"Saved in {path}: {self._told()}, {size(os.path.getsize(path))}{without}.")

    def load(self, name: str = "") -> None:
        """Raises SessionError, and the chat goes on as it was. With --session it is saved first."""
        path = self._named(name)
        if is_model(path):
            raise SessionError(f"{path} is a GGUF model, and no session; /model goes on with it")
        chat = read_chat(path)
        if not _same(path, self.path):
            self.keep()
        self._take(path, chat)

    def open(self, chat: SavedChat | None, system: str | None) -> None:
        """What --session says of the file, before the first question. None: it is a new one.

        system: the message that holds, from the command line or the file. Raises ContextFullError for one
        that leaves no room.
        """
        if self.path is None:
            return
        if chat is None:
            self._require_savable()
            self._console.note(f"A new session; at the end it is saved in {self.path}.")
            return
        self._take(self.path, chat)
        if system != self._session.options.system:
            self._session.instruct(system, FLAG)
            self._console.note(
                "There is another system message now. The chat is read anew with your next question."
            )

    def leave(self) -> None:
        """Save at the end, where --session asks for it. Raises HeadKVError; nothing is saved then."""
        if not self._at_end or self.path is None:
            return
        if not self._session.turns:
            stays = f"{self.path} stays as it is" if os.path.exists(self.path) else "no session is saved"
            self._console.note(f"The chat is empty: {stays}.")
        elif not self.keep():
            why = "Nothing is new" if self._session.llm.n_tokens else "The model has not read this chat yet"
            self._console.note(f"{why}: {self.path} stays as it is.")

    def told(self) -> str:
        """Where the chat is kept, and whether it will be; "" where no file is named."""
        if self.path is None:
            return ""
        return f"session: {self.path}" + ("" if self._at_end else ", which only /save writes")

    def _require_savable(self) -> None:
        try:
            _ = self._session.llm.shape
        except UnsupportedError as error:
            raise StateError(f"a chat with this model cannot be saved: {error}") from error

    def _is_new(self) -> bool:
        """What is only set, after /model, is saved with the next answer: the model has read nothing yet."""
        kept, now = self._kept, self.state()
        only_set = kept is not None and kept[0] == now[0] and not self._session.llm.n_tokens
        return bool(self._session.turns) and kept != now and not only_set

    def keep(self) -> bool:
        """With --session, save what is new; False: nothing is.

        Raises HeadKVError where that cannot be, and /save has not put it elsewhere.
        """
        if not self._at_end or not self._is_new():
            return False
        try:
            self._require_free()
            self.save()
        except (HeadKVError, MemoryError):
            if self._copy is None or self._copy[1] != self.state() or not os.path.exists(self._copy[0]):
                raise
            self._console.note(f"{self.path} stays as it is; the chat is saved in {self._copy[0]}.")
        return True

    def _require_free(self) -> None:
        """Raises SessionError where the file has what would be lost: what another process has written, or
        the archive of this chat, which goes on without it.
        """
        now = _stamp(self.path)
        if now is None:  # there is none, or no longer
            return
        if now != self._stamp:
            raise SessionError(
                f"{self.path} has been written by another process since, and stays as it is: this chat is "
                "not saved"
            )
        stats = self._session.stats()
        if self._archived and stats.compacted and not stats.archive_tokens:
            raise SessionError(
                f"{self.path} has the archive that this chat goes on without, and stays as it is: this chat "
                "is not saved"
            )

    def clear(self) -> str:
        """The chat is empty now: what that means for the file."""
        self._archived = False  # what is there is of another chat
        if self._at_end and self.path is not None and os.path.exists(self.path):
            return f" Once a question is answered, it takes the place of the one in {self.path} at the end."
        return ""

    def _take(self, path: str, chat: SavedChat) -> None:
        session = self._session
        if notice := session.resume(path, chat):
            self._console.note(notice)
        self._hold(path, chat.archived)
        when = "" if chat.when is None else time.strftime(", saved %Y-%m-%d %H:%M", time.localtime(chat.when))
        self._console.note(f"{path}: {self._told()}{when}.")
        stats = session.stats()
        if stats.compacted and not stats.archive_tokens:
            self._console.note("It has no archive here: later turns are read against what was kept.")

    def _hold(self, path: str, archived: bool) -> None:
        self.path, self._stamp, self._kept = path, _stamp(path), self.state()
        self._archived = archived

    def state(self) -> State:
        session = self._session
        return session.messages(session.answered), state_of(session.in_force, session.documents)

    def _told(self) -> str:
        session = self._session
        return f"{counted(session.turns, 'turn')}, {counted(session.used_tokens, 'token')}"

    def _named(self, name: str) -> str:
        if name:
            return expand(name)
        if self.path is None:
            raise ArgumentError("this chat has no session file yet: give a path")
        return self.path


def saved_at(path: str) -> SavedChat | None:
    """The chat in the file of --session, None for a new one. Raises SessionError."""
    folder = os.path.dirname(os.path.realpath(path))
    if not os.path.isdir(folder):
        raise SessionError(f"the session {path} cannot be saved: there is no folder {folder}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise SessionError(f"the session {path} cannot be saved: no file can be made in {folder}")
    with_content = os.path.exists(path) and not (os.path.isfile(path) and os.path.getsize(path) == 0)
    return read_chat(path) if with_content else None


def model_of(chat: SavedChat, options: Options) -> str:
    """The model's file: that of the command line, else where it was. Raises SessionError if it has gone."""
    if options.model is not None and options.sources.get("model") == FLAG:
        return options.model
    path = str(chat.settings["model"])
    if not os.path.exists(path):
        raise SessionError(
            f"the session {options.session} is of the model {chat.model_name}, and {path} has gone: "
            "give its file as MODEL"
        )
    return path


def _stamp(path: str | None) -> tuple[int, int] | None:
    """Changes when somebody writes the file; None where there is none."""
    try:
        found = os.stat(path or "")
    except (OSError, ValueError):
        return None
    return found.st_ino, found.st_mtime_ns


def _same(path: str, other: str | None) -> bool:
    return other is not None and os.path.realpath(path) == os.path.realpath(other)
