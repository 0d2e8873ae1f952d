"""Sessions: a conversation in a file, with all that it takes to go on without reading anything again.

`llm` is a Llama.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .. import files
from ..errors import ArgumentError, HeadKVError, SessionError, StateError
from ..stats import PromptRecord
from . import native
from . import session_parts as parts
from .session_file import SessionFile, Writer, is_session, opened
from .session_header import Header, context_of
from .states import identity, name_of


def save(
    llm: Any, path: str | os.PathLike[str], light: bool = False, messages: Sequence[Mapping[str, Any]] = ()
) -> None:
    _require_outside(llm)
    with llm._using(beside=True):
        llm._tokens.uncut()
        ctx = llm._compactor.ctx
        native.supported(ctx)
        numbers = native.get_numbers(ctx)
        if llm.n_tokens == 0 or numbers.n_tokens != llm.n_tokens:
            raise StateError("there is nothing to save: the context holds no tokens, or others")
        header = Header(
            model_id=identity(llm),
            model_name=name_of(llm),
            model_path=os.path.abspath(llm.model_path),
            context=context_of(llm),
            retention=llm.retention,
            seed=int(llm._seed),
            n_tokens=llm.n_tokens,
            n_archived=0 if light else numbers.n_archived,
            prompt=_record_to_save(llm),
            messages=_list_of(messages),
        )
        target = _target(llm, path)
        failed: list[HeadKVError] = []
        try:
            with files.replacing(target, private=True) as temporary, temporary.open("wb") as file:
                try:
                    parts.write(llm, Writer(file, header.to_json()), header, light)
                except HeadKVError as error:  # may be an OSError too, which says another thing there
                    failed.append(error)
                    raise
        except OSError as error:
            if failed:
                raise failed[0] from None
            raise SessionError(str(error)) from error


def open_with(
    make: Callable[..., Any],
    path: str | os.PathLike[str],
    model_path: str | os.PathLike[str] | None,
    arguments: Mapping[str, Any],
) -> Any:
    """make: a Llama, of a model's path and the constructor's arguments: the session's, unless given."""
    with opened(path, parts.SECTIONS) as session:
        header = _header_of(session)
        where = header.model_path if model_path is None else os.fspath(model_path)
        llm = make(where, **{"retention": header.retention, **header.context, **arguments})
        try:
            _load(llm, session, header)
        except BaseException:
            llm.close()
            raise
        return llm


def load(llm: Any, path: str | os.PathLike[str]) -> None:
    _require_outside(llm)
    with llm._using(), opened(path, parts.SECTIONS) as session:
        session.verify()
        _load(llm, session, _header_of(session))


def _require_outside(llm: Any) -> None:
    if llm._lifetime.turns.inside:
        raise StateError("a session cannot be saved or opened in a callback of the call that computes")


def _record_to_save(llm: Any) -> PromptRecord:
    record: PromptRecord = llm._prompts.record  # of a prompt that was read whole a part may be gone
    turns = tuple(turn for turn in record.turns if turn[0] <= llm.n_tokens)
    n = None if record.n_tokens is None else min(record.n_tokens, llm.n_tokens)
    return replace(record, n_tokens=n, turns=turns)


def _target(llm: Any, path: str | os.PathLike[str]) -> Path:
    try:
        native.encoded(os.fspath(path))
        target = files.target(path, force=True, model=llm.model_path)
        if target.exists() and target.stat().st_size > 0 and not is_session(target):
            raise SessionError(f"{target} is another file, not a session: it stays as it is")
    except ArgumentError as error:
        raise SessionError(str(error)) from error
    except OSError as error:
        if isinstance(error, HeadKVError):
            raise
        raise SessionError(f"{path} cannot be written: {error.strerror or error}") from error
    return target


def _load(llm: Any, session: SessionFile, header: Header) -> None:
    with llm._using():
        parts.require_fitting(llm, session, header)
        tokens, logits, prompt = parts.read_small(llm, session, header)
        try:
            if logits is not None and llm._tokens.n_logits == 0:
                llm.reset()  # llama.cpp has a place for logits once it has computed some
                llm._compactor.expect(1)
                llm._decoder.evaluate([0])
            llm.reset()
            with parts.explained(session):
                recurrent = parts.read(llm, session, header)
        except BaseException:
            llm.reset()
            raise
        llm.input_ids[: len(tokens)] = tokens
        llm.n_tokens, llm._requires_eval = len(tokens), True
        if llm._logits_all:
            llm.scores[:] = 0
        llm._contents.put_back(logits)
        llm._prompts.record = replace(header.prompt, logits=prompt, recurrent=recurrent)
        llm._seed, llm._session_messages = header.seed, header.messages


def _list_of(messages: Sequence[Mapping[str, Any]]) -> list[Any]:
    if isinstance(messages, str | Mapping) or not all(isinstance(m, Mapping) for m in messages):
        raise ArgumentError(f"messages must be a list of chat messages, not {messages!r}")
    return [dict(message) for message in messages]


def _header_of(session: SessionFile) -> Header:
    with parts.explained(session):
        return Header.from_json(session.header)
