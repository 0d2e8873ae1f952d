"""The model in a thread of its own. It takes jobs from the window, and answers with events.

Nothing here knows of Tk. A toolkit with another event loop needs another way to take the events only.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from conversations import Conversation, for_model

from headkv_local import (
    Cancelled,
    CancelToken,
    HeadKVError,
    Llama,
    Retention,
    SessionError,
    memory_estimate,
)

RETENTION = Retention(budget=256, archive="memory")
"""Each turn is read against all of the conversation; decoding looks at 256 entries per KV head."""

_BATCH = 128  # tokens between two steps of the progress bar
SAMPLING = {"temperature": 0.2, "repeat_penalty": 1.1, "max_tokens": 1024}


@dataclass(frozen=True)
class Loading:
    name: str
    needs: int  # bytes, at most


@dataclass(frozen=True)
class Loaded:
    name: str
    n_ctx: int


@dataclass(frozen=True)
class Reading:
    done: int
    total: int  # tokens


@dataclass(frozen=True)
class Piece:
    text: str


@dataclass(frozen=True)
class Ended:
    """An answer has. stopped: by the user; asked: whether the question counts as asked."""

    conversation: Conversation
    stopped: bool
    asked: bool


@dataclass(frozen=True)
class Memory:
    """Bytes of the KV cache: for all of the context, and now; and of the archive."""

    full: int
    now: int
    archive: int


@dataclass(frozen=True)
class Failed:
    text: str


@dataclass(frozen=True)
class NotLoaded:
    """ready: whether the model that was there before is there still."""

    text: str
    ready: bool


@dataclass(frozen=True)
class Closed:
    pass


Event = Loading | Loaded | NotLoaded | Reading | Piece | Ended | Memory | Failed | Closed


class Engine:
    """load(), ask(), stop() and close() return at once; what comes of them is in `events`."""

    def __init__(self) -> None:
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._llm: Llama | None = None
        self._holds: Conversation | None = None  # whose tokens the context holds
        self._stop = CancelToken()
        self._thread = threading.Thread(target=self._work, name="engine")
        self._thread.start()

    def load(self, path: Path) -> None:
        self._jobs.put(lambda: self._load(path))

    def ask(self, conversation: Conversation, question: str) -> None:
        self._stop = stop = CancelToken()
        self._jobs.put(lambda: self._ask(conversation, question, stop))

    def stop(self) -> None:
        """What runs, or waits to."""
        self._stop.cancel()

    def close(self) -> None:
        """Closed comes when the model is gone."""
        self.stop()
        self._jobs.put(None)

    def join(self) -> None:
        """Until the thread has ended."""
        self._thread.join()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
            except Exception as error:  # whatever it is: the thread goes on
                self.events.put(Failed(_sentence(error)))
        try:
            self._unload()
        finally:  # the window waits for it
            self.events.put(Closed())

    def _unload(self) -> None:
        llm, self._llm, self._holds = self._llm, None, None
        if llm is not None:
            llm.close()

    def _load(self, path: Path) -> None:
        try:
            memory_estimate(path, n_ctx=512)  # a file that is no model costs nobody the one that is there
            self._unload()
            needed = memory_estimate(path, n_ctx="auto", retention=RETENTION, n_batch=_BATCH)
            self.events.put(Loading(path.name, needed.total))
            self._llm = Llama(
                path,
                n_ctx=needed.n_ctx,
                n_batch=_BATCH,
                retention=RETENTION,
                on_prefill=lambda done, total: self.events.put(Reading(done, total)),
            )
        except Exception as error:
            self.events.put(NotLoaded(_sentence(error), ready=self._llm is not None))
            return
        self.events.put(Loaded(path.name, self._llm.n_ctx()))
        self._tell_memory()

    def _ask(self, conversation: Conversation, question: str, stop: CancelToken) -> None:
        message, answer = conversation.question(question), ""
        stopped = False
        try:
            with stop:
                llm = self._entered(conversation)
                for chunk in llm.create_chat_completion(
                    for_model([*conversation.messages, message]), stream=True, **SAMPLING
                ):
                    piece = chunk["choices"][0]["delta"].get("content")
                    if piece:
                        if not answer:
                            self._tell_memory()
                        answer += piece
                        self.events.put(Piece(piece))
        except Cancelled:
            stopped = True
        except Exception as error:  # the window waits for an end in any case
            self.events.put(Failed(_sentence(error)))
        if answer:  # also a part of one: the conversation goes on after it
            conversation.messages += [message, {"role": "assistant", "content": answer}]
            conversation.document = None
            self._save(conversation)
        self._tell_memory()
        self.events.put(Ended(conversation, stopped, asked=bool(answer)))

    def _entered(self, conversation: Conversation) -> Llama:
        """With the conversation in the context, from its session where there is one."""
        llm = self._llm
        if llm is None:
            raise HeadKVError("no model is loaded")
        if self._holds is not conversation:
            self._holds = None
            llm.reset()
            if conversation.path.exists():
                try:
                    llm.load_session(conversation.path)
                except SessionError as error:
                    self.events.put(Failed(f"The conversation is read anew: {error}"))
            self._holds = conversation
        return llm

    def _save(self, conversation: Conversation) -> None:
        if self._llm is not None:
            try:
                self._llm.save_session(conversation.path, messages=conversation.messages)
            except HeadKVError as error:
                self.events.put(Failed(f"The conversation was not saved: {error}"))

    def _tell_memory(self) -> None:
        if self._llm is not None:
            stats = self._llm.cache_stats()
            self.events.put(Memory(stats.full_bytes, stats.resident_bytes, stats.archive_bytes))


def _sentence(error: Exception) -> str:
    return str(error) if isinstance(error, HeadKVError) else f"{type(error).__name__}: {error}"
