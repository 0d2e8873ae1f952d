"""A drop-in: what llama-cpp-python offers works, with a compacted cache as without one."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest
from llama_cpp import LlamaGrammar, LogitsProcessorList, StoppingCriteriaList
from llama_cpp.llama_speculative import LlamaDraftModel, LlamaPromptLookupDecoding

from headkv_local import ArgumentError, Cancelled, ContextFullError, Llama, Retention, StateError
from helpers import random_tokens

Load = Callable[..., Llama]
TEXT = "The quick brown fox jumps over the lazy dog. " * 8
QUESTION: Any = [{"role": "user", "content": TEXT + "What does the fox do?"}]
RETENTIONS = pytest.mark.parametrize("retention", [None, Retention(budget=32)], ids=["full", "compacted"])


def check_compacted(llm: Llama) -> None:
    assert llm.cache_stats().compacted is (llm.retention is not None)


def test_it_is_a_llama(load: Load, tiny_path: Path) -> None:
    llm = load(str(tiny_path), retention=Retention())
    assert isinstance(llm, llama_cpp.Llama)
    assert llm.model_path == str(tiny_path)
    assert llm.context_params.flash_attn_type == llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED
    assert load(tiny_path).context_params.flash_attn_type == llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED


def test_a_text_that_grows_is_spelled_as_a_whole(load: Load, tiny_path: Path) -> None:
    """llama_cpp appends to one list, and asks for all of it at each token; other lists come between."""
    llm, growing = load(tiny_path), []
    for i, token in enumerate(random_tokens(400)):
        growing.append(token)
        assert llm.detokenize(growing) == llm._model.detokenize(growing)
        if i % 100 == 99:
            other = random_tokens(300, seed=i)
            assert llm.detokenize(other) == llm._model.detokenize(other)
    with pytest.raises(TypeError, match="tokens must be ints"):
        llm.detokenize([*growing, "x"])  # type: ignore[list-item]


def test_without_a_retention_it_answers_as_the_parent(load: Load, tiny_path: Path) -> None:
    arguments: Any = {"max_tokens": 24, "temperature": 0.8, "seed": 7, "logprobs": 2}
    parent = llama_cpp.Llama(
        str(tiny_path), n_ctx=1024, n_threads=1, n_threads_batch=1, logits_all=True, verbose=False
    )
    ours = load(tiny_path, logits_all=True)
    wanted = parent.create_completion(TEXT, **arguments)
    found = ours.create_completion(TEXT, **arguments)
    parent.close()
    assert found["choices"] == wanted["choices"]
    assert found["usage"] == wanted["usage"]


@RETENTIONS
def test_streams_say_the_same(load: Load, tiny_path: Path, retention: Retention | None) -> None:
    llm = load(tiny_path, retention=retention)
    letters = LlamaGrammar.from_string("root ::= [a-z ]+", verbose=False)  # no halves of UTF-8 characters
    arguments: Any = {"max_tokens": 24, "temperature": 0.0, "grammar": letters}
    whole = llm.create_completion(TEXT, **arguments)["choices"][0]["text"]
    check_compacted(llm)
    parts = [chunk["choices"][0] for chunk in llm.create_completion(TEXT, stream=True, **arguments)]
    assert len(parts) > 3
    assert "".join(part["text"] for part in parts) == whole
    assert parts[-1]["finish_reason"] in ("length", "stop")
    check_compacted(llm)


@RETENTIONS
@pytest.mark.parametrize("chat_format", [None, "chatml", "llama-2", "zephyr", "chatml-function-calling"])
def test_chat_formats(
    load: Load, tiny_path: Path, retention: Retention | None, chat_format: str | None
) -> None:
    llm = load(tiny_path, retention=retention, chat_format=chat_format)
    reply = llm.create_chat_completion(QUESTION, max_tokens=12, temperature=0.0)
    assert reply["choices"][0]["message"]["role"] == "assistant"
    assert reply["usage"]["completion_tokens"] >= 12 or reply["choices"][0]["finish_reason"] == "stop"
    check_compacted(llm)
    chunks = list(llm.create_chat_completion(QUESTION, max_tokens=12, temperature=0.0, stream=True))
    assert chunks[-1]["choices"][0]["finish_reason"] in ("length", "stop")


@RETENTIONS
def test_grammar(load: Load, tiny_path: Path, retention: Retention | None) -> None:
    llm = load(tiny_path, retention=retention)
    grammar = LlamaGrammar.from_string('root ::= ("yes" | "no") "!"', verbose=False)
    for seed in range(4):
        reply = llm.create_completion(TEXT, grammar=grammar, max_tokens=20, seed=seed)
        assert reply["choices"][0]["text"] in ("yes!", "no!")
    check_compacted(llm)


@RETENTIONS
def test_json(load: Load, tiny_path: Path, retention: Retention | None) -> None:
    llm = load(tiny_path, retention=retention)
    schema = {
        "type": "object",
        "properties": {"fox": {"type": "boolean"}, "legs": {"enum": [3, 4]}},
        "required": ["fox", "legs"],
    }
    reply = llm.create_chat_completion(
        QUESTION, response_format={"type": "json_object", "schema": schema}, max_tokens=100, temperature=0.0
    )
    answer = json.loads(reply["choices"][0]["message"]["content"])
    assert isinstance(answer["fox"], bool)
    assert answer["legs"] in (3, 4)
    check_compacted(llm)


@RETENTIONS
def test_logprobs(load: Load, tiny_path: Path, retention: Retention | None) -> None:
    llm = load(tiny_path, retention=retention, logits_all=True)
    prompt = llm.tokenize(TEXT.encode())
    reply = llm.create_completion(prompt, max_tokens=10, temperature=0.0, logprobs=3)
    check_compacted(llm)
    found = reply["choices"][0]["logprobs"]
    n_said = reply["usage"]["completion_tokens"]
    assert len(found["tokens"]) == n_said >= 10
    for own, top in zip(found["token_logprobs"], found["top_logprobs"], strict=True):
        assert own == max(top.values())
        assert own <= 0
    # scores have a row for every token, also of those whose entries are gone
    rows = llama_cpp.Llama.logits_to_logprobs(llm.scores[len(prompt) - 1 : len(prompt) - 1 + n_said])
    assert np.allclose(rows.max(axis=1), found["token_logprobs"])
    assert np.isfinite(llm.scores[: llm.n_tokens]).all()


@pytest.mark.parametrize("question", [None, slice(3, 40)], ids=["behind", "before"])
@pytest.mark.parametrize("arch", ["llama", "gemma3", "qwen35"])
def test_logits_of_every_token_of_a_prompt(
    load: Load, tiny: Callable[..., Path], arch: str, question: slice | None
) -> None:
    """Those of the full cache, in whatever batches the prompt is read, and of none that is read once more."""
    path, tokens = tiny(arch=arch), random_tokens(300)
    full = load(path, flash_attn=True, swa_full=False, logits_all=True, n_batch=64)
    full.eval(tokens)
    llm = load(path, retention=Retention(budget=32), logits_all=True, n_batch=64)
    llm.prefill(tokens, question=question)
    assert llm.cache_stats().compacted
    assert np.allclose(llm.scores[:300], full.scores[:300], atol=0.05)  # other ubatches add up otherwise


@RETENTIONS
def test_processors_and_stops(load: Load, tiny_path: Path, retention: Retention | None) -> None:
    llm = load(tiny_path, retention=retention)
    lengths: list[int] = []

    def only_a(input_ids: Any, scores: Any) -> Any:
        lengths.append(len(input_ids))
        scores[:] = -np.inf
        scores[llm.tokenize(b"a")[0]] = 0.0
        return scores

    reply = llm.create_completion(
        TEXT, max_tokens=30, stop=["aaaaa"], logits_processor=LogitsProcessorList([only_a]), temperature=0.0
    )
    assert reply["choices"][0] == {"text": "", "index": 0, "logprobs": None, "finish_reason": "stop"}
    assert lengths == list(range(lengths[0], lengths[0] + 5))
    check_compacted(llm)

    enough = StoppingCriteriaList([lambda tokens, logits: len(tokens) >= lengths[0] + 3])
    reply = llm.create_completion(TEXT, max_tokens=30, stopping_criteria=enough, temperature=0.0)
    assert reply["choices"][0]["finish_reason"] == "stop"


def test_stops_in_whatever_holds_texts(load: Load, smollm2: Path) -> None:
    """llama_cpp passes over those that are in no list."""
    llm = load(smollm2, n_ctx=512)
    messages = [{"role": "user", "content": "Count from one to ten."}]

    def answers(stop: Any) -> list[str]:
        said = llm("Count: one, two,", max_tokens=8, temperature=0.0, stop=stop)["choices"][0]["text"]
        chat = llm.create_chat_completion(messages, max_tokens=8, temperature=0.0, stop=stop)
        return [said, chat["choices"][0]["message"]["content"]]

    whole = answers(None)
    ends = [text[4:6] for text in whole]
    wanted = answers(ends)
    assert all(len(text) < len(all_of_it) for text, all_of_it in zip(wanted, whole, strict=True))
    for stop in (tuple(ends), {*ends}, dict.fromkeys(ends)):
        assert answers(stop) == wanted
    for stop in (5, b"x", [b"x"], [None]):
        with pytest.raises(ArgumentError, match="^stop must be a text or a list of texts, not "):
            answers(stop)


def test_stops_that_one_token_ends(load: Load, smollm2: Path) -> None:
    """The token " six" does. llama_cpp cut the answer at the first of the list, a stream at the first in the
    answer."""
    llm = load(smollm2, n_ctx=512)
    prompt = "Count: one, two, three, four,"
    asked: dict[str, Any] = {"max_tokens": 12, "temperature": 0.0}
    assert llm(prompt, **asked)["choices"][0]["text"].startswith(" five, six")
    for stop in (["ix", "five, si"], ["five, si", "ix"], ["never", "ix", " six"]):
        whole = llm(prompt, stop=stop, **asked)["choices"][0]
        chunks = [chunk["choices"][0] for chunk in llm(prompt, stop=stop, stream=True, **asked)]
        assert whole["finish_reason"] == chunks[-1]["finish_reason"] == "stop"
        assert whole["text"] == "".join(chunk["text"] for chunk in chunks)
        assert llm(prompt, stop=stop, echo=True, **asked)["choices"][0]["text"] == prompt + whole["text"]
        assert not any(text in whole["text"] for text in stop)


class Oracle(LlamaDraftModel):
    """Drafts what it was told, right for the most part."""

    def __init__(self) -> None:
        self.answer: list[int] = []
        self.n_calls = 0

    def __call__(self, input_ids: Any, /, **kwargs: Any) -> Any:
        self.n_calls += 1
        done = len(input_ids) - self.n_prompt
        draft = self.answer[done : done + 5]
        if self.n_calls % 3 == 0 and len(draft) == 5:
            draft[3] = (draft[3] + 1) % 256
        return np.array(draft, dtype=np.intc)

    n_prompt = 0


@RETENTIONS
def test_speculative_decoding(load: Load, tiny_path: Path, retention: Retention | None) -> None:
    """Drafts are decoded behind the compacted prompt, and taken back where they were wrong."""
    prompt = random_tokens(300)
    plain = load(tiny_path, retention=retention, n_batch=128)
    wanted = [token for _, token in zip(range(60), plain.generate(prompt, temp=0.0), strict=False)]
    oracle = Oracle()
    oracle.answer, oracle.n_prompt = wanted, len(prompt)
    llm = load(tiny_path, retention=retention, n_batch=128, draft_model=oracle)
    found = [token for _, token in zip(range(60), llm.generate(prompt, temp=0.0), strict=False)]
    assert found == wanted
    assert 10 <= oracle.n_calls <= 30
    check_compacted(llm)

    lookup = load(tiny_path, retention=retention, draft_model=LlamaPromptLookupDecoding(num_pred_tokens=4))
    reply = lookup.create_completion(TEXT, max_tokens=20, temperature=0.0)
    assert reply["usage"]["completion_tokens"] >= 20
    check_compacted(lookup)


@RETENTIONS
def test_drafts_longer_than_a_batch(load: Load, tiny_path: Path, retention: Retention | None) -> None:
    """As much of one is tried as has logits: those of one batch."""
    prompt, oracle = random_tokens(100), Oracle()
    plain = load(tiny_path, retention=retention, n_batch=4)
    oracle.answer = wanted = list(islice(plain.generate(prompt, temp=0.0), 30))
    oracle.n_prompt = len(prompt)
    llm = load(tiny_path, retention=retention, n_batch=4, draft_model=oracle)
    assert list(islice(llm.generate(prompt, temp=0.0), 30)) == wanted
    assert oracle.n_calls <= 15


def test_drafts_at_the_end_of_the_context(load: Load, tiny_path: Path) -> None:
    llm = load(
        tiny_path,
        n_ctx=320,
        retention=Retention(budget=32),
        draft_model=LlamaPromptLookupDecoding(num_pred_tokens=4),
    )
    with pytest.raises(ContextFullError):
        list(llm.generate(random_tokens(300), temp=0.0))
    assert next(llm.generate(random_tokens(100), temp=0.0)) >= 0


def test_sent_tokens_are_taken_as_the_parent_takes_them(load: Load, tiny_path: Path) -> None:
    """As drafts of what comes next, for which logits of all tokens are needed."""
    prompt = random_tokens(100)
    parent = llama_cpp.Llama(
        str(tiny_path), n_ctx=1024, n_threads=1, n_threads_batch=1, logits_all=True, verbose=False
    )
    ours = load(tiny_path, logits_all=True)
    said = []
    for llm in (parent, ours):
        answer = llm.generate(prompt, temp=0.0)
        said.append([next(answer), answer.send([1, 2, 3]), next(answer), llm.n_tokens])
    parent.close()
    assert said[0] == said[1]

    compacted = load(tiny_path, logits_all=True, retention=Retention(budget=32))
    answer = compacted.generate(prompt, temp=0.0)
    tokens = [next(answer), answer.send([1, 2, 3]), next(answer)]
    assert [token for _, token in zip(range(3), compacted.generate(prompt, temp=0.0), strict=False)] == tokens


def test_logits_that_are_not_there(load: Load, tiny_path: Path) -> None:
    """llama.cpp would abort the process."""
    llm = load(tiny_path, retention=Retention(budget=32))
    with pytest.raises(StateError, match="no logits yet"):
        llm.sample()
    answer = llm.generate(random_tokens(100))
    next(answer)
    with pytest.raises(StateError, match="of position 100: .*logits_all=True"):
        answer.send([1, 2, 3])
    llm.load_state(llm.save_state())
    with pytest.raises(StateError, match="no logits yet"):
        llm.sample()
    assert next(llm.generate(random_tokens(100))) >= 0


def test_a_generator_that_is_closed_late_does_not_touch_the_next_prompt(load: Load, tiny_path: Path) -> None:
    llm = load(tiny_path, retention=Retention(budget=32))
    old = llm.generate(random_tokens(200))
    next(old)
    new = llm.generate(random_tokens(300, seed=1), temp=0.0)
    old.close()
    next(new)
    assert llm.cache_stats().prompt_tokens == 300
    assert llm.cache_stats().compacted


def test_openais_objects_are_a_history(load: Load, tiny_path: Path, tmp_path: Path) -> None:
    llm = load(tiny_path, retention=Retention(budget=32))
    said = llm.create_chat_completion_openai_v1(QUESTION, max_tokens=4).choices[0].message
    asked = {"role": "user", "content": "And then?"}
    as_dict = {"role": "assistant", "content": said.content}
    counts = []
    for message in (as_dict, said):
        llm.reset()
        history = [*QUESTION, message, asked]
        counts.append(llm.create_chat_completion(history, max_tokens=1)["usage"]["prompt_tokens"])
        assert llm.chat_prompt(history) == llm.chat_prompt([*QUESTION, as_dict, asked])
    assert counts[0] == counts[1]
    llm.save_session(tmp_path / "session", messages=[*QUESTION, said])
    with Llama.open_session(tmp_path / "session") as opened:
        assert opened.session_messages == [*QUESTION, as_dict]


def test_pickle(load: Load, tiny_path: Path) -> None:
    retention = Retention(budget=40, scores=np.ones((2, 4)), kernel=5)
    llm = load(tiny_path, retention=retention)
    copy = pickle.loads(pickle.dumps(llm))
    assert copy.retention == retention
    assert copy.n_ctx() == llm.n_ctx()
    copy.close()


def test_embedding(load: Load, tiny_path: Path) -> None:
    llm = load(tiny_path, embedding=True)
    rows = llm.embed(["one", "two"], normalize=True)
    assert [len(row) for row in rows] == [len(llm.tokenize(text)) for text in (b"one", b"two")]
    assert {len(token) for row in rows for token in row} == {llm.n_embd()}
    assert llm.cache_stats().prompt_tokens == 0


def test_an_input_without_tokens_is_not_embedded(load: Load, tiny_path: Path) -> None:
    """llama_cpp writes before the batch's arrays for one, and the process ends when it closes."""
    llm = load(tiny_path, embedding=True)
    empty = [text for text in ("", [""], ["a", ""]) if not llm.tokenize(b"")]
    for given in empty:
        with pytest.raises(ArgumentError, match=r"^input [12] has no tokens: there is nothing to embed$"):
            llm.create_embedding(given)
    with pytest.raises(ArgumentError, match="^input is an empty list: there is nothing to embed$"):
        llm.embed([])
    assert len(llm.embed("a"))


@pytest.mark.parametrize("archive", [None, "memory"])
def test_a_compacted_prompt_is_not_evaluated_from_within(
    load: Load, tiny_path: Path, archive: str | None
) -> None:
    """As callers do who set back n_tokens."""
    llm = load(tiny_path, retention=Retention(budget=32, archive=archive))
    prompt = random_tokens(100)
    llm.prefill(prompt)
    llm.n_tokens = 10
    with pytest.raises(StateError, match="of 100 tokens cannot be taken back to token 10: call reset"):
        llm.eval([1, 2])
    assert (llm.n_tokens, llm.cache_stats().prompt_tokens) == (10, 100)
    llm.reset()
    llm.eval([1, 2])
    assert llm.n_tokens == 2


def test_an_empty_suffix_is_none(load: Load, tiny_path: Path) -> None:
    llm = load(tiny_path)
    answers = [
        llm("Hello.", max_tokens=4, temperature=0.0, **given)["choices"] for given in ({}, {"suffix": ""})
    ]
    assert answers[0] == answers[1]


def test_embedding_can_be_cancelled(load: Load, tiny_path: Path) -> None:
    llm = load(tiny_path, embedding=True)
    (wanted,) = llm.embed(["one"])
    decode, n_decoded = llm._ctx.decode, []

    def cancelled_in(batch: Any) -> None:
        n_decoded.append(1)
        llm.cancel()
        decode(batch)

    llm._ctx.decode = cancelled_in
    with pytest.raises(Cancelled):
        llm.embed(["word " * 400] * 20)
    assert len(n_decoded) == 1
    llm.cancel()  # nothing runs: it is meant for nothing that comes later
    assert llm.embed(["one"]) == [wanted]
