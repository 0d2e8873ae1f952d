"""Where a fact stands in the tokens of a prompt, with the tokenizers of real and tiny models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import accumulate
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headkv_local import Llama, ModelError, default_model_path
from headkv_local.scoring import dataset, samples
from headkv_local.scoring.prompt import Prompter, ask, span

FACT = "The kettle of Wanda Przybylska holds 3,407 drops, żółw."


@pytest.fixture(scope="module", params=["tiny", "smollm2"])
def llm(request: pytest.FixtureRequest, tiny: Callable[..., Path]) -> Iterator[Llama]:
    path = tiny() if request.param == "tiny" else default_model_path()
    with Llama(path, vocab_only=True, n_ctx=64) as opened:
        yield opened


def pieces(llm: Llama, tokens: list[int]) -> list[bytes]:
    return [llm.detokenize([token], special=True) for token in tokens]


def check_span(llm: Llama, text: str, start: int, end: int) -> None:
    """The span is exactly the tokens that hold one of the bytes."""
    prompter = Prompter(llm)
    tokens = prompter.tokenize(text)
    parts = pieces(llm, tokens)
    assert b"".join(parts) == text.encode()  # byte-level: tokens are slices of the text
    first, last = (len(text[:at].encode()) for at in (start, end))
    ends = list(accumulate(map(len, parts)))
    wanted = [i for i, to in enumerate(ends) if to > first and to - len(parts[i]) < last]
    found = span(text, start, end, tokens, prompter.tokenize, lambda token: len(pieces(llm, [token])[0]))
    assert list(found) == wanted


@pytest.mark.parametrize("before", ["", "Some text.\n\n", "x", "the", "\n", " ", "Straße "])
@pytest.mark.parametrize("after", ["", "\n\nMore text.", "x", "ther", "s", " "])
def test_borders(llm: Llama, before: str, after: str) -> None:
    check_span(llm, before + FACT + after, len(before), len(before + FACT))


@pytest.mark.parametrize(("start", "end"), [(3, 5), (4, 7), (2, 3), (6, 6 + 1), (0, 1), (11, 16)])
def test_borders_inside_of_words(llm: Llama, start: int, end: int) -> None:
    check_span(llm, "an other weather, on the steamer", start, end)


def test_any_borders(llm: Llama) -> None:
    texts = st.text(st.sampled_from("the inanouston  \n\n.,19äß€🙂"), min_size=1, max_size=40)

    @given(texts, st.data())
    def check(text: str, data: st.DataObject) -> None:
        start = data.draw(st.integers(0, len(text) - 1))
        check_span(llm, text, start, data.draw(st.integers(start + 1, len(text))))

    check()


@pytest.mark.parametrize("length", [700, 4000])
def test_a_prompt_has_the_length_asked_for(llm: Llama, length: int) -> None:
    """Also where a separator is more tokens before a word than at the end of a text."""
    prompter = Prompter(llm)
    for plan in samples.plan(dataset.own("r").examples, 3, (length,), 0):
        assert length - 20 <= len(ask(plan, prompter).prompt.tokens) <= length


def test_prompt(llm: Llama) -> None:
    prompter = Prompter(llm)
    other = "Wanda sleeps."
    prompt = prompter.prompt(f"Much text.\n\n{FACT}\n\nOther text.\n\n{other}\n\nWhat?", [other, FACT])
    said = b"".join(pieces(llm, prompt.tokens)).decode()
    assert said.endswith("What?<|im_end|>\n<|im_start|>assistant\n")
    assert said.count("<|im_start|>user\n") == 1
    needle = b"".join(pieces(llm, [prompt.tokens[i] for i in prompt.needle])).decode()
    assert needle == FACT + other
    assert llm.detokenize(prompter.answer("Drei Äpfel.")).decode() == "Drei Äpfel."


def test_a_fact_that_is_not_there_or_there_twice_is_an_error(llm: Llama) -> None:
    for content in ("No fact.", f"{FACT} {FACT}"):
        with pytest.raises(ModelError, match="does not leave the message as it is"):
            Prompter(llm).prompt(content, [FACT])
