"""What the routes share: the models, the line in front of them, the thread that computes, and counts."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, Final

from .errors import Refusal
from .line import Line
from .models import Models
from .served import Asked
from .settings import ServerSettings
from .work import Job, Work

_logger = logging.getLogger("headkv_local.server")

GRACE: Final = 5
"""Seconds for answers that are on their way when the server stops."""


class Service:
    """models: may still be loaded. failed: why the first one could not be, once that is known."""

    def __init__(self, models: Models, settings: ServerSettings) -> None:
        self.models, self.settings = models, settings
        self.line = Line(settings.max_queue, settings.queue_timeout)
        self.started = time.time()
        self.ready = self.stopping = False
        self.failed: str | None = None
        self.on_failure: Callable[[], None] = lambda: None
        self.loop: asyncio.AbstractEventLoop | None = None
        """Once it runs."""
        self.responses: Counter[tuple[str, int]] = Counter()
        self.tokens: Counter[str] = Counter()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="headkv-model")
        self._works: set[Work] = set()
        self._coming: set[asyncio.Future[Any]] = set()  # of bodies that are not whole
        self._loading: asyncio.Task[None] | None = None
        self._idle: asyncio.TimerHandle | None = None

    @property
    def loading(self) -> bool:
        """Whether a model is, the first one or another: there is no conversation then that is not kept."""
        return self.models.loading or not (self.ready or self.failed)

    @asynccontextmanager
    async def lifespan(self, _: Any) -> AsyncIterator[None]:
        """Loads the first model while the server answers already; keeps the conversations at the end."""
        self.loop = asyncio.get_running_loop()
        self._loading = self.loop.create_task(self._load())
        yield
        self.stop()
        if self._idle is not None:
            self._idle.cancel()
        freed = self._thread.submit(self.models.free)
        if not self.loading:  # else nobody wants to wait for it
            await asyncio.wrap_future(freed)
        self._thread.shutdown(wait=False)

    async def _load(self) -> None:
        try:
            async with self.line.turn():
                await asyncio.get_running_loop().run_in_executor(self._thread, self.models)
            self.ready = True
        except Exception as error:
            self.failed = str(error) or type(error).__name__
            if not isinstance(error, Refusal):
                _logger.error("the model cannot be loaded", exc_info=error)
            self.on_failure()

    def work(self, job: Job) -> Work:
        """Begin with a request's work. Raises Refusal where that cannot be."""
        if self.stopping:
            raise _stops()
        if self.failed is not None:
            raise Refusal(503, self.failed, "model_failed")
        if not self.ready:
            raise Refusal(503, "the model is still being loaded", "loading", headers={"Retry-After": "1"})
        self.line.require_room()
        if self._idle is not None:
            self._idle.cancel()
        for other in self._works:
            if other.makes_way:
                other.stop()
            elif self.settings.interrupt_requests:
                other.give_way()
        return self._begin(Work(job, self.line, self._thread, self.settings.request_timeout))

    def _begin(self, work: Work) -> Work:
        self._works.add(work)
        work.when_done(self._ended)
        return work

    def _ended(self, work: Work) -> None:
        """After a request: if none comes for a while, the conversation is saved, lest it be lost."""
        self._works.discard(work)
        rests = not work.makes_way and all(other.makes_way for other in self._works)
        if rests and not self.stopping and self.settings.save_after > 0:
            self._idle = asyncio.get_running_loop().call_later(self.settings.save_after, self._save)

    def _save(self) -> None:
        def job(_: Work) -> Generator[Any, None, None]:
            self.models.save()
            yield

        self._begin(Work(job, self.line, self._thread, None, makes_way=True))

    def stop(self) -> None:
        """End all work; in the event loop, or in a signal handler."""
        self.stopping = True
        for work in tuple(self._works):
            work.stop(_stops())
        for part in tuple(self._coming):
            part.cancel()

    async def part_of_body(self, coming: Awaitable[Any]) -> Any:
        """What a client sends next. Raises Refusal once the server stops: some never send it."""
        part = asyncio.ensure_future(coming)
        self._coming.add(part)
        try:
            if self.stopping:
                part.cancel()
            return await part
        except asyncio.CancelledError:
            if self.stopping:
                raise _stops() from None
            raise
        finally:
            self._coming.discard(part)

    def count(self, asked: Asked) -> None:
        """The tokens of a request that has ended, however it has."""
        usage = asked.usage()
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        self.tokens["cached"] += cached
        self.tokens["read"] += asked.n_done
        self.tokens["generated"] += usage["completion_tokens"]


def _stops() -> Refusal:
    return Refusal(503, "the server stops", "stopping")
