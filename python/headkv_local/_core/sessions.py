"""Sessions: a conversation in a file, with all that it takes to go on without reading anything again.

`llm` is a Llama.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from ..errors import ArgumentError, SessionError, StateError
from ..messages import listed
from ..stats import PromptRecord
from . import native
from .native.session import Held, SessionFile, Told, write
from .session_header import Header, context_of, difference, to_json


def save(
    llm: Any, path: str | os.PathLike[str], light: bool = False, messages: Sequence[Mapping[str, Any]] = ()
) -> None:
    _require_outside(llm)
    with llm._using(beside=True), llm._lifetime.cancellable():
        llm._tokens.uncut()
        ctx = llm._compactor.ctx
        native.supported(ctx)
        if llm.n_tokens == 0 or llm._compactor.n_tokens != llm.n_tokens:
            raise StateError("there is nothing to save: the context holds no tokens, or others")
        record = _record_to_save(llm)
        weights, said = llm._weights, listed(messages)
        header = to_json(context_of(llm), weights.adapter, llm.retention, int(llm._seed), record, said)
        told = Told(weights.model, llm._compactor.model_path, header, record.n_tokens or 0)
        tokens = np.ascontiguousarray(llm.input_ids[: llm.n_tokens], dtype=np.int32)
        logits = None if llm._requires_eval else llm._contents.logits()
        recurrent = record.recurrent if llm._compactor.n_compacted > 0 else None
        write(ctx, _name(path), told, Held(tokens, logits, record.logits, recurrent), light)


def open_with(
    make: Callable[..., Any],
    path: str | os.PathLike[str],
    model_path: str | os.PathLike[str] | None,
    arguments: Mapping[str, Any],
) -> Any:
    """make: a Llama, of a model's path and the constructor's arguments: the session's, unless given."""
    with opened(path) as (session, header):
        where = header.model_path if model_path is None else os.fspath(model_path)
        llm = make(where, **{"retention": header.retention, **header.context, **arguments})
        try:
            _load(llm, session, header)
            if arguments.get("seed") is not None:
                llm.set_seed(arguments["seed"])
        except BaseException:
            llm.close()
            raise
        return llm


def load(llm: Any, path: str | os.PathLike[str]) -> None:
    _require_outside(llm)
    with llm._using(), llm._lifetime.cancellable(), opened(path) as (session, header):
        _load(llm, session, header)


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[tuple[SessionFile, Header]]:
    """A session, and what it says, checked. SessionError for a file that is none."""
    with SessionFile(_name(path)) as session:
        try:
            header = Header.of(session.about)
        except ArgumentError as error:
            raise SessionError(
                f"the session {session.path} is damaged, or not for Python: {error}"
            ) from error
        yield session, header


def _name(path: str | os.PathLike[str]) -> str:
    name = os.fsdecode(path)
    if "\0" in name:
        raise SessionError(f"a file name cannot hold a zero byte: {name!r}")
    return name


def _require_outside(llm: Any) -> None:
    if llm._lifetime.turns.inside:
        raise StateError("a session cannot be saved or opened in a callback of the call that computes")


def _record_to_save(llm: Any) -> PromptRecord:
    record: PromptRecord = llm._prompts.record  # of a prompt that was read whole a part may be gone
    n = None if record.n_tokens is None else min(record.n_tokens, llm.n_tokens)
    return replace(record, n_tokens=n, turns=record.turns_within(llm.n_tokens))


def _load(llm: Any, session: SessionFile, header: Header) -> None:
    with llm._using():
        ours = context_of(llm), llm._weights.adapter
        if other := difference(header.context, header.adapter, *ours):
            raise SessionError(f"the session {session.path} has rows of {other}")
        try:
            held = session.load(llm._compactor.ctx, llm._weights.model, llm._n_vocab)
        except BaseException:
            if llm._compactor.n_tokens != llm.n_tokens:  # what it held is given up
                llm.reset()
            raise
        llm._contents.forget_prompt()
        llm._tokens.take(held.tokens)
        llm._tokens.evaluated(n_logits=0 if held.logits is None else 1)
        if llm._logits_all:
            llm._tokens.unscored(0)
            if held.logits is not None:
                llm.scores[llm.n_tokens - 1] = held.logits
        llm._prompts.record = replace(
            header.prompt, retention=header.retention, logits=held.prompt_logits, recurrent=held.prompt_state
        )
        llm._seed, llm._session_messages = header.seed, header.messages
