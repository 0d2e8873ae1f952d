"""Generation without an end: the tail of a compacted prompt becomes a part of it."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_cpp.llama_speculative import LlamaDraftModel

from architectures import VARIANTS
from headkv_local import ArgumentError, Cancelled, Llama, OutOfMemoryError, Retention, StateError
from headkv_local._core import native
from headkv_local.settings import KV_TYPES
from helpers import compact_natively, ends, forced_logits, greedy, last_logits, random_tokens

Load = Callable[..., Llama]
Tiny = Callable[..., Path]

N_PROMPT, N_TAIL, N_ASKING = 200, 120, 37
TOKENS = random_tokens(N_PROMPT + 1000, seed=5)
N_ALL = N_PROMPT + N_TAIL
STOCK = {"flash_attn": True, "swa_full": False}
SENTENCES = np.array([i % 23 == 22 for i in range(N_ALL)], dtype=np.uint8)


def plan_of(llm: Llama, uneven: bool) -> native.Plan:
    heads = native.model_shape(int(llm.ctx)).heads
    caps = np.where(heads, 48, 0).astype(np.int32)
    if uneven:
        caps[heads] += (np.arange(heads.sum()) % 3 * 30).astype(np.int32)
    return native.Plan(caps, 8, 7, 4, SENTENCES)


@pytest.mark.parametrize("uneven", [False, True], ids=["equal", "votes"])
@pytest.mark.parametrize("kv", ["f16", "q8_0", "f32"])
@pytest.mark.parametrize(
    "name", ["llama", "gemma2", "gpt-oss", "gemma4-shared", "qwen35", "openelm", "deci-without"]
)
def test_heads_choose_as_they_would_from_the_whole(
    load: Load, tiny: Tiny, name: str, kv: str, uneven: bool
) -> None:
    """Of a prompt that was kept whole, and a tail: folded, the heads keep what they would have kept of all
    these tokens, but for what attention over kept rows rounds in another way."""
    types = {"type_k": KV_TYPES[kv], "type_v": KV_TYPES[kv]}
    masks, logits = [], []
    for keep_first in (True, False):
        llm = load(tiny(**VARIANTS[name]), n_ubatch=64, **STOCK, **types)
        ctx = int(llm.ctx)
        if keep_first:
            compact_natively(llm, TOKENS[:N_PROMPT], N_PROMPT)
        else:
            llm.eval(TOKENS[:N_PROMPT])
        llm.eval(TOKENS[N_PROMPT : N_ALL - N_ASKING])
        native.observe(ctx, native.OBSERVE_TAIL, N_ALL - N_ASKING, N_ASKING)
        for token in TOKENS[N_ALL - N_ASKING : N_ALL]:
            llm.eval([token])
        native.compact(ctx, plan_of(llm, uneven))
        masks.append(native.get_mask(ctx))
        logits.append(forced_logits(llm, TOKENS[N_ALL:][:4])[1:])
        assert ends(llm)[1:] == (N_ALL + 4, N_ALL + 4)
    folded, whole = masks
    assert (folded.sum(axis=2) == whole.sum(axis=2)).all()
    assert (folded & whole).sum() >= 0.97 * whole.sum()


def test_an_endless_answer_in_bounded_memory(load: Load, tiny: Tiny) -> None:
    llm = load(tiny(), n_ctx=2048, retention=Retention(budget=48, fold=128))
    llm.prefill(TOKENS[:N_PROMPT])
    sizes, counts = [], []
    for i, token in enumerate(TOKENS[N_PROMPT:][:800]):
        llm.eval([token])
        assert ends(llm) == (N_PROMPT + i + 1,) * 3
        stats = llm.cache_stats()
        assert stats.tail_tokens <= 128
        assert (stats.kept <= 48).all()
        sizes.append(stats.resident_bytes)
        counts.append(stats.prompt_tokens)
    assert max(sizes[400:]) <= max(sizes[:400])
    assert set(counts) == {N_PROMPT + 128 * i for i in range(7)}


@pytest.mark.parametrize("n_prompt", [2, 20, 300])
@pytest.mark.parametrize("budget", [48, "50%", "48KiB"])
@pytest.mark.parametrize("compacted", [False, True])
def test_a_budget_is_that_of_a_short_prompt_too(
    load: Load, tiny: Tiny, tmp_path: Path, n_prompt: int, budget: int | str, compacted: bool
) -> None:
    """A share is one of the prompt, or of what is folded at once. The same in a session."""
    kept = Retention(budget=budget, scores="uniform", fold=64, archive="memory")
    llm = load(tiny(), n_ctx=512, retention=kept)
    entries = {48: 48, "48KiB": 48, "50%": max(n_prompt, 64) // 2}[budget]
    if compacted:
        llm.prefill(TOKENS[:310])  # a short one alone would not be
    llm.prefill(TOKENS[:n_prompt])
    assert set(llm.cache_stats().kept.ravel()) == {
        min(entries, n_prompt) if budget != "50%" else max(n_prompt // 2, min(32, n_prompt))
    }
    llm.save_session(tmp_path / "session")
    with Llama.open_session(tmp_path / "session", n_ctx=512) as other:
        for each in (llm, other):
            assert len(greedy(each, 150)) == 150
            assert each.cache_stats().prompt_tokens > n_prompt + 64
            assert set(each.cache_stats().kept.ravel()) == {entries}


@pytest.mark.parametrize("archive", [None, "memory"])
@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt-oss", "qwen35", "falcon-h1"])
def test_a_prompt_that_fits_is_folded_with_its_answer(
    load: Load, tiny: Tiny, name: str, archive: str | None
) -> None:
    """Once both do not fit any more."""
    path = tiny(**VARIANTS[name])
    llm = load(path, n_ctx=2048, retention=Retention(budget=90, fold=64, archive=archive))
    stock = load(path, n_ctx=2048, **STOCK)
    for each in (llm, stock):
        each.prefill(TOKENS[:30])
    whole, sizes = 0, []
    for i, token in enumerate(TOKENS[30:800]):
        llm.eval([token])
        stats = llm.cache_stats()
        assert ends(llm) == (31 + i,) * 3
        if stats.prompt_tokens == 30:
            stock.eval([token])
            assert np.array_equal(last_logits(llm), last_logits(stock))
            whole = 31 + i
        else:
            assert set(stats.kept[stats.kept > 0].ravel()) == {90}
            assert stats.tail_tokens <= 64
        sizes.append(stats.resident_bytes)
    assert 90 < whole < 30 + 90 + 64
    assert max(sizes[400:]) <= max(sizes[:400])


@pytest.mark.parametrize("name", ["llama", "gemma3", "qwen35"])
def test_a_turn_after_a_prompt_that_fitted(load: Load, tiny: Tiny, name: str) -> None:
    """Rows of the prompt and of the answer are in the archive as stock would have them."""
    path = tiny(**VARIANTS[name])
    llm = load(path, retention=Retention(budget=48, fold=64, archive="memory"))
    stock = load(path, **STOCK)
    for each in (llm, stock):
        each.prefill(TOKENS[:30])
        for token in TOKENS[30:94]:
            each.eval([token])
    llm.eval(TOKENS[94:95])
    stats = llm.cache_stats()
    assert stats.archive_tokens == stats.prompt_tokens == 94
    assert set(stats.kept[stats.kept > 0].ravel()) == {48}
    for each in (llm, stock):
        each.prefill(TOKENS[:130])
    assert np.array_equal(last_logits(llm), last_logits(stock))
    assert llm.cache_stats().archive_tokens == 130


@pytest.mark.parametrize("archive", [None, "memory"])
def test_a_later_prompt_stays_whole_for_its_answer(load: Load, tiny: Tiny, archive: str | None) -> None:
    """Where it is decoded after what was kept, also after others and where its reading was stopped. The next
    question may have it folded."""
    kept = Retention(budget=48, fold=64, archive=archive, reselect=False)
    llm = load(tiny(), n_ctx=2048, n_batch=64, retention=kept)
    llm.prefill(TOKENS[:160])
    llm.prefill(TOKENS[:200])
    llm.on_prefill = lambda done, _: llm.cancel() if done == 64 else None
    with pytest.raises(Cancelled):
        llm.prefill(TOKENS[:500])
    llm.on_prefill = None
    llm.prefill(TOKENS[:500])
    for i, token in enumerate(TOKENS[500:565]):
        stats = llm.cache_stats()
        assert (stats.prompt_tokens, stats.turn_tokens, stats.tail_tokens) == (160, 500, 340 + i)
        llm.eval([token])
    stats = llm.cache_stats()
    assert (stats.prompt_tokens, stats.turn_tokens) == (564, 500)
    llm.prefill(TOKENS[:700])
    llm.prefill(TOKENS[:720])
    for token in TOKENS[720:753]:
        assert llm.cache_stats().prompt_tokens == 564
        llm.eval([token])
    stats = llm.cache_stats()
    assert (stats.prompt_tokens, stats.turn_tokens) == (752, 720)


def test_a_share_is_of_a_later_prompt_too(load: Load, tiny: Tiny) -> None:
    llm = load(tiny(), n_ctx=2048, retention=Retention(budget="25%", fold=64, scores="uniform"))
    for n in (200, 600):
        llm.prefill(TOKENS[:n])
    assert set(llm.cache_stats().kept.ravel()) == {50}
    for token in TOKENS[600:700]:
        llm.eval([token])
    assert set(llm.cache_stats().kept.ravel()) == {100}


def test_heads_keep_what_they_had_or_what_was_generated(load: Load, tiny: Tiny) -> None:
    llm = load(tiny(), retention=Retention(budget=48, fold=64))
    llm.prefill(TOKENS[:N_PROMPT])
    before = llm.retention_mask()
    for token in TOKENS[N_PROMPT:][:65]:
        llm.eval([token])
    after = llm.retention_mask()
    assert after.shape[2] == N_PROMPT + 64
    assert (after.sum(axis=2) == 48).all()
    assert not (after[..., :N_PROMPT] & ~before).any()
    assert after[..., -8:].all()
    assert after[..., N_PROMPT:].sum() > after[..., -8:].sum()


def test_no_more_where_it_is_off(load: Load, tiny: Tiny) -> None:
    llm = load(tiny(), retention=Retention(budget=48, fold=None))
    llm.prefill(TOKENS[:N_PROMPT])
    for token in TOKENS[N_PROMPT:][:200]:
        llm.eval([token])
    assert llm.cache_stats().tail_tokens == 200


@pytest.mark.parametrize("name", ["llama", "gemma3", "qwen35"])
def test_the_archive_has_what_was_folded(load: Load, tiny: Tiny, name: str) -> None:
    """The next turn reads what came after the last fold, and can keep what the heads had let go. Where layers
    cannot go back to any token it reads all that came after the prompt."""
    read: list[int] = []
    llm = load(tiny(**VARIANTS[name]), retention=Retention(budget=48, fold=64, archive="memory"))
    llm.prefill(TOKENS[:N_PROMPT])
    for token in TOKENS[N_PROMPT:][:150]:
        llm.eval([token])
    n_archived = N_PROMPT + (128 if name == "llama" else 0)
    stats = llm.cache_stats()
    assert (stats.archive_tokens, stats.prompt_tokens) == (n_archived, N_PROMPT + 128)
    let_go = ~llm.retention_mask()[..., :N_PROMPT]
    llm.on_prefill = lambda done, total: read.append(total)
    llm.prefill(TOKENS[: N_PROMPT + 200])
    assert set(read) == {N_PROMPT + 200 - n_archived}
    assert (llm.retention_mask()[..., :N_PROMPT] & let_go).any()


@pytest.mark.parametrize("kept", ["context", "chosen once", "session", "state"])
@pytest.mark.parametrize("name", ["llama", "gemma3", "qwen35", "gpt-oss"])
def test_a_turn_that_leaves_an_answer_out(
    load: Load, tiny: Tiny, tmp_path: Path, name: str, kept: str
) -> None:
    """As templates do with what the model has thought: the prompt before it is not read again."""
    read: list[int] = []
    path = tiny(**VARIANTS[name])
    reselect = kept != "chosen once"
    retention = Retention(budget=48, fold=64, archive="memory", reselect=reselect)
    llm = load(path, n_ctx=2048, retention=retention)
    stock = load(path, n_ctx=2048, **STOCK)
    for each in (llm, stock):
        each.prefill(TOKENS[:N_PROMPT])
    for token in TOKENS[N_PROMPT:][:150]:
        llm.eval([token])
    assert llm.cache_stats().prompt_tokens == N_PROMPT + 128
    if kept == "session":
        llm.save_session(tmp_path / "session")
        llm.prefill(TOKENS[500:700])
        llm.load_session(tmp_path / "session")
    elif kept == "state":
        state = llm.save_state()
        llm.prefill(TOKENS[500:700])
        llm.load_state(state)
    turn = [*TOKENS[:N_PROMPT], *TOKENS[600:640]]
    llm.on_prefill = lambda done, total: read.append(total)
    llm.prefill(turn)
    stock.eval(turn[N_PROMPT:])
    assert set(read) == {40}
    assert llm.reread_reason is None
    assert np.array_equal(last_logits(llm), last_logits(stock))


@pytest.mark.parametrize("name", ["gemma3", "qwen35"])
def test_the_same_prompt_again_after_a_fold(load: Load, tiny: Tiny, name: str) -> None:
    """It has to be chosen for anew, for which such layers cannot go back."""
    llm = load(tiny(**VARIANTS[name]), retention=Retention(budget=48, fold=64, archive="memory"))
    for _ in range(2):
        llm.prefill(TOKENS[:N_PROMPT])
        for token in TOKENS[N_PROMPT:][:70]:
            llm.eval([token])
    assert "cannot go back to token 199" in str(llm.reread_reason)


@pytest.mark.parametrize("n_prompt", [20, N_PROMPT], ids=["fits", "compacted"])
def test_tokens_that_were_taken_back(load: Load, tiny: Tiny, n_prompt: int) -> None:
    """In the middle of those that choose: they are decoded again, and choose."""
    llm, other = (load(tiny(), retention=Retention(budget=48, fold=64)) for _ in range(2))
    for each, n_first in ((llm, 50), (other, 65)):
        each.prefill(TOKENS[:n_prompt])
        for token in TOKENS[n_prompt:][:n_first]:
            each.eval([token])
    assert llm._contents.truncate(n_prompt + 40)
    for token in TOKENS[n_prompt + 40 :][:25]:
        llm.eval([token])
    assert llm.cache_stats().prompt_tokens == n_prompt + 64
    assert np.array_equal(llm.retention_mask(), other.retention_mask())
    assert np.array_equal(last_logits(llm), last_logits(other))


@pytest.mark.parametrize("n_prompt", [20, N_PROMPT], ids=["fits", "compacted"])
@pytest.mark.parametrize("sizes", [(2,), (11,), (31,), (33,), (64,), (200,), (1, 11, 3), (1, 40)], ids=str)
def test_several_tokens_at_once(load: Load, tiny: Tiny, n_prompt: int, sizes: tuple[int, ...]) -> None:
    llm = load(tiny(), n_ctx=2048, retention=Retention(budget=48, fold=64))
    llm.prefill(TOKENS[:n_prompt])
    at, folded = n_prompt, 0
    while at + max(sizes) < len(TOKENS):
        for size in sizes:
            llm.eval([])
            llm.eval(TOKENS[at : at + size])
            at += size
        stats = llm.cache_stats()
        folded += stats.kept.max() == 48
        assert stats.tail_tokens <= 64 + 2 * max(32, *sizes)
    assert folded > 2
    assert ends(llm) == (at,) * 3


@pytest.mark.parametrize("n_prompt", [20, N_PROMPT], ids=["fits", "compacted"])
def test_guesses_that_are_taken_back(load: Load, tiny: Tiny, n_prompt: int) -> None:
    """Of a draft model, most of them wrong. Up to the first fold the answer is the one without."""
    guesses = np.random.default_rng(3).integers(60, 90, (2000, 4))

    class Guesses(LlamaDraftModel):
        def __call__(self, input_ids: Any, /, **_: Any) -> Any:
            return guesses[len(input_ids)].astype(np.intc)

    found = []
    for model in (None, Guesses()):
        llm = load(tiny(), n_ctx=2048, retention=Retention(budget=48, fold=64), draft_model=model)
        tokens = llm.generate(TOKENS[:n_prompt], temp=0.0, reset=False)
        found.append([token for token, _ in zip(tokens, range(400), strict=False)])
        assert llm.cache_stats().prompt_tokens > n_prompt + 250
        assert llm.cache_stats().kept.max() == 48
    assert len(found[1]) == 400
    assert found[0][:64] == found[1][:64]


@pytest.mark.parametrize("n_prompt", [20, N_PROMPT], ids=["fits", "compacted"])
def test_no_memory_to_ask(load: Load, tiny: Tiny, n_prompt: int, caplog: pytest.LogCaptureFixture) -> None:
    """The answer goes on. It is said and tried again with the next tokens that would be folded."""
    llm = load(tiny(), retention=Retention(budget=48, fold=64))
    llm.prefill(TOKENS[:n_prompt])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("headkv_local._core.compactor.native.observe", _no_memory)
        for token in TOKENS[n_prompt:][:90]:
            llm.eval([token])
    assert len([record for record in caplog.records if "stay as they are for now" in record.message]) == 2
    for token in TOKENS[n_prompt + 90 :][:70]:
        llm.eval([token])
    assert llm.cache_stats().prompt_tokens == n_prompt + 128


def _no_memory(*_: Any) -> None:
    raise OutOfMemoryError("no memory for what tokens ask for")


def test_a_window_wider_than_what_is_folded_at_once(load: Load, tiny: Tiny) -> None:
    for before in (20, 300):
        kept = Retention(budget="50%", scores="uniform", window=100, fold=64, archive="memory")
        llm = load(tiny(), n_ctx=1024, retention=kept)
        llm.prefill(TOKENS[:before])
        llm.prefill(TOKENS[:20])
        for token in TOKENS[20:300]:
            llm.eval([token])
        assert llm.cache_stats().prompt_tokens > 200
        assert (llm.cache_stats().kept == 100).all()


@pytest.mark.parametrize("before", [None, Retention(budget=400, fold=64)], ids=["none", "larger"])
def test_another_retention(load: Load, tiny: Tiny, before: Retention | None) -> None:
    """A prompt that was read under another one is not compacted in the middle of its answer. Read again, it
    is folded as soon as any other."""
    llm = load(tiny(), n_ctx=2048, flash_attn=True, retention=before)
    llm.prefill(TOKENS[:30])
    for token in TOKENS[30:300]:
        llm.eval([token])
    llm.retention = Retention(budget=48, fold=64)
    for token in TOKENS[300:400]:
        llm.eval([token])
    assert not llm.cache_stats().compacted
    llm.prefill(TOKENS[:30])
    for token in TOKENS[30:95]:
        llm.eval([token])
    assert llm.cache_stats().prompt_tokens == 94


def test_tokens_that_are_observed_beside_a_tail(load: Load, tiny: Tiny) -> None:
    """Both are recorded, and a fold is by the tail's, whatever comes after it."""
    masks = []
    for both in (False, True):
        llm = load(tiny(), **STOCK)
        ctx = int(llm.ctx)
        llm.eval(TOKENS[: N_ALL - N_ASKING])
        if both:
            native.observe(ctx, native.OBSERVE_TOKENS, N_ALL, 1)
        native.observe(ctx, native.OBSERVE_TAIL, N_ALL - N_ASKING, N_ASKING)
        llm.eval(TOKENS[N_ALL - N_ASKING : N_ALL])
        llm.eval(TOKENS[N_ALL : N_ALL + 1])
        ends_of = np.append(SENTENCES, np.uint8(0))
        native.compact(ctx, plan_of(llm, True)._replace(ends=ends_of))
        masks.append(native.get_mask(ctx))
    assert np.array_equal(*masks)


def test_attention_rows_beside_tokens_that_choose(load: Load, tiny: Tiny) -> None:
    """Until it is folded."""
    llm = load(tiny(), retention=Retention(budget=48, fold=64))
    llm.prefill(TOKENS[:20])
    with llm.attention_rows() as rows:
        for token in TOKENS[20:84]:
            llm.eval([token])
            assert rows().shape[-1] == llm.n_tokens
        llm.eval(TOKENS[84:85])
        assert llm.cache_stats().compacted
        with pytest.raises(StateError):
            rows()


@pytest.mark.parametrize("n_prompt", [20, N_PROMPT], ids=["fits", "compacted"])
@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt-oss", "qwen35"])
@pytest.mark.parametrize("way", ["streams", "state", "light", "held", "session"])
def test_it_is_folded_however_often_it_makes_way(
    load: Load, tiny: Tiny, tmp_path: Path, way: str, name: str, n_prompt: int
) -> None:
    """At the same tokens, by the same attention, as if nothing had come between. Sliding windows come back in
    other cells, where sums are made in another order: random models may go on otherwise then."""
    exact = name not in ("gemma3", "gpt-oss")
    every = 11 if way == "session" else 1  # it is written each time
    retention = Retention(budget=48, fold=64, archive="memory" if way == "held" else None, draft=0)
    alone, llm = (load(tiny(**VARIANTS[name]), n_ctx=1024, retention=retention) for _ in range(2))
    streams = [each.generate(TOKENS[:n_prompt], temp=0.0) for each in (alone, llm)]
    other = llm.generate(TOKENS[500:600], temp=0.0)
    if way != "streams":
        alone.prefill(TOKENS[:n_prompt])
        llm.prefill(TOKENS[:n_prompt])
    for i in range(120):
        if way == "streams":
            tokens = [next(stream) for stream in streams]
            assert not exact or tokens[0] == tokens[1]
        else:
            alone.eval(TOKENS[600 + i :][:1])
            llm.eval(TOKENS[600 + i :][:1])
        assert alone.cache_stats().tail_tokens == llm.cache_stats().tail_tokens
        assert not exact or np.array_equal(alone.retention_mask(), llm.retention_mask())
        if i % every > 0:
            continue
        if way == "streams":
            next(other)
        elif way == "session":
            llm.save_session(tmp_path / "session")
            llm.load_session(tmp_path / "session")
        else:
            state = llm.save_state(light=way == "light", hold=way == "held")
            llm.prefill(TOKENS[500:540])
            llm.load_state(state)


@pytest.mark.parametrize("n_prompt", [20, N_PROMPT], ids=["fits", "compacted"])
@pytest.mark.parametrize("name", ["llama", "gemma3", "qwen35"])
@pytest.mark.parametrize("way", ["state", "session"])
def test_a_fold_that_is_due_where_nothing_was_decoded_yet(
    load: Load, tiny: Tiny, tmp_path: Path, way: str, name: str, n_prompt: int
) -> None:
    """In a context that only a state has come into: its tail goes to an archive at once."""
    path = tiny(**VARIANTS[name])
    retention = Retention(budget=48, fold=64, archive="memory", draft=0)
    llm = load(path, n_ctx=1024, retention=retention)
    llm.prefill(TOKENS[:n_prompt])
    n_due = 0
    for i in range(140):
        llm.eval(TOKENS[600 + i :][:1])
        due = llm._prompts.record.due
        if due is None or not 0 <= llm.n_tokens - due[1] <= 8:
            continue
        n_due += 1
        with Llama(path, n_ctx=1024, n_threads=1, retention=retention) as other:
            if way == "state":
                other.load_state(pickle.loads(pickle.dumps(llm.save_state())))
            else:
                llm.save_session(tmp_path / "session")
                other.load_session(tmp_path / "session")
            other.eval(TOKENS[600 + i + 1 :][:1])
            assert other.cache_stats().prompt_tokens == n_prompt + i + 1
            assert len(greedy(other, 3)) == 3
    assert n_due > 0


@pytest.mark.parametrize("way", ["streams", "session"])
def test_a_prompt_that_stays_whole_for_now_does_so_elsewhere(
    load: Load, tiny: Tiny, tmp_path: Path, way: str
) -> None:
    """The budget is more than is folded at once, so that nothing is chosen at first."""
    retention = Retention(budget=100, fold=64, draft=0)
    alone, llm = (load(tiny(), n_ctx=1024, retention=retention) for _ in range(2))
    streams = [each.generate(TOKENS[:20], temp=0.0) for each in (alone, llm)]
    other = llm.generate(TOKENS[500:540], temp=0.0)
    if way == "session":
        alone.prefill(TOKENS[:20])
        llm.prefill(TOKENS[:20])
    for i in range(150):
        if way == "streams":
            assert next(streams[0]) == next(streams[1])
        else:
            alone.eval(TOKENS[600 + i :][:1])
            llm.eval(TOKENS[600 + i :][:1])
            assert np.array_equal(last_logits(alone), last_logits(llm))
        assert alone._prompts.record.due == llm._prompts.record.due
        if way == "streams":
            next(other)
        elif i % 9 == 0:
            llm.save_session(tmp_path / "session")
            llm.load_session(tmp_path / "session")


def test_another_prompt_has_a_tail_of_its_own(load: Load, tiny: Tiny) -> None:
    """A shorter one, read while the tokens that were to choose for the one before were being observed."""
    llm = load(tiny(), retention=Retention(budget=48, fold=64, archive="memory"))
    llm.prefill(TOKENS[: 3 * N_PROMPT])
    llm.eval(TOKENS[:40])
    llm.eval(TOKENS[:1])
    llm.prefill(TOKENS[:100])
    for token in TOKENS[100:][:150]:
        llm.eval([token])
        assert llm.cache_stats().tail_tokens <= 64


@pytest.mark.parametrize("n_prompt", [20, N_PROMPT], ids=["fits", "compacted"])
def test_a_lost_archive_does_not_end_an_answer(load: Load, tiny: Tiny, tmp_path: Path, n_prompt: int) -> None:
    rows = tmp_path / "rows"
    llm = load(tiny(), retention=Retention(budget=48, fold=64, archive=rows))
    llm.prefill(TOKENS[:n_prompt])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("headkv_local._core.compactor.native.compact", _full_disk(native.compact))
        for token in TOKENS[n_prompt:][:80]:
            llm.eval([token])
    stats = llm.cache_stats()
    assert (stats.prompt_tokens, stats.archive_tokens) == (n_prompt + 64, 0)
    llm.prefill(TOKENS[: n_prompt + 100])  # behind what was kept
    assert llm.cache_stats().tail_tokens == 36
    assert llm.retention == Retention(budget=48, fold=64)
    llm.reset()
    llm.retention = Retention(budget=48, fold=64, archive=rows)
    llm.prefill(TOKENS[:N_PROMPT])
    assert llm.cache_stats().archive_tokens == N_PROMPT


def _full_disk(compact: Callable[..., None]) -> Callable[..., None]:
    from headkv_local import ArchiveError

    failed: list[bool] = []

    def once(*arguments: Any) -> None:
        if not failed:
            failed.append(True)
            raise ArchiveError("the archive cannot be written: No space left on device")
        compact(*arguments)

    return once


def test_what_cannot_be_folded(load: Load, tiny: Tiny) -> None:
    llm = load(tiny(), flash_attn=True)
    ctx = int(llm.ctx)
    compact_natively(llm, TOKENS[:N_PROMPT], 64)
    llm.eval(TOKENS[N_PROMPT:N_ALL])
    with pytest.raises(StateError, match="not recorded"):
        native.compact(ctx, plan_of(llm, uneven=False)._replace(ends=None))
    with pytest.raises(StateError, match="decoded already"):
        native.observe(ctx, native.OBSERVE_TAIL, N_ALL - 1, 4)
    native.observe(ctx, native.OBSERVE_TAIL, N_ALL, 4)
    llm.eval(TOKENS[N_ALL:][:3])
    with pytest.raises(StateError, match="not recorded"):
        native.compact(ctx, plan_of(llm, uneven=False)._replace(ends=None))
    with pytest.raises(ArgumentError, match="no weights"):
        native.observe(ctx, native.OBSERVE_TAIL, N_ALL + 3, 4, np.ones(4, np.float32))
    with pytest.raises(ArgumentError, match="cannot be observed"):
        native.observe(ctx, native.OBSERVE_TAIL, N_ALL + 3, 0)
    with pytest.raises(ArgumentError):
        Retention(fold=63)


def test_a_window_that_reaches_into_what_was_kept(load: Load, tiny: Tiny) -> None:
    """Before the window of the prompt each head has other rows."""
    llm = load(tiny(), flash_attn=True)
    ctx = int(llm.ctx)
    compact_natively(llm, TOKENS[:N_PROMPT], 80, window=8)
    native.observe(ctx, native.OBSERVE_TAIL, N_PROMPT, 4)
    for token in TOKENS[N_PROMPT:][:4]:
        llm.eval([token])
    mask, heads = native.get_mask(ctx), native.model_shape(ctx).heads
    caps = np.where(heads, 64, 0).astype(np.int32)
    for window in (13, 64):
        with pytest.raises(StateError, match=f"last 12 tokens are whole, fewer than the window of {window}$"):
            native.compact(ctx, native.Plan(caps, window, 7, 4))
        assert np.array_equal(native.get_mask(ctx), mask)
    native.compact(ctx, native.Plan(caps, 12, 7, 4))
    after = native.get_mask(ctx)
    assert after[..., -12:].all()
    assert (after.sum(axis=2) == 64).all()
    assert ends(llm) == (N_PROMPT + 4,) * 3


@pytest.mark.parametrize("archive", [None, "memory"])
@pytest.mark.parametrize("how", ["session", "state"])
@pytest.mark.parametrize("name", ["llama", "gemma3", "qwen35"])
def test_a_wider_window_than_the_prompt_was_kept_with(
    load: Load, tiny: Tiny, tmp_path: Path, name: str, how: str, archive: str | None
) -> None:
    """It is folded once so many tokens have come, and from then on."""
    narrow, wide = (
        Retention(budget=budget, window=window, fold=64, archive=archive)
        for budget, window in ((48, 8), (300, 256))
    )
    first, llm = (load(tiny(**VARIANTS[name]), retention=kept) for kept in (narrow, wide))
    first.prefill(TOKENS[:N_PROMPT])
    if how == "session":
        first.save_session(tmp_path / "session")
        llm.load_session(tmp_path / "session")
    else:
        llm.load_state(first.save_state())
    for i, token in enumerate(TOKENS[N_PROMPT:][:600]):
        llm.eval([token])
        stats = llm.cache_stats()
        assert stats.prompt_tokens == N_PROMPT + i // 256 * 256
        assert ends(llm) == (N_PROMPT + i + 1,) * 3
    mask = llm.retention_mask()[llm.shape.heads]
    assert mask[:, -256:].all()
    assert (mask.sum(axis=1) == 300).all()


def test_a_context_that_is_full_before_the_next_fold(load: Load, tiny: Tiny) -> None:
    """The tokens that would ask have no room: nothing is recorded, and the answer goes on to the end."""
    llm = load(tiny(), n_ctx=512, retention=Retention(budget=32, fold=128, archive="memory"))
    llm.prefill(random_tokens(390))
    for token in random_tokens(122):
        llm.eval([token])
    assert llm.n_tokens == 512
