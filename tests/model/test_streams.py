"""Generations that meet on one Llama: each answers as if it were alone, and nobody waits for ever."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest

from headkv_local import Cancelled, CancelToken, Llama, Retention, StateError
from headkv_local._core import turns
from headkv_local._core.turns import PATIENCE
from headkv_local.settings import KV_TYPES
from helpers import beside, last_logits, no_room_on_disk, random_tokens

Load = Callable[..., Llama]
PROMPTS = [random_tokens(200, seed=1), random_tokens(250, seed=2), random_tokens(20, seed=3)]
RETENTIONS = pytest.mark.parametrize("retention", [None, Retention(budget=32)], ids=["full", "compacted"])
N = 24


def answer(llm: Llama, prompt: list[int]) -> list[int]:
    llm.reset()
    return [token for _, token in zip(range(N), llm.generate(prompt, temp=0.0), strict=False)]


@RETENTIONS
@pytest.mark.parametrize("kind", ["stream", "whole", "generate"])
def test_threads_answer_after_each_other(
    load: Load, tiny_path: Path, retention: Retention | None, kind: str
) -> None:
    llm = load(tiny_path, retention=retention)

    def ask(prompt: list[int]) -> Any:
        if kind == "generate":
            return [token for _, token in zip(range(N), llm.generate(prompt, temp=0.0), strict=False)]
        result: Any = llm.create_completion(prompt, max_tokens=N, temperature=0.0, stream=kind == "stream")
        chunks = list(result) if kind == "stream" else [result]
        return "".join(chunk["choices"][0]["text"] for chunk in chunks)

    alone = [ask(prompt) for prompt in PROMPTS]
    with ThreadPoolExecutor(3) as pool:
        for _ in range(3):
            assert list(pool.map(ask, PROMPTS)) == alone


@RETENTIONS
def test_streams_that_one_thread_takes_in_turns(
    load: Load, tiny_path: Path, retention: Retention | None
) -> None:
    """Also where they sample: each has its own random numbers and repeat penalty."""
    llm = load(tiny_path, retention=retention)
    arguments: dict[str, Any] = {"temp": 1.5, "repeat_penalty": 1.3}

    def started(prompt: list[int]) -> Any:
        llm.set_seed(7)
        return zip(range(N), llm.generate(prompt, **arguments), strict=False)

    alone = [list(started(prompt)) for prompt in PROMPTS]
    together = list(zip_longest(*(started(prompt) for prompt in PROMPTS)))
    assert [list(column) for column in zip(*together, strict=True)] == alone


@RETENTIONS
def test_a_stream_outlives_whatever_comes_between(
    load: Load, tiny_path: Path, retention: Retention | None
) -> None:
    llm = load(tiny_path, retention=retention)
    wanted = answer(llm, PROMPTS[0])
    state = llm.save_state()
    between: list[Callable[[], Any]] = [
        llm.reset,
        lambda: llm.prefill(PROMPTS[1]),
        lambda: answer(llm, PROMPTS[1]),
        lambda: llm.load_state(state),
        lambda: llm.create_chat_completion([{"role": "user", "content": "hello"}], max_tokens=3),
        lambda: next(llm.generate(PROMPTS[2])),
        llm.save_state,
    ]
    stream = llm.generate(PROMPTS[0], temp=0.0)
    found = []
    for _, call in zip(range(N), between * 4, strict=False):
        found.append(next(stream))
        call()
    assert found == wanted


def test_who_samples_draws_for_himself(load: Load, tiny_path: Path) -> None:
    """By his own arguments, and nothing of a stream that made way, or of a generation that has ended."""
    llm = load(tiny_path, retention=Retention(budget=32))

    def started() -> Any:
        llm.set_seed(7)
        return llm.generate(PROMPTS[0], temp=1.5, repeat_penalty=1.3)

    stream = started()
    wanted = [next(stream) for _ in range(N)]
    stream.close()
    greedy = answer(llm, PROMPTS[1])[0]
    stream = started()
    found = []
    for _ in range(N):
        found.append(next(stream))
        llm.prefill(PROMPTS[1])
        assert llm.sample(temp=0.0) == greedy
    assert found == wanted
    stream.close()
    for kept in (Retention(budget=32), None):
        llm.reset()
        llm.retention = kept
        llm.set_seed(7)
        next(llm.generate(PROMPTS[1], temp=5.0))
        llm.prefill(PROMPTS[1])
        assert [llm.sample(temp=0.0) for _ in range(3)] == [greedy] * 3


@RETENTIONS
def test_a_stream_may_go_from_thread_to_thread(
    load: Load, tiny_path: Path, retention: Retention | None
) -> None:
    """As web servers take it; another request is answered meanwhile, when the stream has ended or rests."""
    llm = load(tiny_path, retention=retention)
    wanted, other = answer(llm, PROMPTS[0]), answer(llm, PROMPTS[1])
    stream = llm.generate(PROMPTS[0], temp=0.0)
    with ThreadPoolExecutor(4) as pool:
        found = [pool.submit(next, stream).result() for _ in range(5)]
        request = pool.submit(answer, llm, PROMPTS[1])
        found += [pool.submit(next, stream).result() for _ in range(N - 5)]
        assert request.result(60) == other
        found.append(pool.submit(next, stream).result())
    assert found[:N] == wanted


@RETENTIONS
@pytest.mark.parametrize("n_threads", [1, 2, 5])
def test_streams_share_a_pool_of_threads(
    load: Load, tiny_path: Path, retention: Retention | None, n_threads: int
) -> None:
    """As asynchronous servers take them: each next() in the thread that is free, several at once."""
    llm = load(tiny_path, retention=retention)
    wanted = [answer(llm, prompt) for prompt in PROMPTS[:2]]

    async def take(pool: ThreadPoolExecutor, prompt: list[int]) -> list[int]:
        stream = llm.generate(prompt, temp=0.0)
        call = asyncio.get_running_loop().run_in_executor
        return [await call(pool, next, stream) for _ in range(N)]

    async def take_all() -> list[list[int]]:
        with ThreadPoolExecutor(n_threads) as pool:
            return await asyncio.gather(*(take(pool, prompt) for prompt in PROMPTS[:2]))

    assert asyncio.run(asyncio.wait_for(take_all(), 60)) == wanted


def test_nobody_waits_for_a_stream_that_waits_for_him(load: Load, tiny_path: Path) -> None:
    """Its thread takes the next token only when another thread has an answer. An abandoned one never does."""
    llm = load(tiny_path, retention=Retention(budget=32))
    wanted, other = answer(llm, PROMPTS[0]), answer(llm, PROMPTS[1])
    stream = llm.generate(PROMPTS[0], temp=0.0)
    found = [next(stream)]
    holder = llm._lifetime.turns._holder
    assert holder is not None
    stepped = holder.stepped
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(answer, llm, PROMPTS[1]).result(60) == other
    assert time.monotonic() - stepped >= PATIENCE
    assert [*found, *(next(stream) for _ in range(N - 1))] == wanted


def test_a_stream_that_is_dropped_lets_the_next_one_in(
    load: Load, tiny_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "PATIENCE", 1e6)  # that is not what lets it in
    llm = load(tiny_path, retention=Retention(budget=32))
    wanted = answer(llm, PROMPTS[1])
    dropped: list[Any] = [llm.create_completion(PROMPTS[0], max_tokens=N, stream=True)]
    next(dropped[0])
    found: list[int] = []
    with beside(lambda: found.extend(answer(llm, PROMPTS[1]))) as raised:
        dropped.clear()
    assert (raised, found) == ([], wanted)


def test_a_step_that_fails_lets_the_next_one_in(load: Load, tiny_path: Path) -> None:
    llm = load(tiny_path, retention=Retention(budget=32))
    wanted = answer(llm, PROMPTS[1])
    for error in (KeyError("of the callback"), KeyboardInterrupt()):

        def fail(tokens: Any, logits: Any, error: BaseException = error) -> bool:
            raise error

        with pytest.raises(type(error)):
            llm.create_completion(PROMPTS[0], stopping_criteria=llama_cpp.StoppingCriteriaList([fail]))
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(answer, llm, PROMPTS[1]).result(60) == wanted


def test_no_generation_within_another(load: Load, tiny_path: Path) -> None:
    llm = load(tiny_path, retention=Retention(budget=32))
    stream = llm.generate(PROMPTS[1], temp=0.0)
    next(stream)
    for nested in (
        lambda: llm("hello"),
        lambda: next(llm.generate([1])),
        lambda: next(stream),
        lambda: llm.prefill([1]),
    ):
        llm.reset()
        llm.on_prefill = lambda *_, nested=nested: nested()  # type: ignore[misc]
        with pytest.raises(StateError, match="in a callback"):
            llm.prefill(PROMPTS[0])
        llm.on_prefill = None
    assert len(answer(llm, PROMPTS[0])) == N


@pytest.mark.parametrize(
    "retention",
    [None, Retention(budget=4096), Retention(budget=32), Retention(budget=32, archive="memory")],
)
def test_nobody_uses_a_context_that_reads(load: Load, tiny_path: Path, retention: Retention | None) -> None:
    """A callback of the reading may ask and cancel; the context is in the middle of something."""
    llm = load(tiny_path, n_batch=64, retention=retention)
    wanted = answer(llm, PROMPTS[0])
    state = llm.save_state()
    for at in (0, 64):
        for use in (
            llm.reset,
            llm.close,
            llm.save_state,
            lambda: llm.eval([1]),
            lambda: llm.load_state(state),
        ):

            def on_prefill(done: int, _: int, at: int = at, use: Callable[[], Any] = use) -> None:
                if done == at:
                    use()

            llm.reset()
            llm.on_prefill = on_prefill
            with pytest.raises(StateError, match="in a callback|in the middle of a call"):
                llm.prefill(PROMPTS[0])
            llm.on_prefill = None
            assert answer(llm, PROMPTS[0]) == wanted


def test_nobody_uses_a_context_that_reads_a_later_turn(load: Load, tiny_path: Path) -> None:
    llm = load(tiny_path, n_batch=64, retention=Retention(budget=32))
    llm.prefill(PROMPTS[0])
    llm.on_prefill = lambda done, _: llm.reset() if done == 64 else None
    whole = [*PROMPTS[0], *PROMPTS[0]]
    with pytest.raises(StateError, match="in a callback"):
        llm.prefill(whole)
    llm.on_prefill = None
    llm.prefill(whole)
    assert llm.n_tokens == len(whole)


def test_drafts_of_streams_in_turns(load: Load, tiny_path: Path) -> None:
    class Repeat(llama_cpp.llama_speculative.LlamaDraftModel):  # type: ignore[misc]
        """Drafts what the model says, so that drafts are taken over."""

        def __call__(self, input_ids: Any, /, **_: Any) -> Any:
            text = input_ids.tolist()
            known = next((a for a in answers if text[: len(a)] == a[: len(text)]), [])
            return llama_cpp.llama_speculative.np.array(known[len(text) : len(text) + 4])

    plain = load(tiny_path, retention=Retention(budget=32))
    wanted = [answer(plain, prompt) for prompt in PROMPTS[:2]]
    answers = [prompt + tokens for prompt, tokens in zip(PROMPTS[:2], wanted, strict=True)]
    llm = load(tiny_path, retention=Retention(budget=32), draft_model=Repeat())
    streams = [llm.generate(prompt, temp=0.0) for prompt in PROMPTS[:2]]
    together = [[next(stream) for stream in streams] for _ in range(N)]
    assert [list(column) for column in zip(*together, strict=True)] == wanted


@RETENTIONS
def test_a_cancel_that_comes_first_is_for_its_own_call(
    load: Load, tiny_path: Path, retention: Retention | None
) -> None:
    llm = load(tiny_path, retention=retention)
    wanted = answer(llm, PROMPTS[0])
    stop = CancelToken()
    stop.cancel()
    calls: list[Callable[[], Any]] = [
        lambda: llm("hello"),
        lambda: next(llm.create_completion("hello", stream=True)),
        lambda: next(llm.generate(PROMPTS[0])),
        lambda: llm.prefill(PROMPTS[0]),
        lambda: llm.eval([1]),
    ]
    for call in calls:
        llm.reset()
        with stop, CancelToken(), pytest.raises(Cancelled):
            call()
        assert llm.n_tokens == 0
        assert answer(llm, PROMPTS[0]) == wanted  # of no token


def test_a_token_in_two_threads() -> None:
    """Who leaves it first is under it no more."""
    stop, inside, left = CancelToken(), threading.Event(), threading.Event()

    def other() -> None:
        with stop:
            inside.set()
            assert left.wait(10)

    with ThreadPoolExecutor() as threads:
        with stop:
            work = threads.submit(other)
            assert inside.wait(10)
        found = CancelToken.entered()
        left.set()
        work.result()
    assert found == ()


def test_a_token_stops_its_stream_and_no_other(load: Load, tiny_path: Path) -> None:
    llm = load(tiny_path, retention=Retention(budget=32))
    wanted = answer(llm, PROMPTS[1])
    stop = CancelToken()
    with stop:
        unread = llm.generate(PROMPTS[0])
        stream = llm.generate(PROMPTS[0])
    next(stream)
    other = llm.generate(PROMPTS[1], temp=0.0)
    found = [next(other)]
    stop.cancel()  # nothing of it runs now, and it is set aside
    found += [next(other) for _ in range(N - 1)]
    assert found == wanted
    for one in (stream, unread):
        with pytest.raises(Cancelled):
            next(one)

    plain, other = llm.generate(PROMPTS[0]), llm.generate(PROMPTS[1], temp=0.0)
    next(plain)
    llm.cancel()
    assert next(other) == wanted[0]  # the request is set aside with its stream
    with pytest.raises(Cancelled):
        next(plain)


def test_a_token_stops_the_waiting(load: Load, tiny_path: Path) -> None:
    stop, waits = CancelToken(), threading.Event()

    def ask() -> None:
        with stop, CancelToken():
            llm.prefill(PROMPTS[1])

    def on_prefill(done: int, total: int) -> None:
        if done == 0:
            with beside(ask) as raised:
                while not llm._lifetime.turns._waiting:
                    time.sleep(0.001)
                stop.cancel()
                waits.set()
            assert [type(error) for error in raised] == [Cancelled]

    llm = load(tiny_path, retention=Retention(budget=32), on_prefill=on_prefill)
    llm.prefill(PROMPTS[0])
    assert waits.is_set()
    assert llm.n_tokens == len(PROMPTS[0])


def test_a_token_stops_a_decode(load: Load, tiny_path: Path) -> None:
    reached, stop = threading.Event(), CancelToken()
    llm = load(
        tiny_path,
        n_ctx=16384,
        n_batch=256,
        retention=Retention(budget=32),
        on_prefill=lambda done, _: reached.set() if done == 512 else None,
    )

    def read() -> None:
        with stop, CancelToken():
            llm.prefill(random_tokens(16000))

    with beside(read) as raised:
        assert reached.wait(60)
        stop.cancel()
    assert [type(error) for error in raised] == [Cancelled]
    assert 512 <= llm.n_tokens < 16000
    llm.prefill(PROMPTS[0])


def test_close_wakes_those_who_wait(load: Load, tiny_path: Path) -> None:
    llm = load(tiny_path, retention=Retention(budget=32))
    stream = llm.generate(PROMPTS[0])
    next(stream)
    with beside(lambda: answer(llm, PROMPTS[1])) as raised:
        while not llm._lifetime.turns._waiting:
            time.sleep(0.001)
        llm.close()
    assert "closed" in str(raised[0])
    with pytest.raises(StateError, match="closed"):
        next(stream)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_is_told(tiny_path: Path) -> None:
    """Also where other threads were at work when the process was forked, and held locks."""
    program = """
import os, sys, threading, warnings
from headkv_local import Llama, Retention, StateError
warnings.simplefilter("ignore")
reached, go_on = threading.Event(), threading.Event()
def wait(done, total):
    reached.set(); go_on.wait()
llm = Llama(sys.argv[1], n_ctx=512, n_threads=2, retention=Retention(budget=32), on_prefill=wait)
tokens = list(range(200))
stream = llm.generate(tokens)
thread = threading.Thread(target=llm.prefill, args=(tokens,)); thread.start(); reached.wait()
llm._lifetime._changed.acquire(); llm._lifetime.turns._changed.acquire()
child = os.fork()
if child == 0:
    chat = [{"role": "user", "content": "a"}]
    calls = [lambda: llm("hello"), lambda: next(stream), lambda: llm.prefill(tokens), llm.reset,
             lambda: llm.eval([1]), llm.save_state, lambda: llm.create_chat_completion(chat)]
    told = 0
    for call in calls:
        try:
            call()
        except StateError as error:
            told += f"belongs to process {os.getppid()}" in str(error)
    assert len(llm.tokenize(b"hello")) > 0
    llm.close()
    del llm, stream, calls, call
    sys.exit(told)
llm._lifetime.turns._changed.release(); llm._lifetime._changed.release()
code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
go_on.set(); thread.join()
assert len(llm("hello")["choices"]) == 1
sys.exit(code)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tiny_path)], capture_output=True, text=True, timeout=100
    )
    assert (done.returncode, done.stderr) == (7, "")


def test_an_interrupt_in_the_log_callback(tiny_path: Path) -> None:
    """Of any call of llama.cpp, and in a logits processor, which is called back as well."""
    program = """
import logging, os, signal, sys, time
import llama_cpp
from headkv_local import Llama, Retention
logger = logging.getLogger("headkv_local.llama_cpp")
class Interrupting(logging.Handler):
    def emit(self, record):
        logger.removeHandler(self)
        os.kill(os.getpid(), signal.SIGINT)
llm = Llama(sys.argv[1], n_ctx=512, retention=Retention(budget=32))
logger.setLevel(logging.DEBUG)
caught = 0
for _ in range(20):
    handler = Interrupting()
    logger.addHandler(handler)
    try:
        llama_cpp.llama_model_load_from_file(b"/nothing", llama_cpp.llama_model_default_params())
        until = time.monotonic() + 30
        while time.monotonic() < until:
            pass
    except KeyboardInterrupt:
        caught += 1
    logger.removeHandler(handler)
def interrupt(tokens, logits):
    os.kill(os.getpid(), signal.SIGINT)
    return logits
try:
    llm("hello", max_tokens=400, logits_processor=llama_cpp.LogitsProcessorList([interrupt]))
except KeyboardInterrupt:
    caught += 1
llm.prefill([1, 2, 3])
sys.exit(caught)
"""
    command = [sys.executable, "-c", program, str(tiny_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stderr) == (21, "")


@pytest.mark.parametrize("kind", ["memory", "file"])
@pytest.mark.parametrize("cache", ["f16", "q8_0"])
def test_a_stream_that_is_set_aside_keeps_its_archive(
    load: Load, tiny_path: Path, tmp_path: Path, kind: str, cache: str
) -> None:
    """A later turn chooses from all rows, as if nobody had come between; nothing is written for that."""
    arguments: dict[str, Any] = dict.fromkeys(("type_k", "type_v"), KV_TYPES[cache])
    turn = random_tokens(40, seed=4)
    runs: list[Any] = []
    held: list[int] = []
    others_of: list[list[list[int]]] = [[], [PROMPTS[1], PROMPTS[0][:100]], [PROMPTS[0] + PROMPTS[2]]]
    for others in others_of:
        path = tmp_path / str(len(runs))
        kept = Retention(budget=32, archive="memory" if kind == "memory" else path)
        llm = load(tiny_path, retention=kept, **arguments)
        stream = llm.generate(PROMPTS[0], temp=0.0)
        begun = [next(stream)]
        for other in others:
            llm.prefill(other)
            with no_room_on_disk(0):
                begun.append(next(stream))
            assert llm.cache_stats().archive_tokens == len(PROMPTS[0])
        begun += [next(stream) for _ in range(6 - len(begun))]
        stream.close()
        llm.prefill([*PROMPTS[0], *begun, *turn])
        runs.append((begun, llm.retention_mask(), last_logits(llm)))
        llm.prefill(PROMPTS[1])  # what the stream held goes with the next prompt
        held.append(llm.cache_stats().archive_bytes)
    for run in runs[1:]:
        assert run[0] == runs[0][0]
        assert np.array_equal(run[1], runs[0][1])
        assert np.array_equal(run[2], runs[0][2])
    assert held == held[:1] * 3


def test_a_stream_whose_archive_is_gone_goes_on_without(load: Load, tiny_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows"
    llm = load(tiny_path, retention=Retention(budget=32, archive=path))
    wanted = answer(llm, PROMPTS[0])
    stream = llm.generate(PROMPTS[0], temp=0.0)
    found = [next(stream)]
    llm.prefill(PROMPTS[1])
    os.truncate(path, path.stat().st_size // 2)
    found += [next(stream) for _ in range(N - 1)]
    assert found == wanted
    assert llm.cache_stats().archive_tokens == 0


def test_a_stream_does_not_take_the_rows_of_another_archive(load: Load, tiny_path: Path) -> None:
    """Which holds as many of another prompt."""
    llm = load(tiny_path, retention=Retention(budget=32, archive="memory"))
    wanted = answer(llm, PROMPTS[0])
    first = llm.generate(PROMPTS[0], temp=0.0)
    found = [next(first)]
    llm.reset()
    llm.retention = None
    llm.retention = Retention(budget=32, archive="memory")
    second = llm.generate(random_tokens(len(PROMPTS[0]), seed=9), temp=0.0)
    next(second)
    found += [next(first) for _ in range(N - 1)]
    assert found == wanted
    assert llm.cache_stats().archive_tokens == 0
    next(second)
    assert llm.cache_stats().archive_tokens == len(PROMPTS[0])


def test_rows_of_a_stream_that_has_gone_go_with_a_reset(load: Load, tiny_path: Path) -> None:
    llm = load(tiny_path, retention=Retention(budget=32, archive="memory"))
    stream = llm.generate(PROMPTS[0], temp=0.0)
    next(stream)
    llm.prefill(PROMPTS[2])  # sets it aside
    held = llm.cache_stats().archive_bytes
    stream.close()
    llm.reset()
    assert 0 == llm.cache_stats().archive_bytes < held
