"""A draft of the answer selects: which tokens it has, that they count, that nothing stays of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import llama_cpp
import numpy as np
import numpy.typing as npt
import pytest

from gguf_factory import TinyModel
from headkv_local import ArgumentError, Cancelled, Llama, Retention
from headkv_local._core import native
from headkv_local._core.native.plan import Part, observers, sentence_ends
from helpers import at_each_node, cancelled_after, greedy, last_logits, random_tokens
from reference import attention_after, masks_of

Load = Callable[..., Llama]
N = 300
RECENT = 16  # two windows
BUDGET = 32
QUESTION = slice(N - 20, N)
BESIDE = np.float32(0.03)  # what other observed tokens weigh
EARLY, LATE = 8, np.float32(0.1)  # tokens of a draft that weigh 1, and what those behind them weigh
SHORT = Retention(budget=BUDGET, scores="uniform", kernel=1, sinks=0, draft=0)
WITH = replace(SHORT, draft=24)
WIDE = replace(SHORT, budget=BUDGET + 64)  # what a draft is made with
HEAD_DIM = TinyModel().head_dim
ORDERS = [{}, {"archive": "memory"}]


def drafted(llm: Llama, tokens: list[int], n: int) -> list[int]:
    """What is generated after a prompt that was compacted without a draft, up to a token that ends it, or
    the sentence behind the first ones."""
    llm.prefill(tokens, question=QUESTION)
    found: list[int] = []
    for token in greedy(llm, n):
        found.append(token)
        late = found[EARLY - 1 :]
        if (
            llama_cpp.llama_vocab_is_eog(llm._model.vocab, token)
            or sentence_ends(llm._vocabulary.pieces(late)).any()
        ):
            break
    return found


def selected(load: Load, path: Path, tokens: list[int], draft: list[int]) -> npt.NDArray[np.bool_]:
    """By the reference: of each head the recent positions and the best others, (n_layer, n_head_kv, N)."""
    llm = load(path, flash_attn=True)
    ctx = int(llm.ctx)
    who = observers([Part(QUESTION.start, QUESTION.stop)], N, RECENT)
    llm.eval(tokens[: who.first])
    native.observe(ctx, native.OBSERVE_TOKENS, who.first, who.weights.size, who.weights * BESIDE)
    llm.eval(tokens[who.first :])
    n_gqa = 2
    sums = who.weights.size * n_gqa * native.get_attention(ctx).astype(np.float64) ** 4

    wide = load(path, retention=WIDE)
    wide.prefill(tokens, question=QUESTION)
    looked = attention_after(path, tokens + draft, N, masks_of(path, wide), 1 / math.sqrt(HEAD_DIM))
    for layer, weights in looked.items():
        for token in range(len(draft)):
            far = N + token - 16 + 1  # nearer ones count for nothing
            of_heads = weights[:, token, :far].reshape(sums.shape[1], n_gqa, -1)
            sums[layer, :, :far] += (1 if token < EARLY else LATE) * (of_heads**4).sum(axis=1)

    keep = np.zeros(sums.shape, dtype=bool)
    best = np.argsort(-sums[..., : N - RECENT], axis=-1)[..., : BUDGET - RECENT]
    np.put_along_axis(keep, best, True, axis=-1)
    keep[..., N - RECENT :] = True
    return keep


def prompt_with_end(llm: Llama) -> tuple[list[int], list[int]]:
    """One after which the model ends its answer within 8 tokens, and that answer."""
    for seed in range(400):
        tokens = random_tokens(N, seed)
        llm.reset()
        if 1 < len(draft := drafted(llm, tokens, 8)) < 8:
            return tokens, draft
    raise AssertionError("no prompt has a short answer")


def test_it_is_what_would_be_answered_and_it_selects(load: Load, tiny_path: Path) -> None:
    tokens = random_tokens(N)
    draft = drafted(load(tiny_path, retention=WIDE), tokens, 24)
    assert len(draft) > EARLY
    wanted = selected(load, tiny_path, tokens, draft)
    for order in ORDERS:
        llm = load(tiny_path, retention=replace(WITH, **order))
        llm.prefill(tokens, question=QUESTION)
        assert (llm.retention_mask() & ~wanted).sum() <= 0.02 * wanted.sum()
    other = load(tiny_path, retention=SHORT)
    other.prefill(tokens, question=QUESTION)
    assert (other.retention_mask() & ~wanted).sum() > 0.2 * wanted.sum()


def test_it_ends_with_the_answer(load: Load, tiny_path: Path) -> None:
    tokens, draft = prompt_with_end(load(tiny_path, retention=WIDE))
    seen: list[tuple[int, int]] = []
    llm = load(tiny_path, retention=WITH, on_prefill=lambda *done: seen.append(done))
    llm.prefill(tokens, question=QUESTION)
    wanted = selected(load, tiny_path, tokens, draft)
    assert (llm.retention_mask() & ~wanted).sum() <= 0.02 * wanted.sum()
    assert seen[-1] == (N, N)


@pytest.mark.parametrize("arch", ["gemma2", "gpt-oss", "gemma3n", "granitehybrid", "qwen35"])
def test_orders_look_at_the_same(load: Load, tmp_path: Path, arch: str) -> None:
    """Also with soft-capping, learned sinks, and K and V that several layers read."""
    path, masks = TinyModel(arch=arch).write(tmp_path / "m.gguf"), []
    for kept in (SHORT, WITH, replace(WITH, archive="memory", order="layers")):
        llm = load(path, retention=kept)
        llm.prefill(random_tokens(N), question=QUESTION)
        masks.append(llm.retention_mask())
    assert np.array_equal(masks[1], masks[2])
    assert not np.array_equal(masks[0], masks[1])


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("arch", ["llama", "gemma2", "granitehybrid"])
def test_nothing_stays_of_it(load: Load, tmp_path: Path, arch: str, order: dict[str, str]) -> None:
    """Logits, and what windows and recurrent layers hold, are those of the prompt."""
    path = TinyModel(arch=arch).write(tmp_path / "m.gguf")
    states = []
    for draft in (0, 8):
        llm = load(path, retention=Retention(budget=32, scores="uniform", draft=draft, **order))
        llm.prefill(random_tokens(N))
        assert (llm.n_tokens, llm.cache_stats().tail_tokens) == (N, 0)
        states.append((last_logits(llm), llm._bounded.snapshot().tobytes() if llm._bounded else b""))
        assert len(greedy(llm, 20)) == 20
    assert np.array_equal(states[0][0], states[1][0])
    assert states[0][1] == states[1][1]


@pytest.mark.parametrize("order", ORDERS)
def test_it_is_as_long_as_there_is_room(load: Load, tiny_path: Path, order: dict[str, str]) -> None:
    for n in (509, 512):
        masks = []
        for draft in (0, 3 * (512 - n), 24):
            kept = Retention(budget=32, scores="uniform", draft=draft, **order)
            llm = load(tiny_path, n_ctx=512, retention=kept)
            llm.prefill(random_tokens(n))
            masks.append(llm.retention_mask())
            assert len(greedy(llm, 512 - n)) == 512 - n
        assert np.array_equal(masks[1], masks[2])
        assert np.array_equal(masks[0], masks[2]) == (n == 512)


def test_a_prompt_that_fits_has_none(load: Load, tiny_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    kept = Retention(budget=32, draft=8, archive="memory")
    llm = load(tiny_path, retention=kept, on_prefill=lambda *done: seen.append(done))
    llm.prefill(random_tokens(30))
    assert seen[-1] == (30, 30)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("arch", ["llama", "gemma2", "granitehybrid"])
def test_a_cancel_in_it(load: Load, tmp_path: Path, arch: str, order: dict[str, str]) -> None:
    """Where it is made and where its queries look: the prompt is held as if the draft had not been begun."""
    path, tokens = TinyModel(arch=arch).write(tmp_path / "m.gguf"), random_tokens(N)
    llm = load(path, retention=Retention(budget=32, draft=0, **order))
    with cancelled_after(llm, math.inf) as count:
        llm.prefill(tokens)
    n_without = count[0]
    llm = load(path, retention=Retention(budget=32, **order))
    with cancelled_after(llm, math.inf) as count:
        llm.prefill(tokens)
    n_draft, wanted, logits = count[0] - n_without, llm.retention_mask(), last_logits(llm)
    assert n_draft > 0
    for share in (0.1, 0.5, 0.8, 0.99):
        llm.reset()
        with cancelled_after(llm, n_without + share * n_draft), pytest.raises(Cancelled):
            llm.prefill(tokens)
        assert (llm.n_tokens, llm.cache_stats().compacted) == (0 if order else N, False)
        llm.prefill(tokens)
        assert np.array_equal(llm.retention_mask(), wanted)
        assert np.array_equal(last_logits(llm), logits)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("arch", ["llama", "granitehybrid"])
def test_a_cancel_that_nothing_asks_for(load: Load, tmp_path: Path, arch: str, order: dict[str, str]) -> None:
    """In the last node, and where no node asks: on a device none does."""
    path, tokens = TinyModel(arch=arch).write(tmp_path / "m.gguf"), random_tokens(N)
    llm = load(path, retention=Retention(budget=32, **order))
    with cancelled_after(llm, math.inf) as count:
        llm.prefill(tokens)
    n_all, wanted = count[0], llm.retention_mask()
    llm.reset()
    count[0] = 0

    def cancel_in_the_last() -> bool:
        count[0] += 1
        if count[0] == n_all:
            native.cancel(int(llm.ctx))
        return False

    with at_each_node(llm, cancel_in_the_last), pytest.raises(Cancelled):
        llm.prefill(tokens)
    llm.prefill(tokens)
    assert np.array_equal(llm.retention_mask(), wanted)


@pytest.mark.parametrize("order", ORDERS)
def test_others_see_nothing_of_it(load: Load, tiny_path: Path, order: dict[str, str]) -> None:
    """Whoever looks meanwhile is told of the whole prompt, never of what the draft is made with."""
    seen: list[tuple[bool, bool]] = []
    llm = load(tiny_path, retention=Retention(budget=32, scores="uniform", **order))

    def look() -> bool:
        seen.append((llm.cache_stats().compacted, bool(llm.retention_mask().all())))
        return False

    with at_each_node(llm, look):
        llm.prefill(random_tokens(N))
    assert len(seen) > 100
    assert set(seen) == {(False, True)}
    assert llm.cache_stats().compacted


def test_a_turn_that_is_shorter_than_it(load: Load, tiny_path: Path) -> None:
    """Nothing that is made for a turn's tokens has to hold those of a draft."""
    masks = []
    for order in ("tokens", "layers"):
        kept = Retention(budget=32, scores="uniform", draft=32, archive="memory", order=order)  # type: ignore[arg-type]
        llm = load(tiny_path, retention=kept)
        for n in (N - 2, N):
            llm.prefill(random_tokens(N)[:n])
        masks.append(llm.retention_mask())
    assert np.array_equal(*masks)


def test_it_ends_with_a_sentence(load: Load, smollm2: Path) -> None:
    """Behind its first third, of an answer that goes on."""
    llm = load(smollm2, retention=replace(WITH, draft=150, observe=128), n_ctx=1024)
    asked = (
        "The harbour was quiet, and the cranes stood still. " * 20
        + "\n\nTell a long story about this harbour."
    )
    messages = [{"role": "user", "content": asked}]
    llm.prefill(
        llm.tokenize(llm.chat_prompt(messages).encode(), add_bos=False, special=True), messages=messages
    )
    n_made = llama_cpp.llama_perf_context(llm.ctx).n_eval
    assert 50 <= n_made < 149
    assert len(greedy(llm, 200)) == 200


@pytest.mark.parametrize("draft", [-1, 1.5, "8", True, None])
def test_what_is_no_length(draft: object) -> None:
    with pytest.raises(ArgumentError, match="draft must be an int of at least 0, not "):
        Retention(draft=draft)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("asked", "n"),
    [
        ("Where is the dog; at home?", 1),
        ("Tell me.", 1),
        ("What????", 1),
        ("See a?b=c", 1),
        ("Where？Who？", 2),  # noqa: RUF001
        ("Where? And who? And when is it?", 3),
        ("Is it? Was it? Will it? Would it? Had it?", 4),
    ],
)
def test_a_draft_answers_several_questions(load: Load, tiny_path: Path, asked: str, n: int) -> None:
    """Of an answer that this model does not end so soon. Those of the document do not count."""
    few = replace(WITH, observe=128, draft=3)
    llm = load(tiny_path, retention=few)
    llm.prefill(llm.tokenize(("Who sleeps? The dog sleeps. " * 30 + "\n\n" + asked).encode()))
    assert llama_cpp.llama_perf_context(llm.ctx).n_eval == few.draft * n - 1
