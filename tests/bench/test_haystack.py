"""The haystack text, without a model: a token is a word here."""

from __future__ import annotations

import pytest

from headkv_local.bench import haystack


def count(text: str) -> int:
    return len(text.split())


def test_paragraphs_are_prose_and_each_there_once() -> None:
    found = haystack.paragraphs()
    assert len(found) > 300
    assert len(set(found)) == len(found)
    assert all("\n" not in text and ">>>" not in text and "::=" not in text for text in found)


@pytest.mark.parametrize("n_tokens", [1, 37, 500, 4000])
@pytest.mark.parametrize("start", [0, 17])
def test_cut_takes_the_length_asked_for(n_tokens: int, start: int) -> None:
    parts = haystack.cut(n_tokens, count, start)
    assert sum(map(count, parts)) == n_tokens
    source = haystack.paragraphs()
    assert parts[:-1] == [source[(start + i) % len(source)] for i in range(len(parts) - 1)]
    assert source[(start + len(parts) - 1) % len(source)].startswith(parts[-1])


def test_cut_wraps_round_the_end() -> None:
    last = len(haystack.paragraphs()) - 1
    parts = haystack.cut(2000, count, last)
    assert parts[:2] == [haystack.paragraphs()[last], haystack.paragraphs()[0]]


def test_cut_refuses_more_than_there_is() -> None:
    everything = sum(map(count, haystack.paragraphs()))
    with pytest.raises(ValueError, match=f"{everything} tokens"):
        haystack.cut(everything + 1, count)


@pytest.mark.parametrize("depth", [0.0, 0.25, 0.5, 0.9, 1.0])
def test_insert_puts_the_sentence_at_the_depth(depth: float) -> None:
    parts = haystack.cut(3000, count)
    text = haystack.insert(parts, "NEEDLE", depth, count)
    before, _, after = text.partition("NEEDLE")
    longest = max(map(count, parts))
    assert abs(count(before) - depth * 3000) <= longest / 2 + 1
    assert count(before) + count(after) == 3000
    assert before == "" or before.endswith("\n\n")
    assert after == "" or after.startswith("\n\n")
