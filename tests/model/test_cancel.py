"""cancel(): what runs now stops, and the KV cache holds what was decoded until then."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from llama_cpp.llama_tokenizer import BaseLlamaTokenizer

from headkv_local import Cancelled, CancelToken, Llama, Retention, StateError
from headkv_local._core import native
from helpers import cancelled_after, greedy, random_tokens

Load = Callable[..., Llama]
TOKENS = random_tokens(300)


def test_cancel_from_another_thread_during_a_prefill(load: Load, tiny_path: Path) -> None:
    """Once between batches, once most likely inside of a decode: the cache holds what n_tokens says."""
    tokens = random_tokens(8000)
    for n_batch, stop in ((256, 1024), (4096, 0)):
        reached = threading.Event()

        def on_prefill(done: int, total: int, stop: int = stop, reached: threading.Event = reached) -> None:
            if done == stop:
                reached.set()

        llm = load(
            tiny_path, n_ctx=8192, n_batch=n_batch, retention=Retention(budget=64), on_prefill=on_prefill
        )

        def cancel(llm: Llama = llm, reached: threading.Event = reached) -> None:
            assert reached.wait(60)
            llm.cancel()

        thread = threading.Thread(target=cancel)
        thread.start()
        with pytest.raises(Cancelled):
            llm.prefill(tokens)
        thread.join()
        assert stop <= llm.n_tokens < 8000
        assert llm.cache_stats().prompt_tokens == llm.n_tokens
        assert not llm.cache_stats().compacted
        llm.prefill(tokens[:1000])
        assert (llm.retention_mask().sum(axis=2) == 64).all()
        assert len(greedy(llm, 3)) == 3


def test_a_cancel_does_not_wait_for_the_end_of_a_batch(load: Load, tiny_path: Path) -> None:
    """The whole prompt is one batch: whoever waits for its end finds its tokens in the cache."""
    began = threading.Event()
    llm = load(
        tiny_path,
        n_ctx=8192,
        n_batch=8192,
        n_ubatch=8192,
        retention=Retention(budget=64),
        on_prefill=lambda *_: began.set(),
    )

    def cancel() -> None:
        assert began.wait(60)
        llm.cancel()

    thread = threading.Thread(target=cancel)
    thread.start()
    with pytest.raises(Cancelled):
        llm.prefill(random_tokens(8000))
    thread.join()
    assert llm.n_tokens == 0


def test_what_was_announced_of_a_prompt_holds(load: Load, tiny_path: Path) -> None:
    """Where it is cancelled in its first ubatch: it is still to come. Cleared, it is another one's turn."""
    llm = load(tiny_path, n_ctx=8192, n_ubatch=64, retention=Retention(budget=32))
    ctx, caps = int(llm.ctx), np.full((2, 2), 32, np.int32)
    llm.prefill(TOKENS)
    llm.reset()
    native.reserve(ctx, 300)
    native.observe(ctx, native.OBSERVE_TOKENS, 290, 10)
    for _ in range(2):
        with cancelled_after(llm, 3), pytest.raises(Cancelled):
            llm.eval(TOKENS)
    llm.eval(TOKENS)
    numbers = native.get_numbers(ctx)
    assert numbers.bytes_cells == numbers.bytes_full * 512 // 8192
    native.compact(ctx, native.Plan(caps, 8, 7, 4))
    assert (native.get_mask(ctx).sum(axis=2) == 32).all()

    llm.reset()
    native.reserve(ctx, 300)
    native.observe(ctx, native.OBSERVE_TOKENS, 290, 10)
    llm.eval(TOKENS[:50])
    llm.reset()
    llm.eval(TOKENS)
    assert native.get_numbers(ctx).bytes_cells == numbers.bytes_full
    with pytest.raises(StateError):
        native.compact(ctx, native.Plan(caps, 8, 7, 4))


def test_cancel_without_a_retention_takes_effect_between_batches(load: Load, tiny_path: Path) -> None:
    llm = load(tiny_path, n_batch=100, on_prefill=lambda done, _: llm.cancel() if done == 200 else None)
    with pytest.raises(Cancelled):
        llm.prefill(TOKENS)
    assert llm.n_tokens == 200
    llm.on_prefill = None
    llm.prefill(TOKENS)
    assert llm.n_tokens == 300


@pytest.mark.parametrize("retention", [None, Retention(budget=32)])
def test_cancel_during_an_answer(load: Load, tiny_path: Path, retention: Retention | None) -> None:
    llm = load(tiny_path, retention=retention)
    answer = llm.generate(TOKENS, temp=0.0)
    first = [next(answer) for _ in range(5)]
    llm.cancel()
    with pytest.raises(Cancelled):
        next(answer)
    with pytest.raises(StopIteration):
        next(answer)
    assert llm.n_tokens == 304
    again = llm.generate(TOKENS + first[:4], temp=0.0)
    assert next(again) == first[4]


def test_a_cancel_that_nothing_was_stopped_by_is_forgotten(load: Load, tiny_path: Path) -> None:
    llm = load(tiny_path, retention=Retention(budget=32))
    llm.cancel()
    llm.prefill(TOKENS)
    llm.cancel()
    assert next(llm.generate(TOKENS[:100])) >= 0
    llm.cancel()
    with pytest.raises(Cancelled):
        llm.eval([1])
    llm.eval([1])


class _Waiting(BaseLlamaTokenizer):
    """Takes as long as a test wants."""

    def __init__(self) -> None:
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.go_on.set()

    def hold(self) -> None:
        self.begun.clear()
        self.go_on.clear()

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = True) -> list[int]:
        self.begun.set()
        assert self.go_on.wait(60)
        return [1, *text]

    def detokenize(
        self, tokens: list[int], prev_tokens: list[int] | None = None, special: bool = False
    ) -> bytes:
        return bytes(token % 256 for token in tokens)


def test_who_cancels_does_not_wait_for_a_long_text(load: Load, tiny_path: Path) -> None:
    """As an event loop must not."""
    tokenizer, stop, raised = _Waiting(), CancelToken(), []
    llm = load(tiny_path, n_ctx=512, retention=Retention(budget=32), tokenizer=tokenizer)

    def ask() -> None:
        with stop, pytest.raises(Cancelled) as error:
            llm.create_completion("a text", max_tokens=2)
        raised.append(error)

    tokenizer.hold()
    asking = threading.Thread(target=ask)
    asking.start()
    assert tokenizer.begun.wait(60)
    for cancel in (stop.cancel, llm.cancel):
        cancelling = threading.Thread(target=cancel)
        cancelling.start()
        cancelling.join(30)
        assert not cancelling.is_alive()
    tokenizer.go_on.set()
    asking.join(60)
    assert len(raised) == 1


def test_who_closes_waits_for_a_text_that_is_tokenized(load: Load, tiny_path: Path) -> None:
    tokenizer, tokens = _Waiting(), []
    llm = load(tiny_path, n_ctx=512, retention=Retention(budget=32), tokenizer=tokenizer)
    tokenizer.hold()
    asking = threading.Thread(target=lambda: tokens.extend(llm.tokenize(b"abc")))
    asking.start()
    assert tokenizer.begun.wait(60)
    closing = threading.Thread(target=llm.close)
    closing.start()
    with suppress(StateError):
        while True:  # until the other thread has got so far
            llm.cancel()
    assert closing.is_alive()
    assert not tokens
    tokenizer.go_on.set()
    asking.join(60)
    closing.join(60)
    assert len(tokens) == 4
    assert not closing.is_alive()


def test_a_call_that_needs_the_context_is_not_closed_from_inside(load: Load, tiny_path: Path) -> None:
    """As a signal's handler could."""
    tokenizer = _Waiting()
    llm = load(tiny_path, n_ctx=512, retention=Retention(budget=32), tokenizer=tokenizer)
    refused = []

    def close(timeout: float) -> bool:
        with pytest.raises(StateError, match="in the middle of a call") as error:
            llm.close()
        refused.append(error)
        return True

    tokenizer.go_on.wait = close  # type: ignore[assignment,method-assign]
    assert len(llm.tokenize(b"abc")) == 4
    assert len(refused) == 1
    del tokenizer.go_on.wait
    assert len(llm.tokenize(b"abc")) == 4
