"""Saved states: what the context holds, with whose it is. Users and llama_cpp's caches pickle them."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from typing import Any, Final

import llama_cpp
import numpy as np
from llama_cpp.llama import LlamaState

from ..errors import HeadKVError, StateMismatchError
from .gguf import model_id
from .logging import collected_errors

VERSION: Final = 1
_MARK: Final = "headkv_made_by"


def capture(llm: Any) -> LlamaState:
    """All of a Llama's context. Scores are rows of what logits_all=True keeps, (n_tokens or 0, n_vocab)."""
    ctx = llm._ctx.ctx
    size = llama_cpp.llama_state_get_size(ctx)
    buffer = np.empty(size, dtype=np.uint8)
    written = llama_cpp.llama_state_get_data(
        ctx, buffer.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8)), ctypes.c_size_t(size)
    )
    if (written == 0 and size > 0) or written > size:
        raise StateMismatchError("Failed to copy llama state data")
    return LlamaState(
        input_ids=llm.input_ids[: llm.n_tokens].copy(),
        scores=llm.scores[: llm.n_tokens if llm._logits_all else 0].copy(),
        n_tokens=llm.n_tokens,
        llama_state=buffer[:written].tobytes(),
        llama_state_size=written,
        seed=llm._seed,
    )


def restore(llm: Any, state: LlamaState) -> None:
    """Into an empty context. StateMismatchError if llama.cpp refuses it; the context is empty then."""
    with collected_errors() as lines:
        data = np.frombuffer(state.llama_state, dtype=np.uint8)
        taken = llama_cpp.llama_state_set_data(
            llm._ctx.ctx, data.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8)), ctypes.c_size_t(len(data))
        )
    if taken != state.llama_state_size:
        llama_cpp.llama_memory_clear(llm._ctx.memory, True)
        reason = "; ".join(lines) or "llama.cpp gave no reason"
        raise StateMismatchError(
            f"the state does not fit this model and context: Failed to set llama state data ({reason})"
        )
    n = state.n_tokens
    llm.input_ids[:n] = state.input_ids[:n]
    if llm._logits_all:
        n_rows = min(n, len(state.scores))
        llm.scores[:n_rows] = state.scores[:n_rows]
        llm.scores[n_rows:] = 0
    llm.n_tokens = n
    llm._requires_eval = True


def sign(llm: Any, state: LlamaState) -> LlamaState:
    vars(state)[_MARK] = {"version": VERSION, "model_id": identity(llm), "model": name_of(llm)}
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
    if made_by["model_id"] != identity(llm):
        raise StateMismatchError(f"the state is of the model {made_by['model']}, not of {name_of(llm)}")
    if len(state.input_ids) < state.n_tokens:
        raise StateMismatchError(
            f"the state is damaged: it has {len(state.input_ids)} of its {state.n_tokens} tokens"
        )
    if state.n_tokens > llm.n_ctx():
        raise StateMismatchError(
            f"the state holds {state.n_tokens} tokens, and the context has room for {llm.n_ctx()}"
        )


def identity(llm: Any) -> str:
    """A hash of the weights, looked up once. Where the file is gone, what llama.cpp says of the model."""
    if "headkv_identity" not in vars(llm):
        found = repr(sorted((k, v) for k, v in llm.metadata.items() if k.startswith("general.")))
        with suppress(HeadKVError):
            found = model_id(llm.model_path)
        vars(llm)["headkv_identity"] = found
    return str(vars(llm)["headkv_identity"])


def name_of(llm: Any) -> str:
    return f"{llm.metadata.get('general.name', 'without a name')} ({os.path.basename(llm.model_path)})"
