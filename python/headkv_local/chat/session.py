"""The conversation: messages, attached documents, the model, and what a turn does to them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any, cast

from headkv_local import CacheStats
from headkv_local.chat.documents import Document, DocumentError, compose
from headkv_local.chat.model import ChatLlama, Meter
from headkv_local.chat.options import Options
from headkv_local.chat.repetition import LoopDetector
from headkv_local.chat.turn import Answer, Event, FinishReason, Prefill, Text
from headkv_local.chat.worker import Job
from headkv_local.errors import Cancelled, StateError

_ASKING_TOKENS = 64  # for the template, a short question and the beginning of an answer


class Session:
    """One chat with one model. Every failed turn leaves the conversation as it was before it."""

    def __init__(self, llm: ChatLlama, options: Options) -> None:
        self.llm = llm
        self.options = options
        self.budget = options.budget
        self.documents: list[Document] = []
        self._budget_waits = False
        self._messages: list[dict[str, Any]] = []
        self.clear()

    @property
    def turns(self) -> int:
        return sum(message["role"] == "user" for message in self._messages)

    @property
    def used_tokens(self) -> int:
        """Positions of the context that are taken."""
        return int(self.llm.n_tokens)

    def stats(self) -> CacheStats:
        return self.llm.cache_stats()

    def attach(self, document: Document) -> int:
        """Put `document` before the next question; its tokens. Raises DocumentError if there is no room."""
        n_ctx = self.llm.n_ctx()
        asking = min(_ASKING_TOKENS, n_ctx // 4)
        attached = sum(self.llm.count_tokens(other.text, n_ctx)[0] for other in self.documents)
        room = max(n_ctx - self.used_tokens - attached - asking, 0)
        tokens, exact = self.llm.count_tokens(document.text, room)
        if tokens > room:
            trained = self.llm.trained_tokens
            advice = (
                f"the model was trained for {trained} tokens, so give it a part of the document"
                if 0 < trained < tokens
                else "a larger --ctx at the start makes room"
            )
            raise DocumentError(
                f"'{document.name}' has {'' if exact else 'about '}{tokens} tokens, and the context "
                f"of {n_ctx} has room for {room}: {advice}"
            )
        self.documents.append(document)
        return tokens

    def clear(self) -> None:
        """Forget turns and documents; the next prompt starts with the whole context."""
        self.documents.clear()
        system = self.options.system
        self._messages = [{"role": "system", "content": system}] if system else []
        self.llm.reset()
        if self._budget_waits:
            self.llm.retention = self.options.retention(self.budget)
            self._budget_waits = False

    def set_budget(self, budget: int | str | None) -> bool:
        """Use `budget` for the prompts to come. False: what is kept was chosen already, so after clear().

        Raises ArgumentError, and nothing is changed then.
        """
        retention = self.options.retention(budget)
        try:
            self.llm.retention = retention
        except StateError:
            self._budget_waits = True
        else:
            self._budget_waits = False
        self.budget = budget
        return not self._budget_waits

    def ask(self, question: str, show: Callable[[Event | None], None]) -> Answer:
        """Answer `question`, preceded by the attached documents; runs `show` on every event.

        The turn is kept, also where it was stopped halfway: the next one goes on from the cache that it
        left. Stopped before its first token it leaves nothing but the documents, still attached.
        An answer that was stopped because it repeats itself is kept with the repeated text once.
        Raises HeadKVError; the turn is gone then, and the documents are still attached.
        """
        message = {"role": "user", "content": compose(self.documents, question)}
        messages = [*self._messages, message]
        self.llm.loops = LoopDetector(question, self._text_of)
        answer = Job(lambda job: self._answer(messages, job)).run(show)
        if answer.finish_reason == "interrupt" and answer.completion_tokens == 0:
            return answer
        loop = self.llm.meter.loop
        kept = loop.cut(answer.text) if loop is not None else answer.text
        self._messages = [*messages, {"role": "assistant", "content": kept}]
        self.documents.clear()
        return answer

    def _text_of(self, tokens: Sequence[int]) -> str:
        return self.llm.detokenize(list(tokens)).decode("utf-8", errors="ignore")

    def _answer(self, messages: list[dict[str, Any]], job: Job[Answer]) -> Answer:
        """Runs in the worker thread."""

        def watch_prefill(done: int, total: int) -> None:
            job.emit(Prefill(done, total))

        self.llm.watch_prefill = watch_prefill
        self.llm.meter = Meter(started=time.perf_counter())  # the job may be stopped before it generates
        pieces: list[str] = []
        finish: FinishReason = "interrupt"
        stream: Any = self.llm.create_chat_completion(
            messages=cast(Any, messages),
            stream=True,
            max_tokens=self.options.max_tokens,
            **self.llm.sampling.arguments(),
        )
        try:
            with closing(stream):
                for chunk in stream:
                    choice = chunk["choices"][0]
                    if piece := choice["delta"].get("content"):
                        pieces.append(piece)
                        job.emit(Text(piece))
                    if choice["finish_reason"] is not None:
                        finish = choice["finish_reason"]
                    elif self.llm.meter.loop is not None:
                        finish = "repetition"
                        break
        except Cancelled:
            finish = "interrupt"
        meter = self.llm.meter
        # The token that ends an answer is sampled but no part of it.
        completion = meter.sampled - (finish == "stop")
        return Answer(
            text="".join(pieces),
            finish_reason=finish,
            prompt_tokens=meter.prompt_tokens,
            read_tokens=meter.read_tokens,
            reread_reason=self.llm.reread_reason if meter.read_tokens else None,
            completion_tokens=completion,
            prefill_seconds=meter.prefill_seconds(),
            decode_rate=meter.decode_rate,
            context_full=finish == "length" and not 0 < self.options.max_tokens <= completion,
            stats=self.llm.cache_stats(),
        )
