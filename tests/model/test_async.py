"""AsyncLlama: the event loop stays free, calls queue, and who is cancelled leaves the model usable."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from headkv_local import (
    AsyncLlama,
    Cancelled,
    CancelToken,
    ContextFullError,
    Llama,
    ModelError,
    Retention,
    StateError,
)
from helpers import random_tokens

SETTINGS: dict[str, Any] = {
    "n_ctx": 8192,
    "n_batch": 64,
    "n_threads": 1,
    "n_threads_batch": 1,
    "retention": Retention(budget=64),
}
MESSAGES = [{"role": "user", "content": "Why is the sea salt?"}]


def run(main: Callable[[AsyncLlama], Coroutine[Any, Any, None]], path: Path, **settings: Any) -> None:
    async def opened() -> None:
        async with await AsyncLlama.open(path, **(SETTINGS | settings)) as llm:
            await main(llm)
        assert "headkv_0" not in [thread.name for thread in threading.enumerate() if thread.is_alive()]

    asyncio.run(asyncio.wait_for(opened(), 300))


@asynccontextmanager
async def ticking() -> AsyncIterator[list[float]]:
    """How late a task was that wants to run every five milliseconds, in seconds."""
    late: list[float] = []

    async def tick() -> None:
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.005)
            late.append(time.perf_counter() - before)

    task = asyncio.create_task(tick())
    try:
        yield late
    finally:
        task.cancel()


async def begun(task: asyncio.Task[Any], told: list[Any]) -> None:
    """Until on_prefill was called."""
    while not told:
        assert not task.done()
        await asyncio.sleep(0.001)


def test_the_event_loop_stays_free_while_a_prompt_is_read(tiny_path: Path) -> None:
    async def main(llm: AsyncLlama) -> None:
        told: list[tuple[int, int, bool]] = []

        def on_prefill(done: int, total: int) -> None:
            told.append((done, total, threading.current_thread() is threading.main_thread()))

        async with ticking() as late:
            await llm.prefill(random_tokens(6000), on_prefill=on_prefill)
            n_ticks = len(late)
        assert n_ticks >= 20
        assert told[0] == (0, 6000, True)
        assert told[-1] == (6000, 6000, True)  # came before the result
        assert len(told) > 50
        assert llm.cache_stats().compacted

    run(main, tiny_path)


def test_answers_are_those_of_llama(smollm2: Path) -> None:
    settings = SETTINGS | {"n_ctx": 1024, "n_batch": 512}
    with Llama(smollm2, **settings) as llama:
        wanted = llama.create_chat_completion(MESSAGES, max_tokens=12, temperature=0.0)
        text = wanted["choices"][0]["message"]["content"]
        tokens = llama.tokenize(b"The sea is")
        steps = llama.generate(tokens, temp=0.0)
        generated = [next(steps) for _ in range(5)]
        steps.close()

    async def main(llm: AsyncLlama) -> None:
        reply = await llm.create_chat_completion(MESSAGES, max_tokens=12, temperature=0.0)
        assert reply["choices"][0]["message"]["content"] == text
        pieces = []
        stream = await llm.create_chat_completion(MESSAGES, max_tokens=12, temperature=0.0, stream=True)
        async for chunk in stream:
            pieces.append(chunk["choices"][0]["delta"].get("content") or "")
        assert "".join(pieces) == text
        found = []
        async for token in llm.generate(tokens, temp=0.0):  # has no end
            found.append(token)
            if len(found) == 5:
                break
        assert found == generated
        whole = await llm.create_completion("The sea is", max_tokens=5, temperature=0.0)
        assert whole["usage"]["completion_tokens"] == 5

    run(main, smollm2, **settings)


@pytest.mark.parametrize("kind", ["prefill", "chat", "stream", "generate"])
def test_a_cancelled_task_stops_its_work(tiny_path: Path, kind: str) -> None:
    tokens = random_tokens(8000)
    content = "salt " * 1500

    async def main(llm: AsyncLlama) -> None:
        told: list[Any] = []

        def tell(*of: int) -> None:
            told.append(of)

        async def work() -> None:
            if kind == "prefill":
                await llm.prefill(tokens, on_prefill=tell)
            elif kind == "generate":
                async for _ in llm.generate(tokens, on_prefill=tell):
                    pass
            else:
                stream, messages = kind == "stream", [{"role": "user", "content": content}]
                reply = await llm.create_chat_completion(messages, stream=stream, on_prefill=tell)
                if stream:
                    async for _ in reply:
                        pass

        task = asyncio.create_task(work())
        await begun(task, told)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        n_read = await llm.run(lambda llama: llama.n_tokens)  # waits until the work has stopped
        assert n_read < 7000
        await llm.prefill(tokens[:500])
        assert llm.llm.n_tokens == 500

    run(main, tiny_path)


@pytest.mark.parametrize("kind", ["prefill", "stream", "generate"])
def test_a_token_around_a_call_stops_it(tiny_path: Path, kind: str) -> None:
    async def main(llm: AsyncLlama) -> None:
        told: list[Any] = []
        tell, stop = (lambda *of: told.append(of)), CancelToken()

        async def taken(stream: Any) -> None:
            async for _ in stream:
                pass

        with stop:
            if kind == "prefill":
                task = asyncio.create_task(llm.prefill(random_tokens(8000), on_prefill=tell))
            elif kind == "stream":
                stream = await llm.create_completion("salt " * 1500, stream=True, on_prefill=tell)
            else:
                stream = llm.generate(random_tokens(8000), on_prefill=tell)
        if kind != "prefill":
            task = asyncio.create_task(taken(stream))
        await begun(task, told)
        stop.cancel()
        with pytest.raises(Cancelled):
            await task
        assert llm.llm.n_tokens < 7000
        await llm.prefill(random_tokens(500))

    run(main, tiny_path)


def test_callers_come_in_their_order(tiny_path: Path) -> None:
    async def main(llm: AsyncLlama) -> None:
        done: list[int] = []

        async def call(i: int) -> None:
            await llm.prefill(random_tokens(300, seed=i))
            done.append(i)

        tasks = [asyncio.create_task(call(i)) for i in range(6)]
        await asyncio.sleep(0)
        tasks[3].cancel()  # waits still
        await asyncio.gather(*tasks, return_exceptions=True)
        assert done == [0, 1, 2, 4, 5]

    run(main, tiny_path)


def test_a_stream_that_nobody_takes_from_makes_way(tiny_path: Path) -> None:
    async def main(llm: AsyncLlama) -> None:
        tokens, steps = random_tokens(200), []
        stream = llm.generate(tokens, temp=0.0)
        steps.append(await anext(stream))
        await llm.prefill(random_tokens(300, seed=1))
        async for token in stream:  # goes on where it was
            steps.append(token)
            if len(steps) == 150:
                break
        await stream.aclose()

        def alone(llama: Llama) -> list[int]:
            llama.reset()
            found = llama.generate(tokens, temp=0.0)
            return [next(found) for _ in range(150)]

        assert steps == await llm.run(alone)

    run(main, tiny_path)


def test_leaving_the_loop_ends_the_stream(tiny_path: Path) -> None:
    async def main(llm: AsyncLlama) -> None:
        async for _ in llm.generate(random_tokens(100)):
            break
        gc.collect()
        while llm._begun:
            await asyncio.sleep(0.01)
        before = await llm.run(lambda llama: llama.n_tokens)
        await asyncio.sleep(0.05)
        assert before == await llm.run(lambda llama: llama.n_tokens)

    run(main, tiny_path)


def test_errors_are_raised_where_they_are_awaited(tiny_path: Path) -> None:
    async def main(llm: AsyncLlama) -> None:
        with pytest.raises(ContextFullError):
            await llm.prefill(random_tokens(9000))
        with pytest.raises(ContextFullError):
            await anext(llm.generate(random_tokens(9000)))
        with pytest.raises(ZeroDivisionError):
            await llm.run(lambda _: 1 // 0)
        await llm.prefill(random_tokens(100))

    run(main, tiny_path)
    with pytest.raises(ModelError, match="does not exist"):
        asyncio.run(AsyncLlama.open(tiny_path.with_name("missing.gguf")))


@pytest.mark.parametrize("stream", [False, True])
def test_what_a_callback_raises_stops_the_work(tiny_path: Path, stream: bool) -> None:
    async def main(llm: AsyncLlama) -> None:
        calls = []

        def fails(done: int, total: int) -> None:
            calls.append((done, total))
            raise ZeroDivisionError

        reading = llm.prefill(random_tokens(3000), on_prefill=fails)
        with pytest.raises(ZeroDivisionError):
            await (anext(llm.generate(random_tokens(3000), on_prefill=fails)) if stream else reading)
        reading.close()
        assert len(calls) == 1
        assert await llm.run(lambda llama: llama.n_tokens) < 3000
        await llm.prefill(random_tokens(100))

    run(main, tiny_path)


@pytest.mark.parametrize("kind", ["prefill", "stream"])
def test_cancel_and_close_during_work(tiny_path: Path, kind: str) -> None:
    async def main() -> None:
        llm = await AsyncLlama.open(tiny_path, **SETTINGS)
        told: list[Any] = []

        async def work() -> None:
            if kind == "prefill":
                await llm.prefill(random_tokens(8000), on_prefill=lambda *of: told.append(of))
            else:
                async for _ in llm.generate(random_tokens(8000), on_prefill=lambda *of: told.append(of)):
                    pass

        async def raises(error: type[Exception], of: Awaitable[Any]) -> None:
            with pytest.raises(error):
                await of

        task = asyncio.create_task(work())
        await begun(task, told)
        llm.cancel()
        await raises(Cancelled, task)

        told.clear()
        running, waiting = asyncio.create_task(work()), asyncio.create_task(work())
        await begun(running, told)
        await asyncio.gather(
            llm.close(), llm.close(), raises(Cancelled, running), raises(StateError, waiting)
        )
        await raises(StateError, llm.prefill([1]))
        await raises(StateError, anext(llm.generate([1])))
        await llm.close()

    asyncio.run(asyncio.wait_for(main(), 300))


def test_cancel_leaves_a_stream_that_waits_for_its_turn(tiny_path: Path) -> None:
    async def main(llm: AsyncLlama) -> None:
        free = threading.Event()
        before = asyncio.create_task(llm.run(lambda _: free.wait(60)))
        stream = llm.generate(random_tokens(100))
        waiting = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0.1)
        llm.cancel()
        free.set()
        await before
        assert isinstance(await waiting, int)
        await stream.aclose()

    run(main, tiny_path)


@pytest.mark.parametrize("how", ["cancel", "close", "token"])
def test_a_stopped_stream_hands_out_nothing_that_was_made_ahead(tiny_path: Path, how: str) -> None:
    async def main(llm: AsyncLlama) -> None:
        stop = CancelToken()
        with stop:
            stream = llm.generate(random_tokens(100))
        await anext(stream)
        await asyncio.sleep(0.3)
        if how == "close":
            await llm.close()
        else:
            (stop if how == "token" else llm).cancel()
        with pytest.raises(Cancelled):
            await anext(stream)

    run(main, tiny_path)


def test_a_load_that_nobody_waits_for_any_more(tiny_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = threading.Event()
    close = Llama.close

    def closing(self: Llama) -> None:
        close(self)
        closed.set()

    monkeypatch.setattr(Llama, "close", closing)

    async def main() -> None:
        task = asyncio.create_task(AsyncLlama.open(tiny_path, **SETTINGS))
        await asyncio.sleep(0)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert closed.wait(60)


def test_sessions(tiny_path: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.session"

    async def main(llm: AsyncLlama) -> None:
        await llm.prefill(random_tokens(300))
        await llm.save_session(file, messages=MESSAGES)
        async with await AsyncLlama.open_session(file) as again:
            assert again.llm.session_messages == MESSAGES
            assert again.llm.n_tokens == 300

    run(main, tiny_path)


def test_work_that_raises_stop_iteration(tiny_path: Path) -> None:
    async def main(llm: AsyncLlama) -> None:
        with pytest.raises(RuntimeError, match="StopIteration"):
            await llm.run(lambda _: next(iter(())))
        assert await llm.run(lambda llm: llm.n_tokens) == 0

    run(main, tiny_path)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_is_told(tiny_path: Path) -> None:
    program = """
import asyncio, os, sys, warnings
from headkv_local import AsyncLlama, StateError
warnings.simplefilter("ignore")
llm = asyncio.run(AsyncLlama.open(sys.argv[1], n_ctx=512, n_threads=1))
asyncio.run(llm.create_completion("hello", max_tokens=2))
child = os.fork()
if child == 0:
    told = 0
    for work in (lambda: llm.create_completion("hello"), lambda: llm.run(len), llm.generate([1]).__anext__):
        try:
            asyncio.run(asyncio.wait_for(work(), 30))
        except StateError as error:
            told += f"belongs to process {os.getppid()}" in str(error)
    asyncio.run(asyncio.wait_for(llm.close(), 30))
    os._exit(told)
code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
assert len(asyncio.run(llm.create_completion("hello"))["choices"]) == 1
asyncio.run(llm.close())
sys.exit(code)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tiny_path)], capture_output=True, text=True, timeout=200
    )
    assert (done.returncode, done.stderr) == (3, "")


ENDS = """
import asyncio, atexit, sys
from headkv_local import AsyncLlama, Retention
async def main():
    global llm, task
    llm = await AsyncLlama.open(sys.argv[1], n_ctx=8192, n_threads=1, retention=Retention(budget=64))
    begun = asyncio.Event()
    task = loop.create_task(llm.run(endless, on_prefill=lambda *_: begun.set()))
    await begun.wait()
def endless(llm):
    for _ in llm.generate([*range(5, 205)], temp=0.0):
        pass
loop = asyncio.new_event_loop()
loop.run_until_complete(main())
atexit.register(print, "ends")
"""


def test_work_stops_when_python_ends(tiny_path: Path) -> None:
    """Also where the event loop has ended before it, as that of a window that was closed."""
    program = [sys.executable, "-W", "ignore", "-c", ENDS, str(tiny_path)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=200)
    assert (done.returncode, done.stdout) == (0, "ends\n"), done.stderr


def test_a_coroutine_that_is_given_up_stops_its_work(tiny_path: Path) -> None:
    def endless(llm: Llama) -> None:
        for _ in llm.generate(random_tokens(200), temp=0.0):
            pass

    async def main(llm: AsyncLlama) -> None:
        given_up = llm.run(endless)
        given_up.send(None)  # up to where it waits
        given_up.close()
        assert await asyncio.wait_for(llm.run(lambda _: 5), 100) == 5

    run(main, tiny_path)
