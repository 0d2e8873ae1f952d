"""The question selects: wherever it stands, whatever follows it, and without a trace in the cache."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headkv_local import ArgumentError, Cancelled, CancelToken, Llama, Retention
from headkv_local.bench.haystack import cut, hide
from headkv_local.chat.documents import Document, compose
from headkv_local.tokens import logits_of
from helpers import greedy, random_tokens

Load = Callable[..., Llama]
TOKENS = random_tokens(300)
FIRST = slice(2, 12)

FACT = "The access code of the warehouse in Lisbon is 48213."
ASK = "What is the access code of the warehouse in Lisbon"
POLITE = (
    "? Please look carefully through the whole text before you answer, and give me only the number, without "
    "any explanation or other words. Thank you."
)
ENDINGS = {
    "nothing": "?",
    "instruction": "? Answer with the number only.",
    "place": " mentioned in the text above? Answer with the number only.",
    "polite": POLITE,
    "two lines": "?\nAnswer with the number only.\n\nDo not write anything else, please.",
    "german": "? Bitte antworte nur mit der Zahl, ohne weitere Erklärungen. Vielen Dank für deine Hilfe!",
}


@pytest.fixture(scope="module")
def chat(smollm2: Path) -> Any:
    llm = Llama(str(smollm2), n_ctx=2048, verbose=False, retention=Retention())
    yield llm
    llm.close()


@pytest.fixture(scope="module")
def document(chat: Llama) -> str:
    def count(text: str) -> int:
        return len(chat.tokenize(text.encode(), add_bos=False))

    return hide(cut(700, count, start=100), [FACT], 0.4, count)


def answer(llm: Llama, content: Any) -> str:
    llm.reset()
    reply: Any = llm.create_chat_completion(
        [{"role": "user", "content": content}], max_tokens=32, temperature=0.0
    )
    assert (llm.cache_stats().kept.mean(), llm.cache_stats().compacted) == (128, True)
    return str(reply["choices"][0]["message"]["content"])


@pytest.mark.parametrize("end", ENDINGS)
def test_what_follows_the_question(chat: Llama, document: str, end: str) -> None:
    assert "48213" in answer(chat, f"{document}\n\n{ASK}{ENDINGS[end]}")


def test_a_document_of_the_chat(chat: Llama, document: str) -> None:
    assert "48213" in answer(chat, compose([Document("notes.txt", document)], ASK + POLITE))


def test_a_question_before_the_document(chat: Llama, document: str) -> None:
    """As a text, and with the document marked."""
    ask = f"{ASK}{ENDINGS['instruction']}"
    parts = [{"type": "text", "text": f"{ask}\n"}, {"type": "text", "text": document, "document": True}]
    assert "48213" in answer(chat, f"{ask}\n\n{document}")
    assert "48213" in answer(chat, parts)


@pytest.mark.parametrize("scores", ["uniform", None])
def test_examples_before_the_document_do_not_select_themselves(
    chat: Llama, document: str, scores: str | None
) -> None:
    """What is read once more looks at where it stood, and would keep that: an example was the answer."""
    codes = {"harbour in Genoa": 55217, "museum in Lyon": 90384, "granary in Ghent": 31566}
    lines = [
        f"The access code of the {of} is {n}. {ASK.replace('warehouse in Lisbon', of)}?\nAnswer: {n}"
        for of, n in codes.items()
    ]
    content = [
        {"type": "text", "text": "Read the text and answer the question at its end.\n\nExamples:\n"},
        {"type": "text", "text": "\n".join(lines) + "\n\nAnswer with the number only.\n\nText:\n"},
        {"type": "text", "text": document, "document": True},
        {"type": "text", "text": f"\n\nQuestion: {ASK}?"},
    ]
    given = chat.retention
    chat.reset()
    chat.retention = Retention(budget=48, scores=scores)
    try:
        reply: Any = chat.create_chat_completion(
            [{"role": "user", "content": content}], max_tokens=32, temperature=0.0
        )
    finally:
        chat.reset()
        chat.retention = given
    assert "48213" in reply["choices"][0]["message"]["content"]


def test_a_question_before_the_document_leaves_no_trace(load: Load, tiny_path: Path) -> None:
    """It is read once more, and taken back: the logits are those of the prompt, also of what comes next."""
    llm, full = load(tiny_path, retention=Retention(budget=32)), load(tiny_path, flash_attn=True)
    llm.prefill(TOKENS)
    before = llm.retention_mask()
    llm.reset()
    llm.prefill(TOKENS, question=FIRST)
    stats = llm.cache_stats()
    assert (llm.n_tokens, stats.prompt_tokens, stats.tail_tokens) == (300, 300, 0)
    assert not np.array_equal(llm.retention_mask(), before)
    full.eval(TOKENS)
    assert np.array_equal(logits_of(full), logits_of(llm))
    assert len(greedy(llm, 5)) == 5

    again = [logits_of(llm).copy()]
    for question in (FIRST, [FIRST]):  # another context holds the same then
        other = load(tiny_path, retention=Retention(budget=32))
        other.prefill(TOKENS, question=question)
        greedy(other, 5)
        again.append(logits_of(other).copy())
    assert np.array_equal(again[0], again[1])
    assert np.array_equal(again[0], again[2])


@pytest.mark.parametrize("archive", [None, "memory"])
def test_the_same_prompt_with_another_question(load: Load, tiny_path: Path, archive: str | None) -> None:
    """It is selected for anew; where the rest is gone, it is read again, and that is said."""
    read: list[int] = []
    llm = load(tiny_path, retention=Retention(budget=32, archive=archive))
    llm.on_prefill = lambda done, total: read.append(done)
    questions, masks = [FIRST, slice(100, 120)], []
    for question in questions:
        llm.reset()
        llm.prefill(TOKENS, question=question)
        masks.append(llm.retention_mask())
    assert not np.array_equal(*masks)
    for question, mask in zip(questions, masks, strict=True):
        llm.prefill(TOKENS, question=question)
        assert np.array_equal(llm.retention_mask(), mask)
        assert (llm.reread_reason is None) == (archive is not None)
        read.clear()
        llm.prefill(TOKENS, question=question)
        llm.prefill(TOKENS)  # which leaves open what asks
        assert np.array_equal(llm.retention_mask(), mask)
        assert read == []
        greedy(llm, 3)


PREFIX, SUFFIX, MIDDLE = range(257, 260)
MARKS = {f"tokenizer.ggml.fim_{name}_token_id": 257 + i for i, name in enumerate(("pre", "suf", "mid"))}
A, B, C = np.split(np.array(random_tokens(330)), [60, 200])

GAPS = {
    "prefix first": ([PREFIX, *A, *B, SUFFIX, *C, MIDDLE], [(201 - 64, 201), (202, 202 + 32), (332, 333)]),
    "suffix first": ([SUFFIX, *C, PREFIX, *A, *B, MIDDLE], [(1, 33), (332 - 64, 332), (332, 333)]),
    "behind other files": (
        [PREFIX, *A, SUFFIX, MIDDLE, *A, PREFIX, *B, SUFFIX, *A, MIDDLE],
        [(264 - 64, 264), (265, 297), (325, 326)],
    ),
    "no prefix": ([PREFIX, SUFFIX, *B, *C, MIDDLE], [(2, 34), (272, 273)]),
    "no suffix": ([PREFIX, *B, *C, SUFFIX, MIDDLE], [(271 - 64, 271), (272, 273)]),
    "a short suffix": ([PREFIX, *B, *A, SUFFIX, *C[:9], MIDDLE], [(201 - 64, 201), (202, 211), (211, 212)]),
    "begun": ([PREFIX, *A, *B, SUFFIX, *C, MIDDLE, *A], [(201 - 64, 201), (202, 202 + 32), (332, 393)]),
}


@pytest.mark.parametrize("case", GAPS)
def test_what_stands_around_a_gap_asks(load: Load, tiny_path: Path, case: str) -> None:
    """Of a prompt that the model fills in, wherever that is; 64 tokens before it and 32 after it."""
    tokens, parts = GAPS[case]
    llm = load(tiny_path, kv_overrides=MARKS, retention=Retention(budget=24))
    masks = []
    for question in (None, [slice(*part) for part in parts]):
        llm.reset()
        llm.prefill(tokens, question=question)
        masks.append(llm.retention_mask())
    assert np.array_equal(*masks)


@pytest.mark.parametrize(
    "tokens",
    [
        [PREFIX, *A, *B, SUFFIX, *C, MIDDLE, *B],  # of the middle there are more than 128 tokens
        [*B, SUFFIX, *C, MIDDLE],
        [PREFIX, *A, *B, MIDDLE, *C[:10], SUFFIX],
    ],
)
def test_no_gap(load: Load, tiny_path: Path, tokens: list[int]) -> None:
    masks = []
    for marks in (MARKS, {}):
        llm = load(tiny_path, kv_overrides=marks or None, retention=Retention(budget=24))
        llm.prefill(tokens)
        masks.append(llm.retention_mask())
    assert np.array_equal(*masks)


def test_a_question_about_what_the_cache_already_holds(load: Load, tiny_path: Path) -> None:
    """The prompt and all that was decoded behind it: nothing of it is new, and yet another part asks."""
    llm = load(tiny_path, retention=Retention(budget=32, archive="memory"))
    llm.prefill(TOKENS, question=FIRST)
    llm.eval(TOKENS[:40])
    whole = [*TOKENS, *TOKENS[:40]]
    llm.prefill(whole, question=slice(300, 340))
    stats = llm.cache_stats()
    assert (llm.n_tokens, stats.prompt_tokens, stats.tail_tokens) == (340, 340, 0)
    fresh = load(tiny_path, retention=Retention(budget=32, archive="memory"))
    fresh.prefill(TOKENS, question=FIRST)
    fresh.prefill(whole, question=slice(300, 340))
    assert np.array_equal(llm.retention_mask(), fresh.retention_mask())


@pytest.mark.parametrize("n_more", [150, 128])  # behind what was folded; and all of it
def test_a_question_about_an_answer_that_was_folded(load: Load, tiny_path: Path, n_more: int) -> None:
    retention = Retention(budget=32, archive="memory", fold=64)
    llm = load(tiny_path, n_ctx=1024, retention=retention)
    llm.prefill(TOKENS, question=FIRST)
    for token in random_tokens(n_more):
        llm.eval([token])
    whole, masks = llm.input_ids[: llm.n_tokens].tolist(), []
    for question in (slice(320, 340), FIRST):
        llm.prefill(whole, question=question)
        stats = llm.cache_stats()
        assert (llm.n_tokens, stats.prompt_tokens, stats.tail_tokens) == (300 + n_more, 300 + n_more, 0)
        masks.append(llm.retention_mask())
    assert not np.array_equal(*masks)


def test_a_question_that_is_edited_asks_as_a_whole(smollm2: Path, document: str) -> None:
    """Not only what came with the last edit."""
    other = "What is the name of the man in the story? Please look carefully through the whole text."
    with Llama(
        str(smollm2), n_ctx=2048, verbose=False, retention=Retention(archive="memory", draft=0)
    ) as llm:
        for ask in (f"{other}{POLITE}", f"{ASK}{POLITE}", f"{ASK}{POLITE} Be brief."):
            messages = [{"role": "user", "content": compose([Document("notes.txt", document)], ask)}]
            tokens = llm.tokenize(llm.chat_prompt(messages).encode(), add_bos=False, special=True)
            llm.prefill(tokens, messages=messages)
        edited = llm.retention_mask()
        llm.reset()
        llm.prefill(tokens, messages=messages)
        whole = llm.retention_mask()
    assert (edited & whole).sum() > 0.99 * whole.sum()


def test_tokens_that_are_edited_ask_as_a_whole(load: Load, tiny_path: Path) -> None:
    """Where nothing tells what asks: those of the turn, also those that stay."""
    llm = load(tiny_path, retention=Retention(budget=64, archive="memory", draft=0))
    first, second = random_tokens(400), random_tokens(60, seed=1)
    for begun, asked in (([], first), (first, first + second)):
        edited = [*asked[:-5], *random_tokens(5, seed=2)]
        masks = []
        for prompts in ([begun, asked, edited], [begun, edited]):
            llm.reset()
            for prompt in filter(None, prompts):
                llm.prefill(prompt)
            masks.append(llm.retention_mask())
        assert np.array_equal(*masks)


def test_a_handler_of_its_own_reads_what_asks(smollm2: Path, document: str) -> None:
    """One that is not made of a formatter, with the question before the document."""
    retention = Retention(draft=0)
    with Llama(
        str(smollm2), n_ctx=2048, verbose=False, retention=retention, chat_format="chatml-function-calling"
    ) as llm:
        plain = re.sub("['\"&<>]", "", document)  # which llama_cpp's template writes as HTML has them
        assert "48213" in answer(llm, f"{ASK}{ENDINGS['instruction']}\n\n{plain}")


def test_a_question_needs_room_only_where_there_is_some(
    load: Load, tiny_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    llm = load(tiny_path, n_ctx=512, retention=Retention(budget=32))
    tokens = random_tokens(508)
    with caplog.at_level(logging.WARNING, "headkv_local"):
        llm.prefill(tokens, question=FIRST)
    assert "the question of 10 tokens before the document: its last 4 select" in caplog.text
    assert llm.cache_stats().compacted
    assert len(greedy(llm, 4)) == 4
    llm.reset()
    llm.prefill(random_tokens(512), question=FIRST)
    assert llm.cache_stats().compacted


def test_a_question_has_room_where_the_cache_was_small(load: Load, tiny_path: Path) -> None:
    """After a reset there are as many cells as the prompt needs; what is read once more needs some too."""
    llm = load(tiny_path, retention=Retention(budget=32))
    for _ in range(2):
        llm.prefill(random_tokens(512), question=FIRST)
        assert llm.cache_stats().compacted
        llm.reset()


def test_a_cancel_while_the_question_is_read_again(load: Load, tiny_path: Path) -> None:
    """The prompt is in the cache as a whole then, and nothing else."""
    token = CancelToken()

    def on_prefill(done: int, total: int) -> None:
        if stop and done >= 300:
            token.cancel()

    stop = True
    llm = load(tiny_path, n_batch=100, retention=Retention(budget=32), on_prefill=on_prefill)
    with token, pytest.raises(Cancelled):
        llm.prefill(TOKENS, question=slice(2, 142))
    assert (llm.n_tokens, llm.cache_stats().compacted) == (300, False)
    stop = False
    llm.prefill(TOKENS, question=slice(2, 142))
    assert llm.cache_stats().compacted


def test_a_prompt_that_was_stopped_before_it_was_read_is_none(
    load: Load, tiny_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is evaluated next goes behind what the cache holds."""
    llm = load(tiny_path, retention=Retention(budget=32))
    llm.prefill(TOKENS)
    llm.eval(TOKENS[:3])
    with monkeypatch.context() as patch:
        patch.setattr(llm._contents, "compare", stopped)
        with pytest.raises(KeyboardInterrupt):
            llm.prefill(TOKENS)
    llm.eval(TOKENS[:2])
    stats = llm.cache_stats()
    assert (stats.prompt_tokens, stats.tail_tokens) == (300, 5)


def stopped(*_: Any) -> None:
    raise KeyboardInterrupt


def test_a_question_that_cannot_be_one_changes_nothing(load: Load, tiny_path: Path) -> None:
    llm = load(tiny_path, retention=Retention(budget=32))
    llm.prefill(TOKENS[:200])
    mask = llm.retention_mask()
    for question in (slice(290, 301), slice(5, 5), slice(0, 200), [slice(0, 120), slice(60, 200)]):
        with pytest.raises(ArgumentError):
            llm.prefill(TOKENS, question=question)
        assert np.array_equal(llm.retention_mask(), mask)
    llm.prefill(TOKENS, question=[slice(0, 120), slice(60, 120)])  # tokens count once


def test_messages_name_the_question_of_tokens(chat: Llama, document: str) -> None:
    """What a chat keeps of its messages, prefill() keeps of their tokens."""
    parts = [
        {"type": "text", "text": "What is the number?\n"},
        {"type": "text", "text": document, "document": True},
    ]
    messages = [{"role": "user", "content": parts}]
    chat.reset()
    chat.create_chat_completion(messages, max_tokens=1, temperature=0)
    kept = chat.retention_mask()
    tokens = chat.tokenize(chat.chat_prompt(messages).encode(), add_bos=False, special=True)
    chat.reset()
    chat.prefill(tokens, messages=messages)
    assert np.array_equal(chat.retention_mask(), kept)
    chat.reset()
    chat.prefill(tokens)
    assert not np.array_equal(chat.retention_mask(), kept)


@pytest.mark.parametrize("messages", ["a question?", [1], [{"role": "user", "content": 5}], {"role": "user"}])
def test_what_are_no_messages_changes_nothing(load: Load, tiny_path: Path, messages: Any) -> None:
    llm = load(tiny_path, retention=Retention(budget=32))
    llm.eval([1, 2, 3])
    with pytest.raises(ArgumentError, match="message"):
        llm.prefill(TOKENS, messages=messages)
    assert llm.n_tokens == 3
