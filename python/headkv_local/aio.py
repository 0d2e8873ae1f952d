"""AsyncLlama: a Llama for programs with an event loop, which stays free while the model works."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import Context, copy_context
from typing import Any, TypeVar
from weakref import WeakSet

from ._core.cancel import CancelToken
from ._core.stream import Stream
from .errors import Cancelled, StateError
from .llama import Llama
from .stats import CacheStats

__all__ = ["AsyncLlama"]

OnPrefill = Callable[[int, int], None]

_T = TypeVar("_T")

_open_now: WeakSet[AsyncLlama] = WeakSet()


def _stop_all() -> None:
    """Python waits for the threads of executors when it ends: what they do is stopped before that."""
    for one in tuple(_open_now):
        one._llm._lifetime.stop()


# what was registered last runs first, and the module of executors registers its wait; the public atexit is
# called after that
threading._register_atexit(_stop_all)  # type: ignore[attr-defined]


class AsyncLlama:
    """A Llama with a thread of its own. All its work is done there, one call after another as they came.

        async with await AsyncLlama.open("model.gguf", n_ctx="auto", retention=Retention()) as llm:
            reply = await llm.create_chat_completion(messages)
            async for chunk in await llm.create_chat_completion(messages, stream=True):
                ...

    A task that is cancelled while it waits stops its work, and only that: what has not begun never does, and
    the model can be used as after Llama.cancel(). Errors are raised where they are awaited. A stream that
    nobody takes from makes way for others after a second, 64 items ahead; leaving its loop ends it. Calls may
    come from several tasks, and event loops. A CancelToken that is entered where one is made stops it too.

    on_prefill: called as (done, total) tokens on the caller's event loop, before the result comes. What it
    raises stops the work, and is raised where that is awaited.
    """

    def __init__(self, llm: Llama, worker: ThreadPoolExecutor, on_prefill: OnPrefill | None) -> None:
        """open() and open_session() make one."""
        self._llm, self._worker, self._on_prefill = llm, worker, on_prefill
        self._begun: set[CancelToken] = set()  # of what runs, and of streams, also between their steps
        self._closing: Future[None] | None = None
        _open_now.add(self)

    @classmethod
    async def open(
        cls, model_path: str | os.PathLike[str], *, on_prefill: OnPrefill | None = None, **kwargs: Any
    ) -> AsyncLlama:
        """Load a model. kwargs: of Llama. Where the task is cancelled, the model goes once it is loaded."""
        return await cls._made(lambda: Llama(model_path, **kwargs), on_prefill)

    @classmethod
    async def open_session(
        cls,
        path: str | os.PathLike[str],
        model_path: str | os.PathLike[str] | None = None,
        *,
        on_prefill: OnPrefill | None = None,
        **kwargs: Any,
    ) -> AsyncLlama:
        """As Llama.open_session()."""
        return await cls._made(lambda: Llama.open_session(path, model_path, **kwargs), on_prefill)

    @classmethod
    async def _made(cls, make: Callable[[], Llama], on_prefill: OnPrefill | None) -> AsyncLlama:
        worker = ThreadPoolExecutor(1, thread_name_prefix="headkv")
        loading = worker.submit(make)
        try:
            return cls(await asyncio.wrap_future(loading), worker, on_prefill)
        except BaseException:
            loading.add_done_callback(_close_loaded)  # nobody takes it any more
            worker.shutdown(wait=False)
            raise

    async def __aenter__(self) -> AsyncLlama:
        self._require_open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def llm(self) -> Llama:
        """The Llama itself, for what may be called from any thread: tokenize(), cache_stats(), shape, ..."""
        return self._llm

    def cache_stats(self) -> CacheStats:
        """As Llama.cache_stats(), at any time."""
        return self._llm.cache_stats()

    async def run(self, work: Callable[[Llama], _T], *, on_prefill: OnPrefill | None = None) -> _T:
        """work(llm) in the model's thread, when it is its turn: for all that has no method here.

        await llm.run(lambda llm: llm.load_session("a.session"))
        """
        self._require_open()
        token = CancelToken()
        told = _Told(on_prefill or self._on_prefill, token)

        def job() -> _T:
            self._begun.add(token)
            try:
                with self._working(token, told):
                    return work(self._llm)
            except StopIteration as error:  # no future takes one
                raise RuntimeError("the work has raised StopIteration") from error
            finally:
                self._begun.discard(token)

        try:
            submitted = self._worker.submit(copy_context().run, job)
        except RuntimeError:  # another thread has closed it meanwhile
            self._require_open()
            raise
        try:
            with told.raising():
                return await asyncio.wrap_future(submitted)
        except (asyncio.CancelledError, GeneratorExit):  # also of a task that is given up
            token.cancel()
            raise

    async def prefill(
        self,
        tokens: Sequence[int],
        question: slice | Sequence[slice] | None = None,
        messages: Sequence[Mapping[str, Any]] = (),
        *,
        on_prefill: OnPrefill | None = None,
    ) -> None:
        """As Llama.prefill()."""
        await self.run(lambda llm: llm.prefill(tokens, question, messages), on_prefill=on_prefill)

    async def create_chat_completion(
        self, messages: Any, *, stream: bool = False, on_prefill: OnPrefill | None = None, **kwargs: Any
    ) -> Any:
        """As Llama.create_chat_completion(): the answer, or with stream=True an asynchronous generator."""

        def begin(llm: Llama) -> Any:
            return llm.create_chat_completion(messages, stream=stream, **kwargs)

        if stream:
            return self._stream(begin, on_prefill, copy_context())
        return await self.run(begin, on_prefill=on_prefill)

    async def create_completion(
        self, prompt: Any, *, stream: bool = False, on_prefill: OnPrefill | None = None, **kwargs: Any
    ) -> Any:
        """As Llama.create_completion(): the answer, or with stream=True an asynchronous generator."""

        def begin(llm: Llama) -> Any:
            return llm.create_completion(prompt, stream=stream, **kwargs)

        if stream:
            return self._stream(begin, on_prefill, copy_context())
        return await self.run(begin, on_prefill=on_prefill)

    def generate(
        self, tokens: Sequence[int], *, on_prefill: OnPrefill | None = None, **kwargs: Any
    ) -> AsyncGenerator[int, None]:
        """As Llama.generate(): token after token, without an end until the loop over it is left."""
        return self._stream(lambda llm: llm.generate(tokens, **kwargs), on_prefill, copy_context())

    async def save_session(self, path: str | os.PathLike[str], **kwargs: Any) -> None:
        """As Llama.save_session()."""
        await self.run(lambda llm: llm.save_session(path, **kwargs))

    def cancel(self) -> None:
        """Make what has begun raise Cancelled where it is awaited. What waits for its turn is not stopped.

        A stream does so next, and does not hand out what it has made ahead.
        """
        for token in tuple(self._begun):
            token.cancel()

    async def close(self) -> None:
        """Stop what has begun, and free the model when it has stopped. Who waits for a turn gets StateError.

        Closing twice is fine, and so is cancel(); every other call raises StateError then.
        """
        if self._llm._lifetime.turns.forked:  # the model's thread is not in this process
            self._llm.close()
            return
        if self._closing is None:
            self._closing = self._worker.submit(self._llm.close)
            self.cancel()
            self._worker.shutdown(wait=False)
        await asyncio.shield(asyncio.wrap_future(self._closing))
        self._worker.shutdown()  # of a thread that has nothing left to do

    def _require_open(self) -> None:
        if self._closing is not None:
            raise StateError("this Llama has been closed")
        self._llm._lifetime.turns.require_own_process()

    @contextmanager
    def _working(self, token: CancelToken, told: _Told) -> Iterator[None]:
        """In the model's thread."""
        self._require_open()
        self._llm.on_prefill = told.tell
        with token:
            yield

    async def _stream(
        self, begin: Callable[[Llama], Any], on_prefill: OnPrefill | None, made_in: Context
    ) -> AsyncGenerator[Any, None]:
        """made_in: the context of the call, with the tokens that are entered there."""
        self._require_open()
        token = CancelToken()
        told = _Told(on_prefill or self._on_prefill, token)

        def step(work: Callable[[Llama], None]) -> None:
            self._begun.add(token)
            if token.cancelled:  # nobody takes it any more, so nobody discards the token after this
                self._begun.discard(token)
            with self._working(token, told):
                work(self._llm)

        stream = Stream(begin, step, lambda work: self._worker.submit(made_in.run, work))
        stops = (*made_in.run(CancelToken.entered), token)
        try:
            with told.raising():
                async for item in stream:
                    for stop in stops:  # what was made ahead is not handed out after a stop
                        stop._raise_if_cancelled()
                    yield item
        finally:
            token.cancel()
            self._begun.discard(token)
            stream.close()


class _Told:
    """Who wants to know how far a prompt is read, on the event loop that runs now; token: of that work."""

    def __init__(self, callback: OnPrefill | None, token: CancelToken) -> None:
        self._callback, self._token, self._loop = callback, token, asyncio.get_running_loop()
        self._failed: Exception | None = None

    def tell(self, done: int, total: int) -> None:
        """From any thread."""
        if self._callback is not None:
            with suppress(RuntimeError):  # the loop has been closed
                self._loop.call_soon_threadsafe(self._call, self._callback, done, total)

    def _call(self, callback: OnPrefill, done: int, total: int) -> None:
        if self._failed is None:
            try:
                callback(done, total)
            except Exception as error:  # of its own kind, where the work is awaited
                self._failed = error
                self._token.cancel()

    @contextmanager
    def raising(self) -> Iterator[None]:
        """Raises what it raised, in place of the Cancelled that came of it."""
        try:
            yield
        except Cancelled:
            if self._failed is None:
                raise
        if self._failed is not None:
            raise self._failed


def _close_loaded(loading: Future[Llama]) -> None:
    if not loading.cancelled() and loading.exception() is None:
        loading.result().close()
