"""One Llama, several threads: what may be called at any time, and close() while another thread works."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from llama_cpp import LlamaGrammar, LogitsProcessorList, StoppingCriteriaList

from headkv_local import Cancelled, Llama, Retention, StateError
from helpers import beside, random_tokens

Load = Callable[..., Llama]
BUDGET = 32


@pytest.mark.parametrize("flash_attn", [True, False], ids=["compacted", "never compacted"])
@pytest.mark.parametrize("while_reading", [True, False])
def test_close_ends_what_another_thread_does(
    load: Load, tiny_path: Path, flash_attn: bool, while_reading: bool
) -> None:
    """In the middle of a prompt, and of an answer that would otherwise fill the context."""
    reached = threading.Event()
    llm = load(
        tiny_path,
        n_ctx=16384,
        n_batch=256,
        flash_attn=flash_attn,
        retention=Retention(budget=BUDGET) if flash_attn else None,
        on_prefill=lambda done, _: reached.set() if while_reading and done == 512 else None,
    )
    n_tokens = 16000 if while_reading else 300

    def generate() -> None:
        for i, _ in enumerate(llm.generate(random_tokens(n_tokens), temp=0.0)):
            if i == 20:
                reached.set()

    with beside(generate) as raised:
        assert reached.wait(60)
        with beside(llm.close) as of_close:  # a thread of its own: a deadlock fails the test
            pass
    assert of_close == []
    assert [type(error) in (Cancelled, StateError) for error in raised] == [True], raised
    assert type(raised[0]) is Cancelled or "closed" in str(raised[0])
    with pytest.raises(StateError, match="closed"):
        llm.cache_stats()


def test_an_exception_closes_what_a_stream_still_uses(load: Load, tiny_path: Path) -> None:
    started = threading.Event()
    llm = load(tiny_path, n_ctx=16384, retention=Retention(budget=BUDGET))
    letter = dict.fromkeys(llm.tokenize(b"a"), 100.0)  # never the end

    def stream() -> None:
        for _ in llm.create_completion(random_tokens(300), max_tokens=16000, stream=True, logit_bias=letter):
            started.set()

    def leave() -> None:
        with llm:
            raise KeyError("of the application")

    with beside(stream) as raised:
        assert started.wait(60)
        with beside(leave) as of_leaving:
            pass
    assert [str(error) for error in of_leaving] == ["'of the application'"]
    assert [type(error) in (Cancelled, StateError) for error in raised] == [True], raised


@pytest.mark.parametrize("called_in", ["processor", "criterion", "signal", "on_prefill"])
def test_a_call_is_not_closed_from_inside(load: Load, tiny_path: Path, called_in: str) -> None:
    """llama.cpp goes on with what would be freed."""
    llm = load(tiny_path)
    wanted = llm("hello", max_tokens=4, temperature=0.0)["choices"]
    refused = []

    def close(*_: object) -> None:
        with pytest.raises(StateError, match="in the middle of a call") as error:
            llm.close()
        refused.append(error)

    def processor(tokens: object, scores: object) -> object:
        signal.raise_signal(signal.SIGUSR1) if called_in == "signal" else close()
        return scores

    given: dict[str, Any] = {}
    if called_in == "criterion":
        given = {"stopping_criteria": StoppingCriteriaList([close])}
    elif called_in == "on_prefill":
        llm.on_prefill = close
    else:
        grammar = LlamaGrammar.from_string("root ::= .*")
        given = {"logits_processor": LogitsProcessorList([processor]), "grammar": grammar}
    before = signal.signal(signal.SIGUSR1, close)
    try:
        llm.reset()
        assert llm("hello", max_tokens=4, **given)["usage"]["completion_tokens"] > 0
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert len(refused) > 0
    llm.on_prefill = None
    assert llm("hello", max_tokens=4, temperature=0.0)["choices"] == wanted


def test_stats_and_mask_while_another_thread_reads_prompts(load: Load, tiny_path: Path) -> None:
    """Each answer is of one moment: a compacted prompt with its entries, or one that is whole."""
    llm = load(tiny_path, retention=Retention(budget=BUDGET))
    done = threading.Event()

    def read() -> None:
        try:
            for seed in range(40):
                answer = llm.generate(random_tokens(600, seed=seed), temp=0.0)
                for _, _token in zip(range(20), answer, strict=False):
                    pass
                llm.reset()
        finally:
            done.set()

    kinds = set()
    with beside(read) as raised:
        while not done.is_set():
            stats = llm.cache_stats()
            kinds.add(stats.compacted)
            if stats.compacted:
                assert (stats.kept.sum(), stats.prompt_tokens) == (BUDGET * stats.kept.size, 600)
                assert stats.pool_bytes > 0
                assert stats.policy == "uniform"
                assert stats.prefill_seconds > 0
            else:
                assert (stats.kept == stats.prompt_tokens).all()
                assert stats.pool_bytes == 0
            mask = llm.retention_mask()
            assert mask.all() or mask.sum() == BUDGET * mask.shape[0] * mask.shape[1]
    assert raised == []
    assert kinds == {False, True}


def test_retention_cannot_be_changed_while_a_prompt_is_read(load: Load, tiny_path: Path) -> None:
    """From the callback it is refused; another thread waits, and is refused what the cache allows no more."""
    refused: list[StateError] = []

    def on_prefill(done: int, total: int) -> None:
        if done == 0:
            asking.start()
        try:
            llm.retention = Retention(budget=64)
        except StateError as error:
            refused.append(error)

    def ask() -> None:
        with pytest.raises(StateError, match="while the cache is compacted"):
            llm.retention = Retention(budget=64)
        asked.set()

    asking, asked = threading.Thread(target=ask, daemon=True), threading.Event()
    llm = load(tiny_path, retention=Retention(budget=BUDGET), on_prefill=on_prefill)
    llm.prefill(random_tokens(600))
    assert "in a callback of the call that computes" in str(refused[0])
    assert asked.wait(60)
    assert llm.retention == Retention(budget=BUDGET)
    assert llm.cache_stats().kept.mean() == BUDGET


def test_tokens_are_made_while_another_thread_reads_a_prompt(load: Load, tiny_path: Path) -> None:
    """Without waiting for the prompt: the callback does not go on before the other thread has its tokens."""
    made: list[list[int]] = []

    def on_prefill(done: int, total: int) -> None:
        if done == 0:
            with beside(lambda: made.append(llm.tokenize(b"hello"))) as raised:
                pass
            assert raised == []

    llm = load(tiny_path, retention=Retention(budget=BUDGET), on_prefill=on_prefill)
    llm.prefill(random_tokens(600))
    assert made == [llm.tokenize(b"hello")]


def test_cancel_from_a_signal_handler(load: Load, tiny_path: Path) -> None:
    """At any moment of the thread that it interrupts, also while that asks for the same."""
    llm = load(tiny_path, n_ctx=256, retention=Retention(budget=BUDGET))
    before = signal.signal(signal.SIGALRM, lambda *_: llm.cancel())
    try:
        signal.setitimer(signal.ITIMER_REAL, 1e-4, 1e-4)
        for _ in range(3000):
            llm.cancel()
            llm._lifetime.forget_cancel()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    llm.prefill(random_tokens(100))
    assert llm.n_tokens == 100
