"""One Llama, several threads: what may be called at any time, and close() while another thread works."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from headkv_local import Cancelled, Llama, Retention, StateError
from helpers import random_tokens

Load = Callable[..., Llama]
BUDGET = 32


@contextmanager
def beside(work: Callable[[], None]) -> Iterator[list[BaseException]]:
    """Runs work in another thread meanwhile; what that raised is in the list afterwards."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield raised
    finally:
        thread.join(60)
        assert not thread.is_alive()


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
        llm.close()
    assert isinstance(raised[0], Cancelled | StateError)
    assert type(raised[0]) is not StateError or "closed" in str(raised[0])
    with pytest.raises(StateError, match="closed"):
        llm.cache_stats()


def test_an_exception_closes_what_a_stream_still_uses(load: Load, tiny_path: Path) -> None:
    started = threading.Event()
    llm = load(tiny_path, n_ctx=4096, retention=Retention(budget=BUDGET))
    letter = dict.fromkeys(llm.tokenize(b"a"), 100.0)  # never the end

    def stream() -> None:
        for _ in llm.create_completion(random_tokens(300), max_tokens=3000, stream=True, logit_bias=letter):
            started.set()

    with beside(stream) as raised:
        assert started.wait(60)
        with pytest.raises(KeyError), llm:
            raise KeyError("of the application")
    assert isinstance(raised[0], Cancelled | StateError)


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
            else:
                assert (stats.kept == stats.prompt_tokens).all()
                assert stats.pool_bytes == 0
            mask = llm.retention_mask()
            assert mask.all() or mask.sum() == BUDGET * mask.shape[0] * mask.shape[1]
    assert raised == []
    assert kinds == {False, True}


def test_retention_cannot_be_changed_while_a_prompt_is_read(load: Load, tiny_path: Path) -> None:
    """Neither from the callback, where it is refused, nor from another thread, which waits."""
    refused: list[StateError] = []

    def on_prefill(done: int, total: int) -> None:
        try:
            llm.retention = Retention(budget=64)
        except StateError as error:
            refused.append(error)

    llm = load(tiny_path, retention=Retention(budget=BUDGET), on_prefill=on_prefill)
    llm.prefill(random_tokens(600))
    assert "while a prompt is being read" in str(refused[0])
    assert llm.retention == Retention(budget=BUDGET)
    assert llm.cache_stats().kept.mean() == BUDGET
