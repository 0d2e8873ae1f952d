"""Several turns: they go on from what was kept, the tail grows, and states are saved and loaded."""

from __future__ import annotations

import ctypes
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest
from llama_cpp import LlamaRAMCache

from headkv_local import Cancelled, ContextFullError, Llama, Retention, StateError
from headkv_local._core import native
from helpers import compact_natively, forced_logits, last_logits, nmse, random_tokens

Load = Callable[..., Llama]
TOKENS = random_tokens(300)


def answered(llm: Llama, prompt: list[int], n: int) -> list[int]:
    return [token for _, token in zip(range(n), llm.generate(prompt, temp=0.0), strict=False)]


def test_later_turns_go_on_from_what_was_kept(load: Load, tiny_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    llm = load(tiny_path, retention=Retention(budget=32), on_prefill=lambda *call: calls.append(call))
    history = list(TOKENS)
    history += answered(llm, history, 20)
    mask = llm.retention_mask()
    for turn in range(3):
        history += random_tokens(40, seed=turn)
        calls.clear()
        history += answered(llm, history, 20)
        assert calls == [(0, 41), (41, 41)]  # the last token of the answer was not in the cache yet
        stats = llm.cache_stats()
        assert (stats.compacted, stats.prompt_tokens) == (True, 300)
        assert stats.tail_tokens == len(history) - 1 - 300 == llm.n_tokens - 300
        assert np.array_equal(llm.retention_mask(), mask)


def test_the_tail_doubles_and_loses_nothing(load: Load, tiny_path: Path) -> None:
    """Everything is kept, so that a stock cache says what the logits must be after every doubling."""
    n_tail = 1500
    tail = random_tokens(n_tail, seed=1)
    stock, ours = (load(tiny_path, flash_attn=True, n_ctx=2048) for _ in range(2))
    stock.prefill(TOKENS)
    compact_natively(ours, TOKENS, 300)
    sizes = [ours.cache_stats().tail_bytes]
    done = 0
    for size in (1, 100, 1, 300, 1, 7, 500, 590):
        for llm in (stock, ours):
            llm.eval(tail[done : done + size])
        done += size
        assert nmse(last_logits(ours), last_logits(stock)) < 1e-4
        sizes.append(ours.cache_stats().tail_bytes)
    assert done == n_tail == ours.cache_stats().tail_tokens
    assert sizes == sorted(sizes)
    assert len(set(sizes)) >= 4
    assert sizes[-1] <= 4 * 256 * (2048 - 300 + 8)  # with the window


def test_taking_back_the_tail(load: Load, tiny_path: Path) -> None:
    llm = load(tiny_path, retention=Retention(budget=32))
    llm.prefill(TOKENS)
    tail, other = random_tokens(200, seed=1), random_tokens(10, seed=2)
    first = last_logits(llm)
    llm.eval(tail[:50])
    wanted = forced_logits(llm, other)
    for n_before, n_after in ((200, 50), (50, 50)):
        llm.prefill(TOKENS + tail[:n_before])
        llm.prefill([*TOKENS, *tail[:n_after], *other])
        assert llm.cache_stats().tail_tokens == n_after + 10
        assert nmse(last_logits(llm), wanted[-1]) < 1e-6
    llm.prefill([*TOKENS, 1])  # all of the tail but one
    assert llm.cache_stats().tail_tokens == 1
    assert llm.cache_stats().prompt_tokens == 300
    assert np.isfinite(first).all()


def test_a_compacted_prompt_is_removed_as_a_whole_or_not_at_all(load: Load, tiny_path: Path) -> None:
    llm = load(tiny_path, retention=Retention(budget=32))
    llm.prefill(TOKENS)
    llm.eval(TOKENS[:20])
    before, mask = llm.cache_stats(), llm.retention_mask()
    for first, last in ((299, -1), (1, -1), (100, 200), (0, 300), (0, 100)):
        assert not llm._ctx.kv_cache_seq_rm(-1, first, last)
    after = llm.cache_stats()
    assert (after.prompt_tokens, after.tail_tokens) == (before.prompt_tokens, before.tail_tokens)
    assert after.resident_bytes == before.resident_bytes
    assert np.array_equal(llm.retention_mask(), mask)
    assert llm._ctx.kv_cache_seq_rm(-1, 0, -1)
    assert not llm.cache_stats().compacted
    llm.reset()
    llm.prefill(TOKENS[:20])
    stats = llm.cache_stats()
    assert stats.resident_bytes == stats.full_bytes // 4  # 256 cells of 1024


def test_a_later_prompt_gets_room_for_itself_and_more_as_it_grows(load: Load, tiny_path: Path) -> None:
    """Not for the whole context, which takes long to make; the logits are the stock cache's, bit for bit."""
    llm, stock = load(tiny_path, retention=Retention(budget=400)), load(tiny_path, flash_attn=True)
    llm.prefill(random_tokens(700, seed=1))
    assert llm.cache_stats().compacted
    llm.reset()
    sizes = []
    more = random_tokens(1000, seed=2)
    for done, size in ((0, 300), (300, 100), (400, 200), (600, 400), (1000, 0)):
        for each in (llm, stock):
            each.prefill(TOKENS) if done == 0 else each.eval(more[done - 300 : done - 300 + size])
        assert np.array_equal(last_logits(llm), last_logits(stock))
        stats = llm.cache_stats()
        assert not stats.compacted
        sizes.append(1024 * stats.resident_bytes // stats.full_bytes)
    assert sizes == [512, 512, 1024, 1024, 1024]
    with pytest.raises(ContextFullError):
        llm.eval(more[:25])


@pytest.mark.parametrize(("expected", "cells"), [(10, 512), (300, 512), (600, 768), (0, 1024)])
def test_room_for_a_prompt_of_another_length(load: Load, tiny_path: Path, expected: int, cells: int) -> None:
    llm, stock = (load(tiny_path, flash_attn=True) for _ in range(2))
    compact_natively(llm, random_tokens(700, seed=1), 32)
    llm.reset()
    native.reserve(int(llm.ctx), expected)
    for each in (llm, stock):
        each.eval(TOKENS)
    stats = llm.cache_stats()
    assert stats.resident_bytes == cells * stats.full_bytes // 1024
    assert np.array_equal(last_logits(llm), last_logits(stock))


def test_a_prompt_that_keeps_its_beginning_gets_room_again(load: Load, tiny_path: Path) -> None:
    llm, stock = load(tiny_path, retention=Retention(budget=800)), load(tiny_path, flash_attn=True)
    llm.prefill(random_tokens(900, seed=1))
    sizes = []
    for n in (100, 300, 200, 520, 700):  # all begin alike
        prompt = [*TOKENS[: min(n, 300)], *random_tokens(max(0, n - 300), seed=3)]
        for each in (llm, stock):
            each.prefill(prompt)
        assert not llm.cache_stats().compacted
        assert nmse(last_logits(llm), last_logits(stock)) < 1e-6
        stats = llm.cache_stats()
        sizes.append(1024 * stats.resident_bytes // stats.full_bytes)
    assert sizes == [256, 512, 512, 1024, 1024]  # doubled, since rows have to move


def test_another_prompt_is_read_and_compacted_anew(load: Load, tiny_path: Path) -> None:
    llm, fresh = (load(tiny_path, retention=Retention(budget=32)) for _ in range(2))
    answered(llm, TOKENS, 20)
    for other in ([*TOKENS[:150], *random_tokens(150, seed=3)], random_tokens(200, seed=4)):
        answer = answered(llm, other, 10)
        fresh.reset()
        assert answer == answered(fresh, other, 10)
        assert llm.cache_stats().prompt_tokens == len(other)
        assert np.array_equal(llm.retention_mask(), fresh.retention_mask())


@pytest.mark.parametrize("arguments", [{"grammar": "root"}, {"top_k": "many"}, {"mirostat_tau": None}])
def test_a_generation_that_is_refused_leaves_what_was_there(
    load: Load, tiny_path: Path, arguments: dict[str, Any]
) -> None:
    llm = load(tiny_path, retention=Retention(budget=32))
    history = [*TOKENS, *answered(llm, TOKENS, 20)]
    n_tokens, mask = llm.n_tokens, llm.retention_mask()
    with pytest.raises((ValueError, TypeError, ctypes.ArgumentError)):
        next(llm.generate(random_tokens(200, seed=4), **arguments))
    assert llm.n_tokens == n_tokens
    assert np.array_equal(llm.retention_mask(), mask)
    calls: list[tuple[int, int]] = []
    llm.on_prefill = lambda *call: calls.append(call)
    answered(llm, [*history, 5], 2)
    assert calls[-1] == (2, 2)


@pytest.mark.parametrize("logits_all", [False, True])
def test_the_same_prompt_gets_another_answer_without_being_read(
    load: Load, tiny_path: Path, logits_all: bool
) -> None:
    calls: list[tuple[int, int]] = []
    llm = load(tiny_path, retention=Retention(budget=32), logits_all=logits_all)
    llm.prefill(TOKENS)
    wanted, mask = last_logits(llm), llm.retention_mask()
    llm.on_prefill = lambda *call: calls.append(call)
    first = answered(llm, TOKENS, 20)
    assert answered(llm, TOKENS, 20) == first
    assert llm.cache_stats().tail_tokens == 19
    llm.prefill(TOKENS)
    assert np.array_equal(last_logits(llm), wanted)
    assert llm.cache_stats().tail_tokens == 0
    assert calls == []
    assert np.array_equal(llm.retention_mask(), mask)
    assert answered(llm, [*TOKENS, *first[:5]], 5) == first[5:10]  # a later turn goes on as ever
    assert calls == [(0, 5), (5, 5)]
    answers = {
        tuple(t for _, t in zip(range(20), llm.generate(TOKENS, temp=2.0), strict=False)) for _ in range(3)
    }
    assert len(answers) > 1
    llm.reset()
    answered(llm, TOKENS, 1)  # what was forgotten is read
    assert calls[-1] == (300, 300)


def test_tokens_behind_the_prompt_may_be_the_prompt_again(load: Load, tiny_path: Path) -> None:
    """generate(reset=False) goes on from where the cache is, whatever the tokens are."""
    llm = load(tiny_path, retention=Retention(budget=32))
    llm.prefill(TOKENS)
    for answer in (
        llm.generate(TOKENS, reset=False, temp=0.0),
        llm.generate(TOKENS, 40, 0.95, 0.05, 1.0, 0.0, 1.0, False),
    ):
        before = llm.n_tokens
        next(answer)
        assert llm.n_tokens == before + 300


def test_the_same_prompt_after_a_state_or_a_cancelled_turn(load: Load, tiny_path: Path) -> None:
    llm, other = (load(tiny_path, retention=Retention(budget=32)) for _ in range(2))
    first = answered(llm, TOKENS, 20)
    state = pickle.loads(pickle.dumps(llm.save_state()))
    other.on_prefill = lambda *_: pytest.fail("it was read")
    other.load_state(state)
    assert answered(other, TOKENS, 20) == first
    assert other.cache_stats().tail_tokens == 19

    llm.on_prefill = lambda *_: llm.cancel()
    with pytest.raises(Cancelled):
        answered(llm, [*TOKENS, *TOKENS], 1)
    llm.on_prefill = lambda *_: pytest.fail("it was read")
    assert answered(llm, TOKENS, 20) == first


def test_the_same_prompts_in_turns_with_a_cache_of_states(load: Load, tiny_path: Path) -> None:
    llm = load(tiny_path, retention=Retention(budget=32))
    llm.set_cache(LlamaRAMCache())
    read: list[int] = []
    llm.on_prefill = lambda done, total: read.append(total) if done == 0 else None
    prompts = [random_tokens(200, seed=seed) for seed in (1, 2)]
    answers = [
        llm.create_completion(prompts[i], max_tokens=10, temperature=0.0)["choices"][0]["text"]
        for i in (0, 1, 0, 1, 1)
    ]
    assert read == [200, 200]
    assert answers == [answers[0], answers[1], answers[0], answers[1], answers[1]]


def test_the_same_prompt_where_it_fills_the_context(load: Load, tiny_path: Path) -> None:
    llm = load(tiny_path, n_ctx=256, retention=Retention(budget=32))
    prompt = random_tokens(256, seed=1)
    (first,) = answered(llm, prompt, 1)
    state = llm.save_state()
    assert answered(llm, prompt, 1) == [first]
    llm.load_state(state)
    assert answered(llm, prompt, 1) == [first]


def test_a_chat_that_outgrows_the_budget_is_compacted_then(load: Load, tiny_path: Path) -> None:
    llm = load(tiny_path, retention=Retention(budget=64))
    history = list(TOKENS[:40])
    history += answered(llm, history, 10)
    assert not llm.cache_stats().compacted
    history += TOKENS[:40]
    history += answered(llm, history, 10)
    stats = llm.cache_stats()
    assert stats.compacted
    assert (stats.prompt_tokens, stats.tail_tokens) == (90, 9)


@pytest.mark.parametrize("retention", [None, Retention(budget=32)])
def test_the_end_of_the_context(load: Load, tiny_path: Path, retention: Retention | None) -> None:
    """Its size is not a multiple of llama.cpp's 256, which rounds it up: 512 tokens fit."""
    llm = load(tiny_path, n_ctx=320, retention=retention)
    answer = llm.generate(TOKENS, temp=0.0)
    tokens = []
    with pytest.raises(ContextFullError, match=r"the context of 512 tokens is full: it holds 512"):
        tokens.extend(answer)
    assert len(tokens) == 213
    assert llm.n_tokens == llm.n_ctx() == 512
    with pytest.raises(ContextFullError):
        llm.eval([1])
    with pytest.raises(ContextFullError):
        llm.prefill(random_tokens(513))
    assert answered(llm, TOKENS + tokens[:10], 5) == tokens[10:15]  # taking the tail back makes room
    assert len(answered(llm, TOKENS[:100], 5)) == 5


@pytest.mark.parametrize("retention", [None, Retention(budget=32)])
@pytest.mark.parametrize("logits_all", [False, True])
def test_an_answer_ends_where_the_context_does(
    load: Load, tiny_path: Path, retention: Retention | None, logits_all: bool
) -> None:
    """As with llama_cpp.Llama, also where n_ctx is rounded up; the tokens are remembered up to there."""
    stock = llama_cpp.Llama(str(tiny_path), n_ctx=300, verbose=False)
    llm = load(tiny_path, n_ctx=300, retention=retention, logits_all=logits_all)
    letter = dict.fromkeys(stock.tokenize(b"a"), 100.0)  # never the end, and never half a character
    wanted, found = (
        each.create_completion(TOKENS[:200], max_tokens=None, temperature=0.0, logit_bias=letter)
        for each in (stock, llm)
    )
    assert found["choices"][0]["finish_reason"] == wanted["choices"][0]["finish_reason"] == "length"
    assert found["usage"] == wanted["usage"]
    assert found["usage"]["total_tokens"] == 512
    assert llm.n_tokens == 511
    assert llm.input_ids[:200].tolist() == TOKENS[:200]
    assert llm.input_ids[300:511].any()


def test_an_answer_may_end_within_a_character(load: Load, tiny_path: Path) -> None:
    """llama_cpp asks for the rest of it, and there is no room: what is complete is the answer."""
    llm = load(tiny_path, n_ctx=256, retention=Retention(budget=32))
    letter, first_byte = (llm.tokenize(text.encode())[0] for text in ("a", "\U0001f600"))

    def letters_first(tokens: Any, logits: Any) -> Any:
        logits[letter if len(tokens) < 254 else first_byte] += 1000
        return logits

    arguments = {
        "max_tokens": None,
        "temperature": 0.0,
        "logits_processor": llama_cpp.LogitsProcessorList([letters_first]),
    }
    answer = llm.create_completion(TOKENS[:200], **arguments)
    chunks = list(llm.create_completion(TOKENS[:200], stream=True, **arguments))
    assert answer["choices"][0]["finish_reason"] == "length"
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    assert answer["choices"][0]["text"] == "a" * 54
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "a" * 54
    short = llm.create_completion(TOKENS[:200], **(arguments | {"max_tokens": 3}))
    assert short["choices"][0]["text"] == "aaa"
    with pytest.raises(ContextFullError):  # nothing of an answer
        llm.create_completion(TOKENS[:257])
    with pytest.raises(ContextFullError):  # no completion
        list(llm.generate(TOKENS[:250]))


@pytest.mark.parametrize("arch", ["llama", "gemma2"])
def test_a_state_of_a_smaller_context_leaves_the_room(
    load: Load, tiny: Callable[..., Path], tiny_path: Path, arch: str
) -> None:
    """Whether it fits this model or not."""
    small = load(tiny(arch=arch), n_ctx=256, flash_attn=True)
    small.prefill(TOKENS[:200])
    state = small.save_state()
    llm = load(tiny_path, n_ctx=1024, retention=Retention(budget=32))
    if arch == "llama":
        llm.load_state(state)
        assert llm.n_tokens == 200
    else:
        with pytest.raises(StateError):
            llm.load_state(state)
    prompt = random_tokens(600, seed=3)
    llm.prefill(prompt)
    assert llm.input_ids[:600].tolist() == prompt
    assert llm.cache_stats().compacted


@pytest.mark.parametrize("budget", [32, 512], ids=["compacted", "dormant"])
def test_a_saved_state_goes_on_where_it_was(load: Load, tiny_path: Path, budget: int) -> None:
    retention = Retention(budget=budget)
    llm = load(tiny_path, retention=retention)
    llm.prefill(TOKENS)
    llm.eval(TOKENS[:150])
    state = pickle.loads(pickle.dumps(llm.save_state()))
    before, mask = llm.cache_stats(), llm.retention_mask()
    wanted = forced_logits(llm, TOKENS[:10])[1:]
    llm.eval(TOKENS[:100])
    for target in (llm, load(tiny_path, retention=retention), load(tiny_path, flash_attn=True)):
        target.prefill(random_tokens(120, seed=5))
        target.load_state(state)
        after = target.cache_stats()
        assert (after.compacted, after.policy) == (before.compacted, before.policy)
        assert after.compacted is (budget == 32)
        assert (after.prompt_tokens, after.tail_tokens, target.n_tokens) == (300, 150, 450)
        assert np.array_equal(target.retention_mask(), mask)
        target.eval(TOKENS[:1])
        assert nmse(forced_logits(target, TOKENS[1:10]), wanted) < 1e-6


def test_one_state_serves_many_prompts(load: Load, tiny_path: Path) -> None:
    """A document is read once and each question selects its own entries."""
    llm = load(tiny_path, flash_attn=True)
    llm.prefill(TOKENS)
    state = llm.save_state()
    llm.retention = Retention(budget=32)
    masks = []
    for seed in range(3):
        llm.load_state(state)
        assert not llm.cache_stats().compacted
        llm.prefill(TOKENS + random_tokens(20, seed=seed))
        assert llm.cache_stats().compacted
        masks.append(llm.retention_mask()[:, :, :300])
    assert not np.array_equal(masks[0], masks[1])
    assert not np.array_equal(masks[1], masks[2])


def test_a_state_that_does_not_fit_leaves_a_usable_cache(
    load: Load, tiny: Callable[..., Path], tiny_path: Path
) -> None:
    source = load(tiny(n_layer=3), retention=Retention(budget=32))
    llm = load(tiny_path, retention=Retention(budget=32))
    for compacted in (True, False):
        source.prefill(TOKENS if compacted else TOKENS[:20])
        wrong = source.save_state()
        source.reset()
        own = load(tiny_path, retention=Retention(budget=32))
        own.prefill(TOKENS)
        cut = own.save_state()
        cut.llama_state = cut.llama_state[: len(cut.llama_state) // 2]
        cut.llama_state_size = len(cut.llama_state)
        for state, sentence, n_left in (
            (wrong, r"is of the model tiny \(\d+-llama.gguf\), not of tiny", 300),
            (cut, "does not fit this model and context: Failed to set llama state data", 0),
        ):
            llm.prefill(TOKENS)
            with pytest.raises(StateError, match=sentence):
                llm.load_state(state)
            assert llm.n_tokens == llm.cache_stats().prompt_tokens == n_left
            llm.prefill(TOKENS)
            assert (llm.cache_stats().kept == 32).all()


def test_a_ram_cache(load: Load, tiny_path: Path) -> None:
    """llama_cpp's prompt cache swaps states in and out, compacted ones too."""
    llm, plain = (load(tiny_path, retention=Retention(budget=32)) for _ in range(2))
    llm.set_cache(LlamaRAMCache())
    prompts = ["one " * 60, "two, " * 50]
    for prompt in (*prompts, *prompts):
        plain.reset()
        wanted = plain.create_completion(prompt, max_tokens=12, temperature=0.0)
        found = llm.create_completion(prompt, max_tokens=12, temperature=0.0)
        assert found["choices"][0]["text"] == wanted["choices"][0]["text"]
        assert llm.cache_stats().compacted


def test_retention_can_be_set_after_a_prompt_that_was_not_read_to_its_end(
    load: Load, tiny_path: Path
) -> None:
    llm = load(tiny_path, retention=Retention(budget=32), n_batch=128)
    llm.on_prefill = lambda done, _: llm.cancel() if done == 256 else None
    with pytest.raises(Cancelled):
        llm.prefill(TOKENS)
    llm.on_prefill = None
    assert llm.n_tokens == 256
    llm.retention = Retention(budget=64, window=16)
    llm.prefill(TOKENS)
    assert (llm.cache_stats().kept == 64).all()
