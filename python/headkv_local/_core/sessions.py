"""Sessions: a conversation in a file, with all that it takes to go on without reading anything again."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from .. import files
from ..errors import ArgumentError, HeadKVError, SessionError, StateError
from ..stats import PromptRecord
from . import native
from . import session_parts as parts
from .messages import Chatting
from .session_file import SessionFile, Writer, is_session, opened
from .session_header import Header, context_of
from .states import identity, name_of

_Self = TypeVar("_Self", bound="Resuming")


class Resuming(Chatting):
    """A Chatting whose conversations outlive it."""

    _session_messages: list[Any] = []  # noqa: RUF012 - never changed in place

    @property
    def session_messages(self) -> list[Any]:
        """The chat messages that came with the session that was opened last; empty without one."""
        return list(self._session_messages)

    def save_session(
        self,
        path: str | os.PathLike[str],
        light: bool = False,
        messages: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """Write a file that open_session() goes on from, without reading the prompt again.

        It holds tokens, kept rows and tail, all rows in the archive, settings, and the model's identity. It
        appears whole or not at all: an earlier session of that name is there until then.

        light: leave out the archive, and what it takes to go back to the prompt's end. Later turns are then
            read against what was kept.
        messages: of the chat, for whoever opens the session; anything that JSON can hold.

        Raises SessionError for a file that cannot be written, or a name that is another file's; StateError
        for an empty context; UnsupportedError for one that can never be compacted; ArgumentError for
        messages that are none.
        """
        self._require_outside()
        with self._using(beside=True):
            self._uncut()
            ctx = self._compactor.ctx
            native.supported(ctx)
            numbers = native.get_numbers(ctx)
            if self.n_tokens == 0 or numbers.n_tokens != self.n_tokens:
                raise StateError("there is nothing to save: the context holds no tokens, or others")
            header = Header(
                model_id=identity(self),
                model_name=name_of(self),
                model_path=os.path.abspath(self.model_path),
                context=context_of(self),
                retention=self.retention,
                seed=int(self._seed),
                n_tokens=self.n_tokens,
                n_archived=0 if light else numbers.n_archived,
                prompt=self._record_to_save(),
                messages=_list_of(messages),
            )
            target = self._target(path)
            failed: list[HeadKVError] = []
            try:
                with files.replacing(target, private=True) as temporary, temporary.open("wb") as file:
                    try:
                        parts.write(self, Writer(file, header.to_json()), header, light)
                    except HeadKVError as error:  # may be an OSError too, which says another thing there
                        failed.append(error)
                        raise
            except OSError as error:
                if failed:
                    raise failed[0] from None
                raise SessionError(str(error)) from error

    def _record_to_save(self) -> PromptRecord:
        record = self._prompts.record  # of a prompt that was read whole a part may be gone
        turns = tuple(turn for turn in record.turns if turn[0] <= self.n_tokens)
        n = None if record.n_tokens is None else min(record.n_tokens, self.n_tokens)
        return replace(record, n_tokens=n, turns=turns)

    def _target(self, path: str | os.PathLike[str]) -> Path:
        try:
            native.encoded(os.fspath(path))
            target = files.target(path, force=True, model=self.model_path)
            if target.exists() and target.stat().st_size > 0 and not is_session(target):
                raise SessionError(f"{target} is another file, not a session: it stays as it is")
        except ArgumentError as error:
            raise SessionError(str(error)) from error
        except OSError as error:
            if isinstance(error, HeadKVError):
                raise
            raise SessionError(f"{path} cannot be written: {error.strerror or error}") from error
        return target

    @classmethod
    def open_session(
        cls: type[_Self],
        path: str | os.PathLike[str],
        model_path: str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ) -> _Self:
        """A Llama that goes on where the one that saved the session was. Nothing is read again.

        model_path: where the model is now; None: where it was. It must be the same model.
        kwargs: as for the constructor. What is not given is as it was: retention, n_ctx, the types of K and
            V and whatever else rows depend on. A retention without an archive leaves out the session's.

        Logits are those that the saving Llama would have computed, bit for bit on the same CPU with the same
        settings, until its next fold, which may come some tokens later here. Raises SessionError for a file
        that is damaged, of another format or model, or does not fit into the context, and what the
        constructor raises. A session names files, its model and the archive: of one from others, give
        model_path and retention.
        """
        with opened(path, parts.SECTIONS) as session:
            header = _header_of(session)
            where = header.model_path if model_path is None else os.fspath(model_path)
            llm = cls(where, **{"retention": header.retention, **header.context, **kwargs})
            try:
                llm._load(session, header)
            except BaseException:
                llm.close()
                raise
            return llm

    def load_session(self, path: str | os.PathLike[str]) -> None:
        """As open_session(), in this Llama, with its own settings.

        A SessionError leaves the context as it was; empty, where a file without damage says what cannot be.
        """
        self._require_outside()
        with self._using(), opened(path, parts.SECTIONS) as session:
            session.verify()
            self._load(session, _header_of(session))

    def _require_outside(self) -> None:
        if self._lifetime.turns.inside:
            raise StateError("a session cannot be saved or opened in a callback of the call that computes")

    def _load(self, session: SessionFile, header: Header) -> None:
        with self._using():
            parts.require_fitting(self, session, header)
            tokens, logits, prompt = parts.read_small(self, session, header)
            try:
                if logits is not None and self._n_logits == 0:
                    self.reset()  # llama.cpp has a place for logits once it has computed some
                    self._compactor.expect(1)
                    self._evaluate([0])
                self.reset()
                with parts.explained(session):
                    recurrent = parts.read(self, session, header)
            except BaseException:
                self.reset()
                raise
            self.input_ids[: len(tokens)] = tokens
            self.n_tokens, self._requires_eval = len(tokens), True
            if self._logits_all:
                self.scores[:] = 0
            self._put_back(logits)
            self._prompts.record = replace(header.prompt, logits=prompt, recurrent=recurrent)
            self._seed, self._session_messages = header.seed, header.messages


def _list_of(messages: Sequence[Mapping[str, Any]]) -> list[Any]:
    if isinstance(messages, str | Mapping) or not all(isinstance(m, Mapping) for m in messages):
        raise ArgumentError(f"messages must be a list of chat messages, not {messages!r}")
    return [dict(message) for message in messages]


def _header_of(session: SessionFile) -> Header:
    with parts.explained(session):
        return Header.from_json(session.header)
