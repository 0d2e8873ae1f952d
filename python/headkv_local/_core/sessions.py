"""Sessions: a conversation in a file, with all that it takes to go on without reading anything again."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt

from .. import files
from ..errors import (
    ArchiveError,
    ArgumentError,
    HeadKVError,
    InternalError,
    OutOfMemoryError,
    SessionError,
    StateError,
)
from ..settings import KV_TYPES
from ..stats import PromptRecord
from . import native
from .logging import collected_errors
from .messages import Chatting
from .native.session import BOUNDED, CELLS, END, ArchivedRows, get_part, set_part
from .session_file import SessionFile, Writer, is_session, opened
from .session_header import Header, context_of
from .states import identity, name_of

_TOKENS, _LOGITS, _CELLS, _BOUNDED = "tokens", "logits", "cells", "bounded"
_PROMPT, _TURN, _ROWS, _END = "prompt", "turn", "rows", "end"
_SECTIONS: Final = (_TOKENS, _LOGITS, _CELLS, _BOUNDED, _PROMPT, _TURN, _ROWS, _END)

_Self = TypeVar("_Self", bound="Resuming")

Row = npt.NDArray[np.float32]


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
                with files.replacing(target) as temporary, temporary.open("wb") as file:
                    try:
                        self._write(Writer(file, header.to_json()), header, light)
                    except HeadKVError as error:  # may be an OSError too, which says another thing there
                        failed.append(error)
                        raise
            except OSError as error:
                if failed:
                    raise failed[0] from None
                raise SessionError(str(error)) from error

    def _record_to_save(self) -> PromptRecord:
        record = self._prompts.record  # of a prompt that was read whole a part may be gone
        n = record.n_tokens
        return record if n is None else replace(record, n_tokens=min(n, self.n_tokens))

    def _target(self, path: str | os.PathLike[str]) -> Path:
        try:
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

    def _write(self, writer: Writer, header: Header, light: bool) -> None:
        ctx, record = self._compactor.ctx, self._prompts.record
        writer.section(_TOKENS, self.input_ids[: self.n_tokens].astype("<i4"))
        logits = None if self._requires_eval else self._logits()
        if logits is not None:
            writer.section(_LOGITS, logits.astype("<f4"))
        writer.section(_CELLS, get_part(ctx, CELLS))
        bounded = get_part(ctx, BOUNDED)
        if self._bounded:
            writer.section(_BOUNDED, bounded)
        at_end = self.n_tokens == record.n_tokens  # of the prompt
        if record.logits is not None and not light and not (at_end and logits is not None):
            writer.section(_PROMPT, record.logits.astype("<f4"))
        if record.recurrent is not None and not light and self._compactor.n_compacted > 0:
            self._bounded.put_back(record.recurrent)
            turn = get_part(ctx, BOUNDED)
            set_part(ctx, BOUNDED, bounded)
            writer.section(_TURN, turn)
        if header.n_archived > 0:
            rows = ArchivedRows(ctx, header.n_archived)
            with writer.parts(_ROWS, rows.n_bytes) as write:
                for chunk in rows.chunks():
                    rows.get(chunk)
                    write(chunk.rows)
            writer.section(_END, get_part(ctx, END))

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
        settings. Raises SessionError for a file that is damaged, of another format or model, or does not fit
        into the context, and what the constructor raises. A session names files, its model and the archive:
        of one from others, give model_path and retention.
        """
        with opened(path, _SECTIONS) as session:
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

        SessionError leaves the context as it was where the file's beginning tells, else empty.
        """
        with opened(path, _SECTIONS) as session:
            self._load(session, _header_of(session))

    def _load(self, session: SessionFile, header: Header) -> None:
        with self._using():
            self._require_fitting(session, header)
            tokens, logits, prompt = (
                session.read(_TOKENS),
                self._row(session, _LOGITS),
                self._row(session, _PROMPT),
            )
            held = np.frombuffer(tokens or b"", dtype="<i4")
            if len(held) != header.n_tokens:
                raise session.error(f"is damaged: it has {len(held)} of its {header.n_tokens} tokens")
            with _session_errors(session):
                self._require_known(held.tolist())
            if header.n_tokens == header.prompt.n_tokens and prompt is None:
                prompt = logits
            try:
                if (
                    logits is not None and self._n_logits == 0
                ):  # llama.cpp makes room for them where it computes some
                    self.reset()
                    self._compactor.expect(1)
                    self._evaluate([0])
                self.reset()
                with _session_errors(session):
                    recurrent = self._set_parts(session, header)
            except BaseException:
                self.reset()
                raise
            self.input_ids[: len(held)] = held
            self.n_tokens, self._requires_eval = len(held), True
            if self._logits_all:
                self.scores[:] = 0
            self._put_back(logits)
            self._prompts.record = replace(header.prompt, logits=prompt, recurrent=recurrent)
            self._seed, self._session_messages = header.seed, header.messages

    def _require_fitting(self, session: SessionFile, header: Header) -> None:
        native.supported(self._compactor.ctx)
        if header.model_id != identity(self):
            raise session.error(f"is of the model {header.model_name}, not of {name_of(self)}")
        for name, wanted in (
            ("type_k", self.context_params.type_k),
            ("type_v", self.context_params.type_v),
        ):
            if (found := header.context.get(name)) != wanted:
                raise session.error(
                    f"has rows of {name}={_kind(found)}, and this context has {_kind(wanted)}"
                )
        if header.n_tokens > self.n_ctx():
            raise session.error(
                f"holds {header.n_tokens} tokens, and the context has room for {self.n_ctx()}"
            )

    def _row(self, session: SessionFile, name: str) -> Row | None:
        data = session.read(name)
        if data is None:
            return None
        if len(data) != 4 * self._n_vocab:
            raise session.error(f"is damaged: its {name} are not of {self._n_vocab} tokens")
        return np.frombuffer(data, dtype="<f4").astype(np.float32)

    def _set_parts(self, session: SessionFile, header: Header) -> npt.NDArray[np.uint8] | None:
        """Into an empty context. Returns the record of recurrent layers at the prompt's end."""
        ctx, recurrent = self._compactor.ctx, None
        set_part(ctx, CELLS, session.read(_CELLS) or b"\0")
        numbers = native.get_numbers(ctx)
        if self._bounded:
            turn = session.read(_TURN)
            if turn is not None:
                set_part(ctx, BOUNDED, turn)
                if self._bounded.n_held != numbers.n_prompt:
                    raise session.error("is damaged: a recurrent state is not of the prompt's end")
                recurrent = self._bounded.snapshot()
            set_part(ctx, BOUNDED, session.read(_BOUNDED) or b"\0")
        held = {numbers.n_tokens, self._bounded.n_held}
        if (
            held != {header.n_tokens}
            or (numbers.n_prompt or header.prompt.n_tokens) != header.prompt.n_tokens
        ):
            raise session.error("is damaged: its parts are of different lengths")
        if header.n_archived > 0 and self._compactor.has_archive:
            if header.n_archived != numbers.n_prompt:
                raise session.error("is damaged: what it has archived is not the prompt")
            rows = ArchivedRows(ctx, header.n_archived)
            if session.size(_ROWS) != rows.n_bytes or _END not in session:
                raise session.error("is damaged: its archive is not complete")
            with session.parts(_ROWS) as fill:
                for chunk in rows.chunks():
                    fill(chunk.rows)
                    rows.set(chunk)
            set_part(ctx, END, session.read(_END) or b"\0")
        return recurrent


def _kind(number: int | None) -> str:
    return next((text for text, known in KV_TYPES.items() if known == number), str(number))


def _list_of(messages: Sequence[Mapping[str, Any]]) -> list[Any]:
    if isinstance(messages, str | Mapping) or not all(isinstance(m, Mapping) for m in messages):
        raise ArgumentError(f"messages must be a list of chat messages, not {messages!r}")
    return [dict(message) for message in messages]


def _header_of(session: SessionFile) -> Header:
    with _session_errors(session):
        return Header.from_json(session.header)


@contextmanager
def _session_errors(session: SessionFile) -> Iterator[None]:
    """What is wrong with a session's content, in its own words."""
    with collected_errors() as lines:
        try:
            yield
        except (SessionError, ArchiveError, OutOfMemoryError):
            raise
        except (ArgumentError, StateError, InternalError) as error:
            reason = "; ".join([str(error), *lines])
            raise session.error(f"is damaged, or does not fit this context: {reason}") from error
