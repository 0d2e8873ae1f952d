"""Tokens evaluated in pieces, so that it can be cancelled, and with errors that leave the context usable."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from ..errors import Cancelled
from .bounded import Snapshot
from .compactor import Compactor
from .contents import Contents
from .failures import decode_error
from .lifetime import Lifetime
from .logging import collected_errors
from .threads import Threads

_ONE_PART: Final = 256  # cells of a full cache that one thread looks at alone, whatever their number


@dataclass
class _Step:
    """What is decoded now."""

    piece: Sequence[int] = ()
    before: Snapshot | None = None
    """What bounded layers held before it."""


class Decoder:
    """Whatever goes wrong: the tokens that count and the KV cache agree, and the next call works."""

    def __init__(
        self, contents: Contents, compactor: Compactor, threads: Threads, lifetime: Lifetime
    ) -> None:
        self._contents, self._context = contents, contents.context
        self._tokens, self._bounded = contents.tokens, contents.bounded
        self._compactor, self._threads, self._lifetime = compactor, threads, lifetime

    def evaluate(self, tokens: Sequence[int], done: Callable[[int], None] = lambda n: None) -> None:
        """After those that count, in pieces of n_batch tokens. done: called with the size of each piece."""
        context, held = self._context, self._tokens
        context.require_generating("no text can be generated: ")
        context.require_known(tokens)
        context.require_at_once(min(len(tokens), context.n_batch), "a batch has")
        self._contents.require_room(len(tokens))
        with self._in_step() as step:
            for start in range(0, len(tokens), context.n_batch):
                if self._lifetime.cancelled:
                    raise Cancelled("cancelled")
                piece = tokens[start : start + context.n_batch]
                held.n_logits = 0
                if len(piece) == 1:
                    self._threads.fit(context.pointer, self._adds_up_alike)
                # a single token is not worth a copy of a recurrent state: the native library finishes it
                before = self._bounded.snapshot() if self._bounded.recurrent and len(piece) > 1 else None
                step.piece, step.before = piece, before
                context.decode(piece, held.n_tokens)
                held.append(piece)
                if context.logits_all:
                    held.scores[held.n_tokens - len(piece) : held.n_tokens] = context.all_logits(len(piece))
                held.evaluated(n_logits=len(piece) if context.logits_all else 1)
                step.piece, step.before = [], None
                done(len(piece))

    @contextmanager
    def in_one_call(self) -> Iterator[None]:
        """Meanwhile the native library reads a prompt by itself, and calls back."""
        self._threads.fit_prompt(self._context.pointer)
        try:
            with self._lifetime.alone():
                yield
        except Cancelled:
            self._lifetime.forget_cancel()
            raise

    def _adds_up_alike(self) -> bool:
        """Whether any number of threads decodes a token to the same logits: flash attention over more cells,
        also those of a sliding window, adds up as many parts as there are threads."""
        return (
            self._tokens.n_tokens < _ONE_PART
            or not self._context.flash_attn
            or (self._compactor.n_compacted > 0 and self._bounded.window == 0)
        )

    @contextmanager
    def _in_step(self) -> Iterator[_Step]:
        """If decoding fails, drop what does not count, and say what went wrong."""
        step, lines = _Step(), list[str]()
        try:
            with collected_errors() as lines:
                yield step
        except BaseException as error:
            raised = decode_error(error, lines)
            if isinstance(raised, Cancelled):
                self._lifetime.forget_cancel()
            self._drop_unfinished(step)
            if raised is error:
                raise
            raise raised from error

    def _drop_unfinished(self, step: _Step) -> None:
        """After a decode that failed: the tokens and the memory agree again, and nothing that was read is
        lost.

        llama.cpp has taken back the ubatch that failed, but from a recurrent state it cannot. What of the
        piece was decoded before that stays where a sliding window cannot go back so far.
        """
        held = self._tokens
        if step.before is not None:
            self._bounded.put_back(step.before)
        elif not self._bounded.reaches(held.n_tokens):
            held.append(step.piece[: max(0, self._bounded.n_held - held.n_tokens)])
        if not self._contents.truncate(held.n_tokens):
            self._contents.reset()
