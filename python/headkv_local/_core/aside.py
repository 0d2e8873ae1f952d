"""A turn makes way for other calls: what the context holds of it is set aside, and brought back later.

`llm` is a Llama; its context is used by nobody else meanwhile.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llama_cpp.llama import LlamaState

from ..errors import Cancelled, StateError, StateMismatchError
from ..stats import PromptRecord
from . import states
from .turns import Turn


@dataclass
class _Aside:
    """What a suspended stream needs to go on."""

    state: LlamaState
    prompt: PromptRecord
    sampler: Any
    n_logits: int
    cancelled: bool


def set_aside(llm: Any, turn: Turn) -> None:
    cancelled = llm._lifetime.cancelled
    llm._prompts.announced()
    llm._lifetime.forget_cancel()
    try:
        state = states.hold(llm, states.capture(llm, archive=False))
    except (MemoryError, StateMismatchError):
        turn.lost = True
    else:
        record = llm._prompts.record
        turn.aside = _Aside(state, record, llm._sampler, llm._tokens.n_logits, cancelled)


def bring_back(llm: Any, turn: Turn) -> None:
    """If others have used the context since the last step of the turn."""
    if turn.lost:
        raise StateError("another call came between, and there was no memory to set this stream aside")
    aside, turn.aside = turn.aside, None
    if aside is None:
        return
    restore(llm, aside.state, aside.prompt)
    llm._sampler = aside.sampler
    if aside.cancelled:
        raise Cancelled("cancelled")
    if llm.draft_model is not None:  # what of the drafts is right is still to be sampled
        start = llm.n_tokens - aside.n_logits
        again = llm.input_ids[start : llm.n_tokens].tolist()
        if (start > 0 or llm._compactor.n_compacted == 0) and llm._contents.truncate(start):
            llm._decoder.evaluate(again)


def restore(llm: Any, state: LlamaState, prompt: PromptRecord) -> None:
    """A state that was captured or loaded takes the place of what the context holds."""
    llm.reset()
    llm._tokens.n_logits = 0  # whatever there was of them
    states.restore(llm, state)
    llm._prompts.record = prompt
