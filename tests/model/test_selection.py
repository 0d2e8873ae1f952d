"""Selection within sentences: what the C API is told, and what Llama tells it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from headkv_local import Llama, Retention
from headkv_local._core import native
from headkv_local._core.earlier import earlier_of
from headkv_local._core.native.plan import sentence_ends
from headkv_local._core.pieces import Pieces
from helpers import compact_natively, random_tokens

Load = Callable[..., Llama]
TOKENS = random_tokens(300)
Mask = npt.NDArray[np.bool_]


def mask_of(llm: Llama, kernel: int, ends: npt.NDArray[np.uint8] | None) -> Mask:
    llm.reset()
    compact_natively(llm, TOKENS, 64, kernel=kernel, ends=ends)
    return native.get_mask(llm.ctx)


def test_the_pool_stays_inside_a_sentence(load: Load, tiny_path: Path) -> None:
    llm = load(tiny_path, flash_attn=True)
    n = len(TOKENS)
    plain, pooled = mask_of(llm, 1, None), mask_of(llm, 29, None)
    assert not np.array_equal(plain, pooled)
    assert np.array_equal(mask_of(llm, 29, np.ones(n, np.uint8)), plain)  # sentences of one token each
    assert np.array_equal(mask_of(llm, 29, np.zeros(n, np.uint8)), pooled)  # one sentence


def test_llama_tells_where_they_end(load: Load, smollm2: Path) -> None:
    """With a real tokenizer: full stops and line ends of the prompt, at their tokens."""
    llm = load(smollm2, retention=Retention(budget=32, scores="uniform"))
    text = "The archive is old. Its code (see e.g. the book) is 12.5!\nNobody knows it. " * 12
    tokens = llm.tokenize(text.encode())
    ends = sentence_ends(llm._vocabulary.pieces(tokens))
    starts = [0, *(np.flatnonzero(ends) + 1).tolist()]
    sentences = [llm.detokenize(tokens[a:b]) for a, b in zip(starts, [*starts[1:], None], strict=True)]
    assert [s.strip() for s in sentences[:4]] == [
        b"The archive is old.",
        b"Its code (see e.g. the book) is 12.5!",
        b"",
        b"Nobody knows it.",
    ]
    assert b"".join(sentences) == llm.detokenize(tokens)
    assert np.array_equal(ends, sentence_ends(Pieces(tokens, lambda token: llm.detokenize([token]))))


@pytest.mark.parametrize("vote", [False, True])
def test_what_earlier_turns_asked_counts_a_third(load: Load, tiny_path: Path, vote: bool) -> None:
    """Exactly: the best by the recorded attention, a third of it there, also where the heads vote."""
    llm = load(tiny_path, flash_attn=True)
    n, window, kept = len(TOKENS), 8, []
    earlier = np.zeros(n, np.uint8)
    earlier[100:200] = 1
    for marks in (None, earlier, np.ones(n, np.uint8)):
        llm.reset()
        ctx = int(llm.ctx)
        llm.eval(TOKENS[:-window])
        native.observe(ctx, native.OBSERVE_TOKENS, n - window, window)
        llm.eval(TOKENS[-window:])
        attention = native.get_attention(ctx)
        caps = np.full(attention.shape[:2], 64, np.int32)
        caps.flat[0] += 40 * vote
        native.compact(ctx, native.Plan(caps, window, 1, 4, earlier=marks))
        kept.append(native.get_mask(ctx))
        share = np.float32(0.01**0.25)
        counted = attention * (np.ones(n, np.float32) if marks is None else np.where(marks, share, 1))
        candidates = counted[..., 4 : n - 2 * window].astype(np.float32)
        shares = candidates / candidates.sum(axis=-1, keepdims=True, dtype=np.float64)
        votes = shares.reshape(-1, shares.shape[-1])[0] if vote else np.ones(shares.shape[-1])
        best = np.argsort(-(candidates * votes.astype(np.float32)), axis=-1, kind="stable")
        wanted = np.zeros_like(kept[-1])
        wanted[..., :4] = wanted[..., n - 2 * window :] = True
        for head in np.ndindex(caps.shape):
            wanted[head][4 + best[head][: caps[head] - 4 - 2 * window]] = True
        assert np.array_equal(kept[-1], wanted)
    plain, less, alike = kept
    assert 0 < less[..., 100:200].sum() < plain[..., 100:200].sum()
    assert np.array_equal(alike, plain)


def test_llama_tells_what_earlier_turns_asked(
    load: Load, tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a conversation about a document, of which a later turn chooses anew."""
    content = "{% if m['content'] is string %}{{ m['content'] }}{% else %}" + (
        "{% for part in m['content'] %}{{ part['text'] }}\n{% endfor %}{% endif %}"
    )
    path = tiny(chat_template="{% for m in messages %}{{ m['role'] }}:\n" + content + "\n{% endfor %}")
    document = {"type": "text", "text": " ".join(map(str, range(150))), "document": True}
    messages: list[Any] = [
        {"role": "user", "content": [document, {"type": "text", "text": "Which one is the largest?"}]},
        {"role": "assistant", "content": "The last one, 149, is the largest of all of them."},
        {"role": "user", "content": "And which one of all of them is the smallest?"},
    ]
    kept: list[Mask] = []
    spans: list[Any] = []

    def counted(*told: Any) -> Any:
        spans.append(earlier_of(*told))
        return spans[-1] if len(kept) == 0 else ()

    monkeypatch.setattr("headkv_local._core.prefill.earlier_of", counted)
    for _ in range(2):
        llm = load(path, n_ctx=1024, retention=Retention(budget=64, archive="memory", draft=0))
        llm.create_chat_completion(messages[:1], max_tokens=1, temperature=0.0)
        llm.create_chat_completion(messages, max_tokens=1, temperature=0.0)
        kept.append(llm.retention_mask())
    assert len(spans[-1]) == 2
    said = np.zeros(kept[0].shape[-1], np.bool_)
    for part in spans[-1]:
        said[part.start : part.stop] = True
    less, plain = ((mask & said).sum() for mask in kept)
    assert less < plain
