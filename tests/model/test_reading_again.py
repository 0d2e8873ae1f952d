"""observe="all": the whole prompt is read once more and selects, for questions that are still to come."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from headkv_local import ArgumentError, Cancelled, Llama, Retention
from headkv_local._core import native
from headkv_local._core.native.plan import Part
from headkv_local._core.native.reading import Reading
from headkv_local.bench.haystack import cut, hide
from helpers import cancelled_after, greedy, last_logits, random_tokens

Load = Callable[..., Llama]
TOKENS = random_tokens(300)
WINDOW, SINKS = 4, 2
ALL = Retention(budget=48, scores="uniform", observe="all", window=WINDOW, sinks=SINKS, kernel=1)
ORDERS = ("tokens", "layers")
BOUNDED = ("gemma3", "falcon-h1", "lfm2", "qwen35")
FACTS = {
    "What is the access code of the warehouse in Lisbon?": (
        "The access code of the warehouse in Lisbon is 48213."
    ),
    "From which platform does the night train to Bergen leave?": (
        "The night train to Bergen leaves from platform 27."
    ),
    "Who repaired the boiler in the cellar?": "The boiler in the cellar was repaired by Anna Lindqvist.",
}


def test_questions_that_come_later(smollm2: Path) -> None:
    """About a document that was compacted before, without an archive: most are answered, else hardly one."""
    assert n_answered(smollm2, Retention(budget="8%", observe="all")) >= 2
    assert n_answered(smollm2, Retention(budget="8%")) <= 1


def n_answered(path: Path, retention: Retention) -> int:
    with Llama(path, n_ctx=2048, verbose=False, retention=retention) as llm:

        def tokens_of(text: str) -> list[int]:
            return llm.tokenize(text.encode(), add_bos=False, special=True)

        document = hide(
            cut(600, lambda text: len(tokens_of(text))),
            list(FACTS.values()),
            0.2,
            lambda t: len(tokens_of(t)),
        )
        before = f"<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n{document}"
        found = 0
        for question, fact in FACTS.items():
            asked = f"{before}\n\n{question} Answer with the fact only.<|im_end|>\n<|im_start|>assistant\n"
            n, tokens = len(tokens_of(before)), tokens_of(asked)
            llm.reset()
            llm.prefill(tokens[:n])
            assert llm.cache_stats().kept_share == pytest.approx(0.08, abs=0.01)
            llm.eval(tokens[n:])
            answer = llm.detokenize(greedy(llm, 16)).decode(errors="replace")
            found += fact.rstrip(".").split()[-1] in answer
        return found


def kept_of(llm: Llama) -> npt.NDArray[np.bool_]:
    return native.get_mask(llm.ctx)


def by_the_reference(load: Load, path: Path, budget: int) -> npt.NDArray[np.bool_]:
    """Of each head the window, the first tokens, and its entries among those most looked at, of all heads."""
    n = len(TOKENS)
    llm = load(path, flash_attn=True, n_ctx=2 * n)
    ctx = int(llm.ctx)
    first = n - 2 * WINDOW
    llm.eval(TOKENS[:first])
    native.observe(ctx, native.OBSERVE_TOKENS, first, 2 * WINDOW + n)
    llm.eval(TOKENS[first:])
    llm.eval(TOKENS)
    looked = native.get_attention(ctx)[..., SINKS : n - 2 * WINDOW]
    n_layer, n_head, n_candidates = looked.shape
    n_best = n_layer * n_head * (budget - WINDOW - SINKS)
    order = np.argsort(-looked.reshape(-1), kind="stable")[:n_best]
    n_of = np.bincount(order // n_candidates, minlength=n_layer * n_head) + WINDOW + SINKS
    keep = np.zeros((n_layer, n_head, n), dtype=np.bool_)
    keep[..., :SINKS], keep[..., n - WINDOW :] = True, True
    for i, cap in enumerate(n_of):
        layer, head = divmod(i, n_head)
        n_recent = min(
            WINDOW, max(int(cap) // 2, WINDOW) - WINDOW
        )  # before the window, within half of the cap
        keep[layer, head, n - WINDOW - n_recent :] = True
        best = np.argsort(-looked[layer, head], kind="stable")[: cap - WINDOW - SINKS - n_recent]
        keep[layer, head, SINKS + best] = True
    return keep


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("budget", [8, 48, 150])
def test_heads_share_the_budget_by_what_is_looked_at(
    load: Load, tiny_path: Path, order: Any, budget: int
) -> None:
    llm = load(tiny_path, retention=replace(ALL, budget=budget, order=order))
    llm.prefill(TOKENS)
    kept, expected = kept_of(llm), by_the_reference(load, tiny_path, budget)
    assert kept.sum() == expected.sum() == budget * kept.shape[0] * kept.shape[1]
    assert np.mean(kept == expected) >= 0.998  # sums of two batches or of one: two entries may be level
    assert len(set(llm.cache_stats().kept.ravel().tolist())) > 1


@pytest.mark.parametrize("name", ["llama", *BOUNDED])
@pytest.mark.parametrize("order", ORDERS)
def test_nothing_of_it_stays(load: Load, tiny: Any, name: str, order: Any) -> None:
    """The prompt's logits, its place and what bounded layers hold are as without."""
    with_again, without = (
        load(tiny(arch=name), n_ctx=400, retention=replace(ALL, order=order, observe=observe, draft=0))
        for observe in ("all", 128)
    )
    found = []
    for llm in (with_again, without):
        llm.prefill(TOKENS)
        assert llm.n_tokens == len(TOKENS)
        found.append(last_logits(llm))
    assert np.array_equal(*found)
    assert with_again.cache_stats().resident_bytes == without.cache_stats().resident_bytes
    assert with_again.cache_stats().kept.sum() == without.cache_stats().kept.sum()
    assert np.isfinite(last_logits_after(with_again)).all()


def last_logits_after(llm: Llama) -> npt.NDArray[np.float32]:
    llm.eval([7, 8, 9])
    return last_logits(llm)


@pytest.mark.parametrize("n_ctx", [512, 1024])
def test_in_pieces_as_the_context_has_room(load: Load, tiny_path: Path, n_ctx: int) -> None:
    """The same in both orders, of 300 tokens behind 300 or of fewer at a time."""
    masks = []
    for order in ORDERS:
        llm = load(tiny_path, n_ctx=n_ctx, retention=replace(ALL, order=order))
        llm.prefill(TOKENS)
        masks.append(kept_of(llm))
    assert np.mean(masks[0] == masks[1]) > 0.999
    assert masks[0].sum() == 48 * 4


def test_without_room_for_it(load: Load, tiny_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The question selects, which the log says."""
    masks = []
    for observe in ("all", 128):
        llm = load(tiny_path, n_ctx=512, retention=replace(ALL, observe=observe))
        with caplog.at_level(logging.WARNING, logger="headkv_local"):
            llm.prefill(random_tokens(500))
        masks.append(kept_of(llm))
    assert np.array_equal(*masks)
    assert [r.getMessage() for r in caplog.records if "once more" in r.getMessage()] == [
        "no room to read the prompt of 500 tokens once more: its question selects"
    ]


def test_whatever_asks(load: Load, tiny_path: Path) -> None:
    """A question changes nothing, and the same prompt with another one is not read again."""
    llm = load(tiny_path, retention=ALL)
    llm.prefill(TOKENS, question=slice(100, 120))
    first = kept_of(llm)
    done: list[int] = []
    llm.on_prefill = lambda n, _total: done.append(n) or True  # type: ignore[func-returns-value]
    llm.prefill(TOKENS, question=slice(200, 220))
    assert np.array_equal(kept_of(llm), first)
    assert max(done, default=0) <= 1


def test_a_prompt_that_fits_is_read_once(load: Load, tiny_path: Path) -> None:
    told: list[int] = []
    llm = load(tiny_path, retention=replace(ALL, budget=500))
    llm.on_prefill = lambda _done, total: told.append(total)
    llm.prefill(TOKENS)
    assert set(told) == {len(TOKENS)}
    assert not llm.cache_stats().compacted


def test_heads_keep_their_shares_of_what_is_folded(load: Load, smollm2: Path) -> None:
    """Also those that have next to nothing, and within the budget."""
    llm = load(smollm2, retention=Retention(budget=32, scores="uniform", observe="all", fold=64, window=8))
    llm.prefill(random_tokens(180, seed=3))
    assert llm.cache_stats().policy == "observed"
    before = llm.cache_stats().kept
    assert before.max() > 3 * before.min()
    for i in range(3):
        llm.eval(random_tokens(64, seed=i))
    llm.eval([1])
    stats = llm.cache_stats()
    assert stats.prompt_tokens > 180 + 64
    assert 31 * before.size <= stats.kept.sum() <= 32 * before.size
    assert np.abs(stats.kept - before).max() <= 1


@pytest.mark.parametrize("order", ORDERS)
def test_a_cancel_while_it_is_read(load: Load, tiny_path: Path, order: Any) -> None:
    """Also behind the prompt: the next one is read as ever."""
    llm = load(tiny_path, n_ctx=512, n_batch=64, retention=replace(ALL, order=order))
    with cancelled_after(llm, math.inf) as seen:
        llm.prefill(TOKENS)
    (n_nodes,) = seen
    for share in (0.0, 0.2, 0.6, 0.9):
        llm.reset()
        with cancelled_after(llm, share * n_nodes), pytest.raises(Cancelled):
            llm.prefill(TOKENS)
    llm.prefill(TOKENS)
    other = load(tiny_path, n_ctx=512, n_batch=64, retention=replace(ALL, order=order))
    other.prefill(TOKENS)
    assert np.array_equal(kept_of(llm), kept_of(other))


def test_what_cannot_be() -> None:
    with pytest.raises(ArgumentError, match="observe must be an int of at least 1 or \"all\", not 'most'"):
        Retention(observe="most")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match='observe must be an int of at least 1 or "all", not 0'):
        Retention(observe=0)
    with pytest.raises(ArgumentError, match='observe="all" chooses once'):
        Retention(observe="all", archive="memory")
    with pytest.raises(ArgumentError, match="leave out the scores"):
        Retention(observe="all", scores=np.ones((2, 2)))
    assert Retention(observe="all", archive="memory", reselect=False).observe == "all"


@pytest.mark.parametrize("part", [Part(-5, 10), Part(0, 1 << 30), Part(20, 10)])
def test_a_question_that_does_not_count_must_be_one(load: Load, tiny_path: Path, part: Part) -> None:
    llm = load(tiny_path, retention=ALL)
    with pytest.raises(ArgumentError, match=f"no tokens from {part.start} to"):
        llm._compactor.read(
            Reading(TOKENS, 0, 0, [part]), ALL.caps_for(llm.shape, len(TOKENS)), lambda *_: None
        )
    llm.prefill(TOKENS)
    assert llm.cache_stats().compacted


def test_scores_that_come_with_the_model_do_not_count(load: Load, smollm2: Path) -> None:
    llm = load(smollm2, retention=Retention(budget=32, observe="all"))
    llm.prefill(TOKENS)
    assert llm.cache_stats().scores_from is None
