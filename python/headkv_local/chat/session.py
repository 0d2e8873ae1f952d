"""The conversation: turns, attached documents, the model, and what a question does to them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any, Final, cast

from headkv_local import CacheStats
from headkv_local.chat.archive import Archive
from headkv_local.chat.documents import Document, DocumentError, compose
from headkv_local.chat.model import ChatLlama, Meter
from headkv_local.chat.options import MEMORY, Options
from headkv_local.chat.repetition import LoopDetector
from headkv_local.chat.saved import SavedChat
from headkv_local.chat.turn import Answer, Event, FinishReason, Notice, Prefill, Text, Turn
from headkv_local.chat.worker import Job
from headkv_local.errors import ArchiveError, Cancelled, StateError

Show = Callable[[Event | None], None]

_ASKING_TOKENS: Final = 64  # for the template, a short question and the beginning of an answer


class Session:
    """One chat with one model. Every failed turn leaves the conversation as it was before it.

    archive: that prompts of `llm` are read with.
    """

    def __init__(self, llm: ChatLlama, options: Options, archive: Archive) -> None:
        self.llm = llm
        self.options = options
        self.archive = archive
        self.budget = options.budget
        self.system = options.system
        self.documents: list[Document] = []
        self._budget_waits = False
        self._turns: list[Turn] = []

    @property
    def turns(self) -> int:
        return len(self._turns)

    @property
    def answered(self) -> tuple[Turn, ...]:
        return tuple(self._turns)

    @property
    def used_tokens(self) -> int:
        """Positions of the context that the chat takes."""
        return self._turns[-1].used if self._turns else 0

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
        self._turns.clear()
        self.llm.reset()
        if self._budget_waits:
            self._retain(self.budget)
            self._budget_waits = False

    def set_budget(self, budget: int | str | None) -> bool:
        """Use `budget` for the prompts to come. False: what is kept was chosen already, so after clear().

        Raises ArgumentError and ArchiveError, and nothing is changed then.
        """
        try:
            self._retain(budget)
        except StateError:
            self._budget_waits = True
        else:
            self._budget_waits = False
        self.budget = budget
        return not self._budget_waits

    def _retain(self, budget: int | str | None) -> None:
        with self.archive.being_made():
            self.llm.retention = self.options.retention(budget, self.archive.where)

    def ask(self, question: str, show: Show) -> Answer:
        """Answer `question`, preceded by the attached documents; runs `show` on every event.

        The turn is kept, also where it was stopped halfway: the next one goes on from the cache that it
        left. Stopped before its first token it leaves nothing but the documents, still attached.
        An answer that was stopped because it repeats itself is kept with the repeated text once.
        Raises HeadKVError; the turn is gone then, and the documents are still attached.
        """
        answer, turn = self._ask(self._turns, tuple(self.documents), question, show)
        if turn is not None:
            self._turns.append(turn)
            self.documents.clear()
        return answer

    def again(self, show: Show) -> Answer:
        """Answer the last question anew; as ask(), but the former answer stays until another one has begun.

        Raises StateError where there is none, and what ask() raises.
        """
        if not self._turns:
            raise StateError("there is no answer yet")
        last = self._turns[-1]
        answer, turn = self._ask(self._turns[:-1], last.documents, last.question, show)
        if turn is not None:
            self._turns[-1] = turn
        return answer

    def undo(self) -> Turn:
        """Take back the last question and its answer; its documents are attached again.

        Returns it. Raises StateError where there is none.
        """
        if not self._turns:
            raise StateError("there is no question to take back")
        turn = self._turns.pop()
        self.documents[:0] = turn.documents
        return turn

    def resume(self, path: str, chat: SavedChat) -> str:
        """Go on with `chat`, whose session is in the file `path`, in place of what is here.

        Returns what the user should know, "" for nothing. Raises SessionError, and the chat is as it was.
        """
        notice = ""
        try:
            self.llm.load_session(path)
        except (ArchiveError, MemoryError) as error:
            if not self._without_archive(error):
                raise
            notice = self.archive.told
            self.llm.load_session(path)
        if self.options.seed is not None:
            self.llm.set_seed(self.options.seed)
        self.system = chat.settings["system"]
        self._turns, self.documents = list(chat.turns), list(chat.documents)
        return notice

    def _ask(
        self, before: Sequence[Turn], documents: tuple[Document, ...], question: str, show: Show
    ) -> tuple[Answer, Turn | None]:
        """The answer, and the turn that it makes; None where it was stopped before its first token."""
        messages = [*self.messages(before), _asking(documents, question)]

        def run() -> Answer:
            self.llm.loops = LoopDetector(question, self._text_of)
            return Job(lambda job: self._answer(messages, job)).run(show)

        try:
            answer = run()
        except (ArchiveError, MemoryError) as error:
            if not self._without_archive(error):
                raise
            show(Notice(self.archive.told))
            answer = run()
        if self.archive.where is not None and self.llm.retention is not None and self._archive_now() is None:
            self.archive.give_up("the answer could not be added to it")
            show(Notice(self.archive.told))
        if answer.finish_reason == "interrupt" and answer.completion_tokens == 0:
            return answer, None
        loop = self.llm.meter.loop
        kept = loop.cut(answer.text) if loop is not None else answer.text
        used = int(self.llm.n_tokens)
        return answer, Turn(documents=documents, question=question, answer=kept, used=used)

    def messages(self, turns: Sequence[Turn]) -> list[dict[str, Any]]:
        """What the model reads of them, with the system message."""
        messages: list[dict[str, Any]] = []
        if self.system:
            messages.append({"role": "system", "content": self.system})
        for turn in turns:
            messages += [
                _asking(turn.documents, turn.question),
                {"role": "assistant", "content": turn.answer},
            ]
        return messages

    def _archive_now(self) -> str | None:
        """Where the rows are; a long answer may have given them up."""
        retention = self.llm.retention
        return None if retention is None or retention.archive is None else str(retention.archive)

    def _without_archive(self, error: Exception) -> bool:
        """Give up the archive, if it may be what has failed. Whether it was."""
        retention = self.llm.retention
        if retention is None or retention.archive is None:
            return False
        if not isinstance(error, ArchiveError) and self.archive.where != MEMORY:
            return False
        self.archive.give_up(
            str(error) if isinstance(error, ArchiveError) else "there is not enough memory for it"
        )
        self.llm.retention = self.options.retention(retention.budget)
        return True

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
            archive=self._archive_now(),
            context_full=finish == "length" and not 0 < self.options.max_tokens <= completion,
            stats=self.llm.cache_stats(),
        )


def _asking(documents: Sequence[Document], question: str) -> dict[str, Any]:
    return {"role": "user", "content": compose(documents, question)}
