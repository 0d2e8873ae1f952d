"""Saved states: what the context holds, with whose it is. Users and llama_cpp's caches pickle them."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final, NamedTuple

import llama_cpp
import numpy as np
from llama_cpp.llama import LlamaState

from ..errors import (
    ArgumentError,
    HeadKVError,
    InternalError,
    OutOfMemoryError,
    StateError,
    StateMismatchError,
)
from ..machine import memory_free
from ..wording import size
from .gguf import model_id
from .logging import collected_errors
from .native.archive import ArchivedRows, Chunk, Part, get_end, set_end
from .native.session import rows_id
from .session_header import context_of, difference

VERSION: Final = 2
_MARK: Final = "headkv_made_by"
_ARCHIVED: Final = "headkv_archived"
"""Of a state with an archive: the tokens in it, and the bytes that it takes at the end of llama_state."""
_NO_MEMORY: Final = re.compile(r"\bno memory\b|bad_alloc")
_HELD: Final = "headkv_held"
"""Of a state whose rows stay in the archive: what holds them there."""


def capture(llm: Any, archive: bool) -> LlamaState:
    """All of a Llama's context; archive: with the rows in its archive, behind what is llama.cpp's.

    Scores are rows of what logits_all=True keeps, (n_tokens or 0, n_vocab). OutOfMemoryError where what is
    free has no room for the archive.
    """
    ctx = llm._ctx.ctx
    n_state = llama_cpp.llama_state_get_size(ctx)
    archived = _Archived.of(llm) if archive else None
    n_more = archived.n_bytes if archived else 0
    free = memory_free()
    if free is not None and n_more > max(0, free - n_state):
        raise OutOfMemoryError(
            f"the archive of {size(n_more)} does not fit into a state, for {size(free)} are "
            "free: save_session() writes it to a file, and save_state(light=True) leaves it out",
            setting="",
        )
    held = bytearray(n_state + n_more)  # and no copy of it
    buffer = np.frombuffer(held, dtype=np.uint8)
    written = llama_cpp.llama_state_get_data(
        ctx, buffer.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8)), ctypes.c_size_t(n_state)
    )
    if (written == 0 and n_state > 0) or written > n_state:
        raise StateMismatchError("Failed to copy llama state data")
    if archived:
        archived.get(buffer[written : written + n_more])
    del buffer
    del held[written + n_more :]
    state = LlamaState(
        input_ids=llm.input_ids[: llm.n_tokens].copy(),
        scores=llm.scores[: llm.n_tokens if llm._logits_all else 0].copy(),
        n_tokens=llm.n_tokens,
        llama_state=held,
        llama_state_size=len(held),
        seed=llm._seed,
    )
    if archived:
        vars(state)[_ARCHIVED] = archived.rows.n_tokens, n_more
    return state


class _Archived:
    """The rows of a compacted prompt, and what stands beside them in an archive."""

    def __init__(self, ctx: int, n_tokens: int, n_end: int) -> None:
        self.rows, self._ctx = ArchivedRows(ctx, n_tokens), ctx
        self.n_bytes = self.rows.n_bytes + n_end

    @classmethod
    def of(cls, llm: Any) -> _Archived | None:
        ctx, n = llm._compactor.ctx, llm._compactor.n_archived
        return cls(ctx, n, len(get_end(ctx))) if n > 0 else None

    def get(self, to: Part) -> None:
        for part, chunk in self._chunks(to):
            self.rows.get(chunk)
            part[:] = chunk.rows
        to[self.rows.n_bytes :] = get_end(self._ctx)

    def set(self, data: Part) -> None:
        for part, chunk in self._chunks(data):
            chunk.rows[:] = part
            self.rows.set(chunk)
        set_end(self._ctx, data[self.rows.n_bytes :])

    def _chunks(self, data: Part) -> Iterator[tuple[Part, Chunk]]:
        start = 0
        for chunk in self.rows.chunks():
            yield data[start : start + chunk.rows.size], chunk
            start += chunk.rows.size


def restore(llm: Any, state: LlamaState) -> None:
    """Into an empty context, and into its archive if it has one, where rows may have stayed for it.

    StateMismatchError if llama.cpp refuses it, OutOfMemoryError if there is no memory for it, ArchiveError if
    its rows cannot be written; the context is empty then.
    """
    data = np.frombuffer(state.llama_state, dtype=np.uint8)
    n_archived, n_bytes = vars(state).get(_ARCHIVED, (0, 0))
    data, archived = np.split(data, [len(data) - n_bytes])
    with collected_errors() as lines:
        taken = llama_cpp.llama_state_set_data(
            llm._ctx.ctx, data.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8)), ctypes.c_size_t(len(data))
        )
    if taken != len(data):
        llama_cpp.llama_memory_clear(llm._ctx.memory, True)
        reason = "; ".join(lines) or "llama.cpp gave no reason"
        if _NO_MEMORY.search(reason):
            raise OutOfMemoryError(f"there is no memory to load the state into: {reason}")
        raise StateMismatchError(
            f"the state does not fit this model and context: Failed to set llama state data ({reason})"
        )
    if n_archived > 0 and llm._compactor.has_archive:
        try:
            rows = ArchivedRows(llm._compactor.ctx, n_archived)
            _Archived(llm._compactor.ctx, n_archived, n_bytes - rows.n_bytes).set(archived)
        except BaseException as error:
            llama_cpp.llama_memory_clear(llm._ctx.memory, True)
            if not isinstance(error, ArgumentError | StateError | InternalError):
                raise
            raise StateMismatchError(
                f"the state is damaged, or does not fit this context: {error}"
            ) from error
    n = state.n_tokens
    llm._tokens.take(state.input_ids[:n])
    if llm._logits_all:
        n_rows = min(n, len(state.scores))
        llm.scores[:n_rows] = state.scores[:n_rows]
        llm._tokens.unscored(n_rows)
    llm._compactor.restore(vars(state).get(_HELD))


def sign(llm: Any, state: LlamaState) -> LlamaState:
    vars(state)[_MARK] = {
        "version": VERSION,
        "model_id": llm._weights.model,
        "model": name_of(llm),
        "rows": rows_id(llm._compactor.ctx),
        "context": context_of(llm),
        "adapter": llm._weights.adapter,
    }
    return state


def hold(llm: Any, state: LlamaState) -> LlamaState:
    """The rows that the archive has for it now stay there as long as the state does."""
    vars(state)[_HELD] = llm._compactor.hold()
    return state


def require_fitting(llm: Any, state: Any) -> None:
    """StateMismatchError for what is no state of this model, or one that is longer than the context."""
    if not isinstance(state, LlamaState):
        raise StateMismatchError(f"a {type(state).__name__} is no saved state")
    made_by = vars(state).get(_MARK)
    if made_by is None:
        raise StateMismatchError(
            "the state does not say which model it is of: it was saved by llama_cpp.Llama or by an older "
            "version of this package; save it again"
        )
    if made_by["version"] != VERSION:
        raise StateMismatchError(
            f"the state has format {made_by['version']}, and this version of headkv-local reads {VERSION}"
        )
    if made_by["model_id"] != llm._weights.model:
        raise StateMismatchError(f"the state is of the model {made_by['model']}, not of {name_of(llm)}")
    ours = context_of(llm), llm._weights.adapter
    if other := difference(made_by.get("context", {}), made_by.get("adapter"), *ours):
        raise StateMismatchError(f"the state has rows of {other}")
    rows = made_by.get("rows"), rows_id(llm._compactor.ctx)  # None of a context that can never be compacted
    if "rows" in made_by and (rows[0] is None) != (rows[1] is None):
        can = ("can be", "cannot be") if rows[1] is None else ("cannot be", "can be")
        raise StateMismatchError(
            f"the state is of a cache that {can[0]} compacted, and this one {can[1]}: "
            "flash_attn may be another, which is on where there is a retention"
        )
    if None not in rows and rows[0] != rows[1]:
        raise StateMismatchError("the state has rows of other RoPE settings, or of other types of K and V")
    held = vars(state).get(_HELD)
    if held is not None and not llm._compactor.owns(held):
        raise StateMismatchError("the state's rows are in the archive of another Llama: it is for that alone")
    if not 0 <= state.n_tokens <= len(state.input_ids):
        raise StateMismatchError(
            f"the state is damaged: it has {len(state.input_ids)} of its {state.n_tokens} tokens"
        )
    if len(state.llama_state) <= (of_archive := vars(state).get(_ARCHIVED, (0, 0))[1]):
        raise StateMismatchError(
            f"the state is damaged: it has {len(state.llama_state)} bytes, and its archive alone {of_archive}"
        )
    if state.n_tokens > llm.n_ctx():
        raise StateMismatchError(
            f"the state holds {state.n_tokens} tokens, and the context has room for {llm.n_ctx()}"
        )


class Weights(NamedTuple):
    """Hashes of those that a Llama computes with, whatever becomes of their files."""

    model: str
    """Where they cannot be read from the file, what llama.cpp says of the model."""
    adapter: str | None


def weights_of(llm: Any) -> Weights:
    """When they have just been loaded."""
    model = repr(sorted((k, v) for k, v in llm.metadata.items() if k.startswith("general.")))
    adapter = None
    with suppress(HeadKVError):
        model = model_id(llm.model_path)
    with suppress(HeadKVError):
        adapter = model_id(llm.lora_path) if llm.lora_path else None
    return Weights(model, adapter)


def name_of(llm: Any) -> str:
    return f"{llm.metadata.get('general.name', 'without a name')} ({os.path.basename(llm.model_path)})"
