"""Llama: a prompt is read, compacted and answered from what was kept."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_cpp import LogitsProcessorList

from headkv_local import ArgumentError, HeadScores, Llama, Retention, StateError
from helpers import forced_logits, greedy, last_logits, random_tokens

Load = Callable[..., Llama]
TOKENS = random_tokens(300)


def test_what_is_kept(load: Load, tiny_path: Path) -> None:
    llm = load(tiny_path, retention=Retention(budget=32, window=6, sinks=3))
    llm.prefill(TOKENS)
    mask, stats = llm.retention_mask(), llm.cache_stats()
    assert mask.shape == (2, 2, 300)
    assert mask.dtype == np.bool_
    assert (mask.sum(axis=2) == 32).all()
    assert np.array_equal(stats.kept, mask.sum(axis=2))
    assert mask[:, :, :3].all()
    assert mask[:, :, -6:].all()
    assert len({mask[il, ih].tobytes() for il in range(2) for ih in range(2)}) == 4  # each head its own


def test_stats_of_a_compacted_cache(load: Load, tiny_path: Path) -> None:
    llm = load(tiny_path, retention=Retention(budget=32))
    empty = llm.cache_stats()
    assert (empty.prompt_tokens, empty.tail_tokens, empty.kept_share, empty.compacted) == (0, 0, 1.0, False)
    llm.prefill(TOKENS)
    greedy(llm, 10)
    stats = llm.cache_stats()
    assert (stats.prompt_tokens, stats.tail_tokens, stats.n_ctx) == (300, 10, 1024)
    assert (stats.compacted, stats.policy) == (True, "uniform")
    assert stats.kept_share == pytest.approx(32 / 300)
    assert stats.row_bytes == 2 * 64 * 2
    assert stats.full_bytes == 1024 * 4 * stats.row_bytes == empty.full_bytes == empty.resident_bytes
    assert stats.resident_bytes == stats.pool_bytes + stats.tail_bytes < stats.full_bytes
    assert stats.peak_bytes >= stats.full_bytes + stats.pool_bytes
    assert stats.prefill_seconds > 0
    assert stats.select_seconds > 0
    assert stats.compact_seconds > 0


def test_stats_without_compaction(load: Load, tiny_path: Path) -> None:
    """The sizes that are computed for a stock cache are those that the native library measures."""
    rows = []
    for flash_attn in (True, False):
        llm = load(tiny_path, flash_attn=flash_attn)
        llm.prefill(TOKENS)
        greedy(llm, 5)
        stats = llm.cache_stats()
        assert (stats.kept == 300).all()
        assert (stats.policy, stats.compacted, stats.pool_bytes, stats.tail_bytes) == ("full", False, 0, 0)
        tokens = (stats.prompt_tokens, stats.tail_tokens, stats.n_ctx)
        rows.append((*tokens, stats.row_bytes, stats.full_bytes, stats.resident_bytes, stats.kept.shape))
    assert rows[0] == rows[1] == (300, 5, 1024, 256, 2**20, 2**20, (2, 2))


def test_generate_answers_from_what_was_kept(load: Load, tiny_path: Path) -> None:
    llm = load(tiny_path, retention=Retention(budget=32))
    answer = [token for _, token in zip(range(20), llm.generate(TOKENS, temp=0.0), strict=False)]
    mask = llm.retention_mask()
    assert (mask.sum(axis=2) == 32).all()
    llm.reset()
    llm.prefill(TOKENS)
    assert np.array_equal(llm.retention_mask(), mask)
    assert greedy(llm, 20) == answer


def test_generate_goes_on_after_prefill(load: Load, tiny_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    llm = load(tiny_path, retention=Retention(budget=32), on_prefill=lambda *call: calls.append(call))
    llm.prefill(TOKENS)
    read = len(calls)
    assert next(llm.generate(TOKENS, temp=0.0)) == last_logits(llm).argmax()
    assert len(calls) == read
    llm.prefill(TOKENS)
    assert len(calls) == read


def test_the_first_token_comes_from_the_full_cache(load: Load, tiny_path: Path) -> None:
    full, ours = load(tiny_path, flash_attn=True), load(tiny_path, retention=Retention(budget=32))
    full.eval(TOKENS)
    ours.prefill(TOKENS)  # observing changes nothing of what is computed
    assert np.array_equal(last_logits(full), last_logits(ours))


def test_scores_decide_who_keeps_how_much(load: Load, tiny_path: Path) -> None:
    scores = np.array([[0, 0, 1, 1], [4, 3, 0, 1]])
    retention = Retention(budget=64, scores=scores, beta=1.5)
    llm = load(tiny_path, retention=retention)
    llm.prefill(TOKENS)
    stats = llm.cache_stats()
    assert stats.policy == "scores"
    assert stats.kept.sum() == 64 * 4
    assert stats.kept.ravel().argsort(kind="stable").tolist() == [0, 3, 1, 2]
    assert np.array_equal(stats.kept, llm.retention_mask().sum(axis=2))


def test_given_caps(load: Load, tiny_path: Path) -> None:
    caps = np.array([[8, 299], [300, 1000]])
    llm = load(tiny_path, retention=Retention(caps=caps))
    llm.prefill(TOKENS)
    stats = llm.cache_stats()
    assert stats.policy == "caps"
    assert stats.kept.tolist() == [[8, 299], [300, 300]]
    assert np.isfinite(forced_logits(llm, TOKENS[:5])).all()


@pytest.mark.parametrize(("budget", "kept"), [("20%", 60), ("16KiB", 16), ("0.03125MiB", 32)])
def test_budgets_in_percent_and_bytes(load: Load, tiny_path: Path, budget: str, kept: int) -> None:
    llm = load(tiny_path, retention=Retention(budget=budget))
    llm.prefill(TOKENS)
    assert (llm.cache_stats().kept == kept).all()


@pytest.mark.parametrize("n_prompt", [1, 7, 8, 9, 64])
def test_a_prompt_within_the_budget_is_kept_whole(load: Load, tiny_path: Path, n_prompt: int) -> None:
    llm = load(tiny_path, retention=Retention(budget=64))
    llm.prefill(TOKENS[:n_prompt])
    stats = llm.cache_stats()
    assert (stats.compacted, stats.prompt_tokens, stats.kept_share) == (False, n_prompt, 1.0)
    assert llm.retention_mask().shape == (2, 2, n_prompt)
    assert llm.retention_mask().all()
    assert len(greedy(llm, 3)) == 3


def test_a_prompt_just_above_the_budget(load: Load, tiny_path: Path) -> None:
    for window in (8, 64):
        llm = load(tiny_path, retention=Retention(budget=64, window=window))
        llm.prefill(TOKENS[:65])
        assert (llm.retention_mask().sum(axis=2) == 64).all()


def test_a_window_of_several_batches(load: Load, tiny_path: Path) -> None:
    masks = []
    for arguments in ({}, {"n_batch": 16}, {"n_ubatch": 16}):
        # without a draft: llama.cpp rounds small batches in another way, which decides between likely tokens
        llm = load(tiny_path, retention=Retention(budget=64, window=40, draft=0), **arguments)
        llm.prefill(TOKENS)
        masks.append(llm.retention_mask())
        assert masks[-1][:, :, -40:].all()
    for mask in masks[1:]:
        assert (mask & masks[0]).sum() / mask.sum() > 0.95


def test_progress(load: Load, tiny_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    compacted: list[bool] = []

    def on_prefill(done: int, total: int) -> None:
        calls.append((done, total))
        compacted.append(llm.cache_stats().compacted)

    llm = load(tiny_path, retention=Retention(budget=32), n_batch=100, on_prefill=on_prefill)
    llm.prefill(TOKENS)
    assert calls == [(0, 300), (100, 300), (200, 300), (300, 300)]
    assert compacted == [False] * 3 + [True]
    calls.clear()
    assert next(llm.generate([*TOKENS, 1, 2, 3])) >= 0
    assert calls == [(0, 3), (3, 3)]
    calls.clear()
    llm.eval([1])
    assert calls == []


def test_an_error_in_the_progress_callback_stops_the_prompt(load: Load, tiny_path: Path) -> None:
    def on_prefill(done: int, total: int) -> None:
        if done == stop:
            raise RuntimeError("enough")

    llm = load(tiny_path, retention=Retention(budget=32), n_batch=100, on_prefill=on_prefill)
    for stop in (0, 100, 200):
        llm.reset()
        with pytest.raises(RuntimeError, match="^enough$"):
            llm.prefill(TOKENS)
        assert llm.n_tokens == llm.cache_stats().prompt_tokens == stop
        assert not llm.cache_stats().compacted
    stop = -1
    llm.prefill(TOKENS)
    assert (llm.retention_mask().sum(axis=2) == 32).all()


@pytest.mark.parametrize("n_prompt", [9, 12, 16, 17, 24])
def test_a_prompt_of_a_few_tokens_is_compacted(load: Load, tiny_path: Path, n_prompt: int) -> None:
    """No token stands far enough before another one to be looked at: the window and the first are kept."""
    llm = load(tiny_path, retention=Retention(budget=8))
    llm.prefill(TOKENS[:n_prompt])
    assert (llm.cache_stats().kept == 8).all()
    assert llm.retention_mask()[:, :, -8:].all()
    assert len(greedy(llm, 3)) == 3


def test_prefix_reuse_decodes_all_observed_tokens_again(load: Load, tiny_path: Path) -> None:
    """What is in the cache of a prompt is not read again, but for its last tokens, to observe them."""
    calls: list[tuple[int, int]] = []
    llm = load(tiny_path, on_prefill=lambda *call: calls.append(call), flash_attn=True)
    llm.prefill(TOKENS)
    llm.retention = Retention(budget=32)
    calls.clear()
    llm.prefill(TOKENS)
    assert calls[-1][0] == calls[-1][1] <= 128
    reused = llm.retention_mask()

    llm.reset()
    llm.retention = None
    llm.prefill([*TOKENS[:290], 7, 7])
    llm.retention = Retention(budget=32)
    calls.clear()
    assert next(llm.generate(TOKENS)) >= 0
    assert calls[-1][0] == calls[-1][1] <= 128
    assert (llm.retention_mask() & reused).sum() / reused.sum() > 0.95

    llm.reset()
    llm.prefill(TOKENS)
    assert (llm.retention_mask() & reused).sum() / reused.sum() > 0.95


def test_retention_can_be_set_between_prompts(load: Load, tiny_path: Path) -> None:
    llm = load(tiny_path, flash_attn=True)
    assert llm.retention is None
    llm.prefill(TOKENS)
    assert not llm.cache_stats().compacted
    llm.retention = Retention(budget=32)
    llm.prefill(TOKENS[:200])
    assert llm.cache_stats().compacted
    with pytest.raises(StateError, match="call reset"):
        llm.retention = Retention(budget=64)
    assert llm.retention == Retention(budget=32)
    assert (llm.cache_stats().kept == 32).all()
    llm.reset()
    llm.retention = Retention(budget=64, window=16)
    llm.prefill(TOKENS)
    assert (llm.cache_stats().kept == 64).all()
    llm.reset()
    with pytest.raises(ArgumentError, match="Retention or None"):
        llm.retention = 128  # type: ignore[assignment]
    with pytest.raises(ArgumentError, match=r"shape \(2, 2\)"):
        llm.retention = Retention(caps=[[64]])
    assert llm.retention == Retention(budget=64, window=16)
    llm.retention = None
    llm.prefill(TOKENS)
    assert not llm.cache_stats().compacted


@pytest.mark.parametrize("given", [{}, {"logit_bias": {3: 1.0}}, {"logits_processor": [lambda _, s: s]}])
def test_a_llama_that_nobody_has_is_freed_at_once(tiny_path: Path, given: dict[str, Any]) -> None:
    """Not when Python looks for cycles: until then two models would be in memory."""
    gc.disable()
    try:
        llm = Llama(tiny_path, n_ctx=512, n_threads=1, retention=Retention(budget=32))
        llm.prefill(TOKENS)
        llm("text", max_tokens=2, **given)
        llm.create_chat_completion([{"role": "user", "content": "text"}], max_tokens=2, **given)

        def spells(tokens: Any, scores: Any, llm: Llama = llm) -> Any:
            llm.detokenize(tokens.tolist())
            return scores

        llm("text", max_tokens=2, logits_processor=LogitsProcessorList([spells]))
        held = weakref.ref(llm)
        del llm, spells
        assert held() is None
    finally:
        gc.enable()


def test_another_folder_has_another_model(
    load: Load, tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative path is that of the folder in which the model was loaded."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.gguf").write_bytes(tiny_path.read_bytes())
    scores = HeadScores(scores=np.ones((2, 4)), n_head_kv=2, method="r2")
    scores.to_sidecar(tmp_path / "two" / "model.headkv.gguf")
    monkeypatch.chdir(tmp_path / "one")
    llm = load(Path("model.gguf"), retention=Retention(budget=40))
    monkeypatch.chdir(tmp_path / "two")
    llm.retention = Retention(budget=48)
    assert llm.scores_from is None
    llm.prefill(TOKENS)
    llm.save_session("session")
    with Llama.open_session("session") as opened:
        assert opened.model_path == str(tmp_path / "one" / "model.gguf")


def test_bytes_name_a_model(load: Load, tiny_path: Path) -> None:
    assert load(os.fsencode(tiny_path)).model_path == str(tiny_path)  # type: ignore[arg-type]


@pytest.mark.parametrize("streams", [0, 1])
def test_a_context_is_freed_by_its_llama(
    tiny_path: Path, monkeypatch: pytest.MonkeyPatch, streams: int
) -> None:
    """Also where the garbage collector comes to the context first: what closes the Llama uses it then."""
    llm = Llama(tiny_path, n_ctx=256, n_threads=1, retention=Retention(budget=32))
    stream = llm.generate([1, 2, 3] * 20, temp=0.0)
    for _ in range(streams):
        next(stream)
    lifetime, ctx, freed = llm._lifetime, llm._ctx, []
    close, mine = type(ctx).close, id(ctx)

    def closed(context: Any) -> None:
        if id(context) == mine:  # and not what other tests have left
            freed.append(lifetime._closed)
        close(context)

    monkeypatch.setattr(type(ctx), "close", closed)
    circle: dict[str, Any] = {"llm": llm, "stream": stream}
    circle["itself"] = circle
    del llm, stream
    gc.collect()  # what is found by way of the circle stands behind the context now
    del circle, ctx
    gc.collect()
    assert freed
    assert all(freed)


@pytest.mark.parametrize("busy", [False, True])
def test_what_is_open_is_closed_before_python_ends(tiny_path: Path, busy: bool) -> None:
    """Which empties modules then, and ends objects in any order: a context before the Llama that uses it.
    Not so a Llama that a thread is still in, however long: nobody waits for that one."""
    code = f"""
import atexit, threading
llms = []
atexit.register(lambda: print([llm._lifetime._closed for llm in llms]))
from headkv_local import Llama, Retention
for archive in ("memory", None):
    kept = Retention(budget=16, archive=archive)
    llms.append(Llama({str(tiny_path)!r}, n_ctx=512, n_threads=1, retention=kept))
class Holder:
    pass
holder = Holder()
holder.llms, holder.itself = llms, holder
begun = threading.Event()
def wait(*_):
    begun.set()
    threading.Event().wait()
llms[0].on_prefill = wait
if {busy}:
    threading.Thread(target=llms[0].prefill, args=(list(range(5, 105)),), daemon=True).start()
    begun.wait()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "[True, True]\n"


ENDING = """
import atexit, sys, threading, time
closed = []
atexit.register(lambda: print(*closed, time.monotonic() - began < 60))
from headkv_local import Cancelled, Llama, Retention
from headkv_local._core import lifetime
lifetime._PATIENCE = 100.0
class Told(Llama):
    def close(self):
        if not self.__dict__.get("told"):
            self.told = True
            closed.append(self.name)
            if self.name == "bad":
                raise RuntimeError("not me")
        super().close()
def made(name):
    llm = Told(sys.argv[1], n_ctx=512, n_threads=1, retention=Retention(budget=16))
    llm.name = name
    return llm
"""


def test_one_that_cannot_be_closed_does_not_keep_the_others_open(tiny_path: Path) -> None:
    code = ENDING + "kept = [made(name) for name in ('a', 'bad', 'c')]\nbegan = time.monotonic()\n"
    done = subprocess.run(
        [sys.executable, "-c", code, tiny_path], capture_output=True, text=True, timeout=120
    )
    assert sorted(done.stdout.split()) == ["True", "a", "bad", "c"]
    assert "RuntimeError: not me" in done.stderr
    assert done.returncode == 0


def test_who_waits_for_a_turn_when_python_ends_does_not_get_it(tiny_path: Path) -> None:
    code = (
        ENDING
        + """
llm = made("a")
entered = threading.Semaphore(0)
def slowly(*_):
    entered.release()
    time.sleep(0.02)
llm.on_prefill = slowly
def read():
    while True:
        try:
            llm.prefill([*range(5, 205)])
            llm.reset()
        except Cancelled:
            pass
for _ in range(3):
    threading.Thread(target=read, daemon=True).start()
entered.acquire()
threading.excepthook = lambda args: None
began = time.monotonic()
"""
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tiny_path], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout.split()) == (0, ["a", "True"])
