"""The conversation: messages, attached documents, the model, and what a turn does to them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import Any, Literal, cast

from headkv_local import CacheStats
from headkv_local.chat.args import Options
from headkv_local.chat.documents import Document, compose
from headkv_local.chat.model import ChatLlama
from headkv_local.chat.turn import Answer, Event, Prefill, Text
from headkv_local.chat.worker import Job
from headkv_local.errors import Cancelled, StateError


class Session:
    """One chat with one model. Every failed turn leaves the conversation as it was before it."""

    def __init__(self, llm: ChatLlama, options: Options) -> None:
        self.llm = llm
        self.options = options
        self.budget = options.budget
        self.documents: list[Document] = []
        self._budget_waits = False
        self._messages: list[dict[str, str]] = []
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
        Raises HeadKVError; the turn and its documents are gone then.
        """
        documents, self.documents = self.documents, []
        message = {"role": "user", "content": compose(documents, question)}
        messages = [*self._messages, message]
        answer = Job(lambda job: self._answer(messages, job), self.llm.cancel).run(show)
        if answer.finish_reason == "interrupt" and answer.completion_tokens == 0:
            self.documents = documents
        else:
            self._messages = [*messages, {"role": "assistant", "content": answer.text}]
        return answer

    def _answer(self, messages: list[dict[str, str]], job: Job[Answer]) -> Answer:
        """Runs in the worker thread."""

        def watch_prefill(done: int, total: int) -> None:
            job.emit(Prefill(done, total))
            # A request that came before the model was at work is not remembered by it.
            if job.stopped:
                self.llm.cancel()

        self.llm.watch_prefill = watch_prefill
        pieces: list[str] = []
        finish: Literal["stop", "length", "interrupt"] = "interrupt"
        stream: Any = self.llm.create_chat_completion(
            messages=cast(Any, messages),
            stream=True,
            max_tokens=self.options.max_tokens,
            temperature=self.options.temp,
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
                    elif job.stopped:
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
            completion_tokens=completion,
            prefill_seconds=meter.prefill_seconds(),
            decode_rate=meter.decode_rate,
            context_full=finish == "length" and completion < self.options.max_tokens,
            stats=self.llm.cache_stats(),
        )
