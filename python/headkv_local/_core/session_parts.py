"""The sections of a session: written from what a Llama's context holds, and read into it.

`llm` is a Llama; its context is used by nobody else meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from ..errors import ArchiveError, ArgumentError, InternalError, OutOfMemoryError, SessionError, StateError
from ..settings import KV_TYPES
from . import native
from .bounded import Snapshot
from .logging import collected_errors
from .native.session import BOUNDED, CELLS, END, ArchivedRows, get_bounded_of, get_part, set_part
from .session_file import SessionFile, Writer
from .session_header import Header
from .states import identity, name_of

_TOKENS, _LOGITS, _CELLS, _BOUNDED = "tokens", "logits", "cells", "bounded"
_PROMPT, _TURN, _ROWS, _END = "prompt", "turn", "rows", "end"
SECTIONS: Final = (_TOKENS, _LOGITS, _CELLS, _BOUNDED, _PROMPT, _TURN, _ROWS, _END)

Row = npt.NDArray[np.float32]


class Small(NamedTuple):
    """What is read, and checked, before anything that the context holds is given up."""

    tokens: npt.NDArray[np.int32]
    logits: Row | None
    """Of the last token."""
    prompt: Row | None
    """Of the prompt's last token."""


def write(llm: Any, writer: Writer, header: Header, light: bool) -> None:
    ctx, record = llm._compactor.ctx, llm._prompts.record
    writer.section(_TOKENS, llm.input_ids[: llm.n_tokens].astype("<i4"))
    logits = None if llm._requires_eval else llm._contents.logits()
    if logits is None and llm.n_tokens == record.n_tokens:  # after a turn that was cancelled
        logits = record.logits
    if logits is not None:
        writer.section(_LOGITS, logits.astype("<f4"))
    writer.section(_CELLS, get_part(ctx, CELLS))
    if llm._bounded:
        writer.section(_BOUNDED, get_part(ctx, BOUNDED))
    if light:
        return
    if record.logits is not None and not (llm.n_tokens == record.n_tokens and logits is not None):
        writer.section(_PROMPT, record.logits.astype("<f4"))
    if record.recurrent is not None and llm._compactor.n_compacted > 0:
        writer.section(_TURN, get_bounded_of(ctx, record.recurrent))
    if header.n_archived > 0:
        rows = ArchivedRows(ctx, header.n_archived)
        with writer.parts(_ROWS, rows.n_bytes) as write_part:
            for chunk in rows.chunks():
                rows.get(chunk)
                write_part(chunk.rows)
        writer.section(_END, get_part(ctx, END))


def require_fitting(llm: Any, session: SessionFile, header: Header) -> None:
    native.supported(llm._compactor.ctx)
    if header.model_id != identity(llm):
        raise session.error(f"is of the model {header.model_name}, not of {name_of(llm)}")
    for name in ("type_k", "type_v"):
        found, wanted = header.context.get(name), getattr(llm.context_params, name)
        if found != wanted:
            raise session.error(f"has rows of {name}={_kind(found)}, and this context has {_kind(wanted)}")
    if header.n_tokens > llm.n_ctx():
        raise session.error(f"holds {header.n_tokens} tokens, and the context has room for {llm.n_ctx()}")


def read_small(llm: Any, session: SessionFile, header: Header) -> Small:
    tokens = session.read(_TOKENS) or b""
    if len(tokens) != 4 * header.n_tokens:
        raise session.error(f"is damaged: it has not the {header.n_tokens} tokens that it should")
    held = np.frombuffer(tokens, dtype="<i4")
    with explained(session):
        llm._context.require_known(held)
    logits, prompt = _row(llm, session, _LOGITS), _row(llm, session, _PROMPT)
    if header.n_tokens == header.prompt.n_tokens and prompt is None:
        prompt = logits
    return Small(held, logits, prompt)


def read(llm: Any, session: SessionFile, header: Header) -> Snapshot | None:
    """Into an empty context. Returns the record of recurrent layers at the prompt's end."""
    ctx, recurrent = llm._compactor.ctx, None
    set_part(ctx, CELLS, session.read(_CELLS) or b"\0")
    numbers = native.get_numbers(ctx)
    if llm._bounded:
        turn = session.read(_TURN)
        if turn is not None:
            set_part(ctx, BOUNDED, turn)
            if llm._bounded.n_held != numbers.n_prompt:
                raise session.error("is damaged: a recurrent state is not of the prompt's end")
            recurrent = llm._bounded.snapshot()
        set_part(ctx, BOUNDED, session.read(_BOUNDED) or b"\0")
    n_prompt = numbers.n_prompt or header.prompt.n_tokens
    if {numbers.n_tokens, llm._bounded.n_held} != {header.n_tokens} or n_prompt != header.prompt.n_tokens:
        raise session.error("is damaged: its parts are of different lengths")
    if header.n_archived > 0 and llm._compactor.has_archive:
        if header.n_archived != numbers.n_prompt:
            raise session.error("is damaged: what it has archived is not the prompt")
        _read_archive(ctx, session, header.n_archived)
    return recurrent


def _read_archive(ctx: int, session: SessionFile, n: int) -> None:
    rows = ArchivedRows(ctx, n)
    if session.size(_ROWS) != rows.n_bytes or _END not in session:
        raise session.error("is damaged: its archive is not complete")
    with session.parts(_ROWS) as fill:
        for chunk in rows.chunks():
            fill(chunk.rows)
            rows.set(chunk)
    set_part(ctx, END, session.read(_END) or b"\0")


def _row(llm: Any, session: SessionFile, name: str) -> Row | None:
    data = session.read(name)
    if data is None:
        return None
    if len(data) != 4 * llm._n_vocab:
        raise session.error(f"is damaged: its section {name!r} is not of {llm._n_vocab} tokens")
    return np.frombuffer(data, dtype="<f4").astype(np.float32)


def _kind(number: int | None) -> str:
    return next((text for text, known in KV_TYPES.items() if known == number), str(number))


@contextmanager
def explained(session: SessionFile) -> Iterator[None]:
    """What is wrong with a session's content, in its own words."""
    with collected_errors() as lines:
        try:
            yield
        except (SessionError, ArchiveError, OutOfMemoryError):
            raise
        except (ArgumentError, StateError, InternalError) as error:
            reason = "; ".join([str(error), *lines])
            raise session.error(f"is damaged, or does not fit this context: {reason}") from error
