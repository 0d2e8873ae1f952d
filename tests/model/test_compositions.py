"""What retention promises, for models of each kind of memory and attention: the cache alone, beside sliding
windows, beside recurrent layers, and with layers that differ."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest

from architectures import VARIANTS
from headkv_local import Cancelled, Llama, Retention
from headkv_local._core.threads import FreeCores
from helpers import (
    cancelled_after,
    compact_natively,
    ends,
    forced_logits,
    greedy,
    last_logits,
    nmse,
    random_tokens,
)
from reference import Logits, Masks, Stock, masks_of, reference_logits, stock_distance

N_PROMPT, N_LATER = 300, 12
TURNS = (20, 70, 33)  # tokens: within a ubatch, more than one and than a sliding window, past 128 cells
TOKENS = random_tokens(N_PROMPT + sum(TURNS))
PROMPT, LATER = TOKENS[:N_PROMPT], TOKENS[N_PROMPT:][:N_LATER]


NAMES = (
    "llama qwen2 qwen3 qwen3moe qwen3vl phi3 minicpm3 deci deci-without openelm graniteswitch "
    "gemma2 gemma3 gemma3n gemma4 gemma4-512 gemma4-shared gpt-oss cohere2 olmo2 olmo2-full llama4 step35 "
    "qwen3next qwen35 qwen35moe lfm2 granitehybrid nemotron_h nemotron_h_moe-draft falcon-h1 jamba"
).split()

SHARED = {"gemma4-shared": {8: 5}, "gemma3n": {24: 19}}
"""Layers with full attention that read the K and V of an earlier one."""

SETTINGS: dict[str, Any] = {"n_ctx": 512, "n_ubatch": 64, "flash_attn": True, "swa_full": False}


@dataclass
class Model:
    """A tiny model with what is asked of it more than once."""

    name: str
    path: Path
    opened: list[Llama] = field(default_factory=list)

    def open(self, n_threads: int = 1, **arguments: Any) -> Llama:
        threads = {"n_threads": n_threads, "n_threads_batch": n_threads}
        llm = Llama(self.path, **(SETTINGS | threads | arguments))
        self.opened.append(llm)
        return llm

    @cached_property
    def _llm(self) -> Llama:
        return self.open()

    def fresh(self, retention: Retention | None = None) -> Llama:
        """The same Llama each time, with an empty cache."""
        self._llm.reset()
        self._llm.retention = retention
        return self._llm

    @cached_property
    def quarter(self) -> Retention:
        """A budget of a quarter of the prompt, unequal over the heads."""
        shape = self._llm.shape
        scores = np.random.default_rng(3).random((shape.n_layer, shape.n_head_kv))
        return Retention(budget=N_PROMPT // 4, scores=scores)

    @cached_property
    def unit(self) -> float:
        return stock_distance(self.path, TOKENS[: N_PROMPT + N_LATER], N_PROMPT)

    @cached_property
    def full(self) -> Logits:
        """Of stock with flash attention: after the prompt, and after each of LATER."""
        with Stock(self.path, flash=True) as stock:
            return stock.read_each(TOKENS[: N_PROMPT + N_LATER], N_PROMPT)

    def same(self, found: Logits, wanted: Logits) -> bool:
        """Bit by bit, but for sliding windows: llama.cpp's own flash attention adds up their cells in another
        order after a state was loaded, and more than 256 of them by the number of threads."""
        if llama_cpp.llama_model_n_swa(self._llm.model) > 0:
            return nmse(found, wanted) <= 3 * self.unit
        return np.array_equal(found, wanted)

    def masks(self, llm: Llama) -> Masks:
        """By the layer's number, also of those that read another layer's K and V."""
        found = zip(llm.cache_stats().layers, llm.retention_mask(), strict=True)
        masks = {layer.il: mask[: layer.n_head_kv] for layer, mask in found}
        return masks | {il: masks[of] for il, of in SHARED.get(self.name, {}).items()}

    def compacted(self) -> Llama:
        """With a quarter of the prompt."""
        llm = self.fresh(self.quarter)
        llm.prefill(PROMPT)
        return llm

    @cached_property
    def reference(self) -> Logits:
        """With a quarter of the prompt: after the prompt, and after each of the tokens of TURNS."""
        return reference_logits(self.path, TOKENS, N_PROMPT, self.masks(self.compacted()))


@pytest.fixture(scope="module", params=NAMES)
def model(request: pytest.FixtureRequest, tiny: Callable[..., Path]) -> Iterator[Model]:
    seed = 5 if request.param == "gemma3n" else 1  # its 25 layers make much of little with most seeds
    made = Model(request.param, tiny(**VARIANTS[request.param], seed=seed))
    yield made
    for llm in made.opened:
        llm.close()


def test_positions_of_what_is_compacted_stay(model: Model) -> None:
    """Also in the layers beside it, which could change theirs."""
    wanted = forced_logits(model.compacted(), LATER)
    llm = model.compacted()
    memory = llama_cpp.llama_get_memory(llm.ctx)
    llama_cpp.llama_memory_seq_add(memory, 0, N_PROMPT - 4, -1, 3)
    llama_cpp.llama_memory_seq_add(memory, 0, 0, -1, -20)
    llama_cpp.llama_memory_seq_div(memory, 0, 0, -1, 2)
    llama_cpp.llama_memory_seq_cp(memory, 0, 1, 0, -1)
    assert ends(llm) == (N_PROMPT,) * 3
    assert llama_cpp.llama_memory_seq_pos_max(memory, 1) == -1
    assert model.same(forced_logits(llm, LATER), wanted)


def test_dormant_is_stock(model: Model) -> None:
    llm = model.fresh()
    llm.eval(PROMPT)
    assert np.array_equal(forced_logits(llm, LATER), model.full)


def test_keeping_everything_changes_nothing_but_rounding(model: Model) -> None:
    llm = model.fresh()
    compact_natively(llm, PROMPT, N_PROMPT)
    assert llm.cache_stats().compacted
    assert llm.retention_mask()[llm.shape.heads].all()
    assert ends(llm) == (N_PROMPT,) * 3
    assert nmse(forced_logits(llm, LATER)[1:], model.full[1:]) <= 3 * model.unit


def test_a_quarter_is_what_the_reference_says(model: Model) -> None:
    wanted, llm = model.reference, model.compacted()
    stats = llm.cache_stats()
    heads = llm.shape.heads
    assert stats.kept[heads].sum() == N_PROMPT // 4 * heads.sum()
    assert len(set(stats.kept[heads].tolist())) > 1 or heads.sum() == 1
    assert np.array_equal(llm.retention_mask().sum(axis=2), stats.kept)
    found = forced_logits(llm, LATER)
    assert nmse(found, wanted[: N_LATER + 1]) <= 3 * model.unit
    assert nmse(found[1:], model.full[1:]) > 30 * model.unit


def test_three_turns(model: Model) -> None:
    wanted, llm = model.reference, model.compacted()
    mask, n = llm.retention_mask(), N_PROMPT
    found, turns = [], np.cumsum(TURNS)
    for n_turn in TURNS:
        n += n_turn
        llm.prefill(TOKENS[:n])
        assert llm.reread_reason is None
        assert ends(llm) == (n,) * 3
        assert llm.cache_stats().tail_tokens == n - N_PROMPT
        assert np.array_equal(llm.retention_mask(), mask)
        found.append(last_logits(llm))
    assert nmse(np.array(found), wanted[turns]) <= 3 * model.unit


def test_the_same_prompt_again(model: Model) -> None:
    llm = model.compacted()
    mask, wanted = llm.retention_mask(), last_logits(llm)
    greedy(llm, 20)
    llm.prefill(PROMPT)
    assert np.array_equal(llm.retention_mask(), mask)
    assert np.array_equal(last_logits(llm), wanted)


def test_a_refused_cut_leaves_everything(model: Model) -> None:
    """Also beside the rows that cannot be cut: in sliding windows and recurrent layers."""
    llm = model.compacted()
    llm.eval(LATER)
    wanted, llm = last_logits(llm), model.compacted()
    for p0, p1 in ((100, -1), (0, 200), (N_PROMPT - 1, -1), (50, 60)):
        assert not llama_cpp.llama_memory_seq_rm(llama_cpp.llama_get_memory(llm.ctx), 0, p0, p1)
        assert ends(llm) == (N_PROMPT,) * 3
    llm.eval(LATER)
    assert np.array_equal(last_logits(llm), wanted)


def test_a_state_goes_on_elsewhere(model: Model) -> None:
    """Right after compaction, and from the middle of a tail, into one that holds the first."""
    llm, other = model.compacted(), model.open()
    n = N_PROMPT
    for n_tail in (0, 20):
        n += n_tail
        llm.prefill(TOKENS[:n])
        state, mask = llm.save_state(), llm.retention_mask()
        rows = []
        for each in (llm, llm, other):
            if rows:
                each.load_state(state)
            assert ends(each) == (n,) * 3
            assert np.array_equal(each.retention_mask(), mask)
            rows.append([])
            for part in (TOKENS[n : n + 1], TOKENS[n + 1 : n + 8]):
                each.eval(part)
                rows[-1].append(last_logits(each))
        went_on, here, there = (np.array(each) for each in rows)
        assert np.array_equal(here, there)
        assert model.same(went_on, there)
        n += 8


@pytest.mark.parametrize("in_turn", [False, True], ids=["prompt", "turn"])
def test_a_cancel_leaves_no_trace(model: Model, in_turn: bool) -> None:
    """In the midst of a ubatch, which is not the first."""
    tokens = TOKENS[: N_PROMPT + 90] if in_turn else PROMPT
    runs = []
    n_nodes = math.inf
    for kept, cancels in (
        (replace(model.quarter, draft=0), False),
        (model.quarter, False),
        (model.quarter, True),
    ):
        llm = model.fresh(kept)
        if in_turn:
            llm.prefill(PROMPT)
        if cancels:
            with cancelled_after(llm, 0.75 * n_nodes), pytest.raises(Cancelled, match="cancelled"):
                llm.prefill(tokens)
            assert len(set(ends(llm))) == 1
            llm.prefill(tokens)
        else:
            with cancelled_after(llm, math.inf) as count:
                llm.prefill(tokens)
            n_nodes = min(n_nodes, count[0])  # of the prompt alone
        assert ends(llm) == (len(tokens),) * 3
        runs.append((llm.retention_mask(), forced_logits(llm, LATER)))
    assert np.array_equal(runs[1][0], runs[2][0])
    assert np.array_equal(runs[1][1], runs[2][1])


def test_a_cancel_between_batches(model: Model) -> None:
    """Nothing is unfinished then: what was read stays."""
    runs = []
    llm = model.open(n_batch=64, retention=model.quarter)
    for cancels in (False, True):
        llm.reset()
        if cancels:
            llm.on_prefill = lambda done, _: llm.cancel() if done == 128 else None
            with pytest.raises(Cancelled, match="cancelled"):
                llm.prefill(PROMPT)
            llm.on_prefill = None
            assert ends(llm) == (128,) * 3
        llm.prefill(PROMPT)
        runs.append((llm.retention_mask(), forced_logits(llm, LATER)))
    assert np.array_equal(runs[0][0], runs[1][0])
    assert np.array_equal(runs[0][1], runs[1][1])


def test_tokens_are_observed_in_small_batches(model: Model) -> None:
    """As on a GPU, where attention to a long prompt takes much memory."""
    kept = replace(model.quarter, draft=0)  # its tokens may be others: the likeliest are near each other
    llm, whole = model.open(n_batch=16, retention=kept), model.open(retention=kept)
    for each in (whole, llm):
        each.prefill(PROMPT)
    found = forced_logits(llm, LATER)
    wanted = reference_logits(model.path, [*PROMPT, *LATER], N_PROMPT, model.masks(llm))
    assert nmse(found, wanted) <= 3 * model.unit
    alike = llm.retention_mask() == whole.retention_mask()
    assert alike.mean() > 0.98


def test_threads_change_nothing(model: Model) -> None:
    runs = []
    for llm in (model.fresh(), model.open(n_threads=2)):
        llm.retention = model.quarter
        llm.prefill(PROMPT)
        runs.append((llm.retention_mask(), forced_logits(llm, LATER)))
    (mask, found), (wanted_mask, wanted) = runs
    assert np.array_equal(mask, wanted_mask)
    assert np.array_equal(found[0], wanted[0])
    assert model.same(found, wanted)


def test_other_processes_change_nothing(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """They leave fewer cores free, so that fewer threads decode, but only where that is the same: not in a
    prompt's last batch of one token."""
    rows = []
    llm = model.open(n_threads=0, n_batch=N_PROMPT - 1)
    for n_free in (1, 2):
        monkeypatch.setattr(FreeCores, "threads", lambda _, n_free=n_free: n_free)
        llm.reset()
        llm.retention = model.quarter
        llm.prefill(PROMPT)
        rows.append(forced_logits(llm, LATER))
    assert np.array_equal(rows[0], rows[1])


def test_nothing_but_the_window(model: Model) -> None:
    window = Retention().window
    llm = model.fresh(Retention(budget=window, scores="uniform"))
    llm.prefill(PROMPT)
    mask = llm.retention_mask()
    assert mask[llm.shape.heads][:, -window:].all()
    assert mask.sum() == window * llm.shape.n_heads
    found = forced_logits(llm, LATER)
    wanted = reference_logits(model.path, [*PROMPT, *LATER], N_PROMPT, model.masks(llm))
    assert nmse(found, wanted) <= 3 * model.unit


def test_a_prompt_as_long_as_the_window(model: Model) -> None:
    tokens = TOKENS[: 8 + N_LATER]
    with Stock(model.path, flash=True) as stock:
        wanted = stock.read_each(tokens, 8)
    llm = model.fresh(Retention(budget=8, window=8))
    llm.prefill(tokens[:8])
    assert not llm.cache_stats().compacted
    assert np.array_equal(forced_logits(llm, tokens[8:]), wanted)
    llm = model.fresh()
    compact_natively(llm, tokens[:8], 8)
    assert llm.cache_stats().compacted
    assert ends(llm) == (8,) * 3
    assert nmse(forced_logits(llm, tokens[8:]), wanted) <= 3 * stock_distance(model.path, tokens, 8)


def test_a_prompt_as_long_as_the_sliding_window(model: Model) -> None:
    n, tokens = 64, TOKENS[: 64 + N_LATER]
    llm = model.fresh(Retention(budget=n // 4, window=4, scores="uniform"))
    llm.prefill(tokens[:n])
    wanted = reference_logits(model.path, tokens, n, model.masks(llm))
    assert nmse(forced_logits(llm, tokens[n:]), wanted) <= 3 * stock_distance(model.path, tokens, n)


DOCUMENT = (
    "The harbour of Vell has two lights. The green one stands on the north mole and was built by the "
    "fishermen; the red one came with the railway, which needed the deep quay. Whoever sails in at night "
    "keeps the red light to port until the church tower hides the mill."
)
PARTS = [
    {"type": "text", "text": "Who built the green light?\n"},
    {"type": "text", "text": DOCUMENT, "document": True},
]


def test_a_question_before_the_document(model: Model) -> None:
    """It selects, and leaves no trace."""
    llm = model.fresh(Retention(budget=64, scores="uniform"))
    messages: Any = [{"role": "user", "content": PARTS}]
    llm.create_chat_completion(messages, max_tokens=1, temperature=0.0)
    n, n_prompt = llm.n_tokens, llm.cache_stats().prompt_tokens
    assert llm.cache_stats().compacted
    assert ends(llm) == (n,) * 3
    tokens, mask, masks = llm.input_ids[:n].tolist(), llm.retention_mask(), model.masks(llm)
    found = forced_logits(llm, LATER)
    wanted = reference_logits(model.path, tokens + LATER, n_prompt, masks)
    distance = stock_distance(model.path, tokens + LATER, n_prompt)
    assert nmse(found, wanted[n - n_prompt :]) <= 3 * distance
    llm = model.fresh(llm.retention)
    llm.prefill(tokens[:n_prompt])
    assert not np.array_equal(llm.retention_mask(), mask)


@pytest.mark.parametrize("name", ["gemma3", "gpt-oss"])
def test_windows_with_cells_for_the_whole_context(
    tiny: Callable[..., Path], load: Callable[..., Llama], name: str
) -> None:
    """As llama.cpp makes them."""
    path, settings = tiny(**VARIANTS[name]), SETTINGS | {"swa_full": True}
    with Stock(path, flash=True, swa_full=True) as stock:
        full = stock.read_each([*PROMPT, *LATER], N_PROMPT)
    llm = load(path, **settings)
    llm.eval(PROMPT)
    assert np.array_equal(forced_logits(llm, LATER), full)
    llm.reset()
    llm.retention = Retention(budget=N_PROMPT // 4)
    llm.prefill(PROMPT)
    wanted = reference_logits(path, [*PROMPT, *LATER], N_PROMPT, masks_of(path, llm))
    distance = stock_distance(path, [*PROMPT, *LATER], N_PROMPT)
    assert nmse(forced_logits(llm, LATER), wanted) <= 3 * distance
