"""The Llama that is served: each request says what is kept for it, and learns what was read for it."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import llama_cpp

from .. import Llama, Retention, infill
from ..defaults import may_be_of_archive
from ..errors import ArchiveError, ArgumentError, ContextFullError
from ..tokens import logits_of
from .fitting import require_few, require_room, texts_of
from .keeper import Keeper
from .logprobs import Logprobs
from .shelf import Shelf

_logger = logging.getLogger("headkv_local.server")


@dataclass
class Asked:
    """One request. ready: called when its prompt fits and is read next."""

    retention: Retention | None
    ready: Callable[[], None] = lambda: None
    n_prompt: int = 0
    n_read: int = 0  # of the prompt, and what asks once more, if it stands before a document
    n_done: int = 0  # of these, so far
    n_text: int = 0  # characters of its prompt, where that is a text
    n_answer: int = 0
    end: str | None = None  # why its last completion has ended: "stop", "length"
    logprobs: Logprobs | None = field(default=None, repr=False)

    def usage(self) -> dict[str, Any]:
        """As OpenAI tells it; cached tokens are those of the prompt that were not read."""
        return {
            "prompt_tokens": self.n_prompt,
            "completion_tokens": self.n_answer,
            "total_tokens": self.n_prompt + self.n_answer,
            "prompt_tokens_details": {"cached_tokens": max(0, self.n_prompt - self.n_read)},
        }


class Served(Llama):
    """A Llama whose completions belong to conversations, while a request is answered()."""

    keeper: Keeper | None = None
    draws_seeds = False
    """Whether a request without a seed gets a new one; stock derives it from the one before."""
    _asked: Asked | None = None

    def keep(self, shelf: Shelf | None, aside_bytes: int | None) -> None:
        """From now on, conversations are kept apart. aside_bytes: of those that wait in memory."""
        self.keeper = Keeper(self, shelf, aside_bytes)

    @contextmanager
    def answered(self, asked: Asked) -> Iterator[None]:
        """Completions meanwhile are those of a request; one at a time."""

        def read(done: int, total: int) -> None:
            asked.n_read, asked.n_done = total, done

        self._asked, self.on_prefill = asked, read
        try:
            yield
        finally:
            self._asked = self.on_prefill = None
            if self.keeper is not None:
                self.keeper.settle()

    def tokenize(self, text: bytes, *args: Any, **kwargs: Any) -> list[int]:
        """As llama_cpp.Llama.tokenize(); of a request, no more than might fit."""
        if self._asked is not None:
            self._require_room(text.decode("utf-8", errors="replace"))
        return super().tokenize(text, *args, **kwargs)

    def create_chat_completion(self, messages: Any, *args: Any, **kwargs: Any) -> Any:
        """As Llama.create_chat_completion(), of messages that may fit."""
        if self._asked is not None:
            require_few(messages, self.n_ctx())
            self._require_room(texts_of(messages))
        return super().create_chat_completion(messages, *args, **kwargs)

    def _require_room(self, text: str) -> None:
        tokenize = super().tokenize
        require_room(lambda part: tokenize(part, False, True), text, self.n_ctx())

    def create_completion(self, prompt: Any, *args: Any, **kwargs: Any) -> Any:
        """As llama_cpp.Llama.create_completion(), in the conversation that the prompt goes on with."""
        asked = self._asked
        if asked is None:
            return super().create_completion(prompt, *args, **kwargs)
        if _tells_of_prompt(kwargs) and not (self._logits_all and asked.retention is None):
            raise ArgumentError(
                "echo with logprobs needs the logits of the whole prompt: start the server with --logits-all "
                "--budget full, or leave one of them out"
            )
        if kwargs.get("seed") is None and self.draws_seeds:
            kwargs["seed"] = secrets.randbits(32)
        asked.n_text = len(prompt) if isinstance(prompt, str) else 0
        if kwargs.get("suffix") is not None:
            if kwargs.get("echo"):
                raise ArgumentError("echo and suffix exclude each other: give one of them")
            prompt, kwargs = infill.prompt_of(self, prompt, kwargs["suffix"]), kwargs | {"suffix": None}
        tokens = prompt if isinstance(prompt, list) else self.tokenize(prompt.encode("utf-8"), True, True)
        if len(tokens) >= self.n_ctx():
            raise ContextFullError(
                f"Requested tokens ({len(tokens)}) exceed context window of {self.n_ctx()}"
            )
        while True:
            try:
                return self._completion(asked, tokens, True, prompt, *args, **kwargs)
            except (ArchiveError, MemoryError) as error:
                if asked.n_answer > 0 or not may_be_of_archive(error, asked.retention):
                    raise
                if self.keeper is None or not self.keeper.put_away():
                    _logger.warning("a conversation goes on without its archive: %s", error)
                    break
                _logger.info("conversations that waited in memory make room: %s", error)
        return self._completion(asked, tokens, False, prompt, *args, **kwargs)

    def _completion(
        self, asked: Asked, tokens: list[int], archive: bool, prompt: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """Of a stream the first chunk is made: what fails while the prompt is read is raised here.

        archive: False to go on from what is kept.
        """
        if self.keeper is not None and _tells_of_prompt(kwargs):
            self.keeper.leave(asked.retention)  # a session has no logits
        elif self.keeper is not None:
            self.keeper.prepare(tokens, asked.retention, archive)
        asked.n_read = asked.n_done = 0
        asked.ready()
        n_top = kwargs.get("logprobs")
        told = None if n_top is None or _tells_of_prompt(kwargs) else Logprobs(self, n_top, asked.n_text)
        asked.logprobs, asked.end = told, None
        made = super().create_completion(
            prompt, *args, **(kwargs if told is None else kwargs | {"logprobs": None})
        )
        if kwargs.get("stream"):
            return _noted(_begun(made), asked)
        choice = made["choices"][0]
        asked.end = choice["finish_reason"]
        if told is not None:
            choice["logprobs"] = told.of_text(made["usage"]["completion_tokens"])
        return made

    def generate(self, tokens: Sequence[int], *args: Any, **kwargs: Any) -> Generator[int, Any, None]:
        """As Llama.generate(); counts for the request that is answered."""
        asked = self._asked
        steps = super().generate(tokens, *args, **kwargs)
        return steps if asked is None else self._counted(steps, asked, len(tokens))

    def _counted(
        self, steps: Generator[int, Any, None], asked: Asked, n_prompt: int
    ) -> Generator[int, Any, None]:
        asked.n_prompt, asked.n_answer = n_prompt, 0
        try:
            for token in steps:
                if not llama_cpp.llama_vocab_is_eog(self._model.vocab, token):
                    asked.n_answer += 1
                    if asked.logprobs is not None:
                        asked.logprobs.add(token, logits_of(self))
                yield token
        finally:
            steps.close()


def _tells_of_prompt(kwargs: dict[str, Any]) -> bool:
    return bool(kwargs.get("echo")) and kwargs.get("logprobs") is not None


def _begun(chunks: Generator[Any, None, None]) -> Iterator[Any]:
    """With the first one made."""
    first = list(islice(chunks, 1))

    def rest() -> Iterator[Any]:
        with closing(chunks):
            yield from first
            yield from chunks

    return rest()


def _noted(chunks: Iterator[Any], asked: Asked) -> Iterator[Any]:
    for chunk in chunks:
        choice = chunk["choices"][0]
        asked.end = choice["finish_reason"]
        if asked.logprobs is not None:
            choice["logprobs"] = asked.logprobs.of_chunk()
        yield chunk
