"""Where the sentences of a prompt end."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headkv_local._core.native.plan import sentence_ends
from headkv_local._core.pieces import Pieces

FEEDS = ("\n", "\r\n", "\r", "\u0085", "\u2028", "\u2029", "\f", "\v")


def last_tokens(pieces: list[bytes]) -> list[int]:
    """Numbers of the tokens that end a sentence; equal pieces are the same token."""
    words = sorted(set(pieces))
    tokens = np.array([words.index(piece) for piece in pieces], dtype=np.intc)
    ends = sentence_ends(Pieces(tokens, lambda token: words[token]))
    assert ends.dtype == np.uint8
    assert ends.shape == (len(pieces),)
    assert set(ends.tolist()) <= {0, 1}
    return np.flatnonzero(ends).tolist()


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("The code| is| 12|.| The| end|.", [3]),  # nothing follows the last one
        ("One|.\n|\n|Two|!\n", [1, 2, 4]),
        ("Version| |1|.|5| of| e|.|g|.| this", []),  # neither numbers nor abbreviations
        ("a line that is as long as lines are which|\n|was wrapped|\n|Another", [3]),
        ("name: a|\n|value: b|\n|other: c", [1, 3]),  # short lines are records
        ('He| said| "|No|.|"| Then', [5]),
        ("It is **|bold|.**| Then", [2]),
        ("wait| ...| What|?| Yes|…| No", [1, 3, 5]),
        ("今|天|。|明天|！」|後", [2, 4]),  # noqa: RUF001
        ("यह| घर| है|।| वह| नहीं", [3]),
        ("گھر|۔| کیا|؟| ہاں", [1, 3]),  # noqa: RUF001
        ("տուն|։| Ոչ", [1]),  # noqa: RUF001
        ("ቤት|።| አይደለም|፧| አዎ", [1, 3]),
        ("Πού| είναι|;| Εδώ|;\n", [2, 4]),
        ("a; B", []),
        ("Он шёл с мешком муки через тёмный лес|\n|домой|. г|. Она|\n|Там", [4, 5]),  # noqa: RUF001
        *((f"|{feed}|".join(f"value{n}: b{n}" for n in range(8)), [*range(1, 15, 2)]) for feed in FEEDS),
        *(
            (f"a line that is as long as lines are which|{feed}|was wrapped|{feed}|Another", [3])
            for feed in FEEDS
        ),
        ("x = f(α);|\n|y = sin(θ);| z", [1]),  # code  # noqa: RUF001
        ("ერთი| კატა|.| მეორე| კატა", [2]),  # no capitals
        ("ဘယ်|။|ဒါ| ខ្ញុំ|។| ក| ཀ|།|ཁ", [1, 4, 7]),
        ("晴れ|｡|雨|．|今|３|．|５|だ", [1, 3]),  # noqa: RUF001
        ("«Η Μαρία»|;| Ναι", [1]),  # noqa: RUF001
        ("no end at all", []),
        ("x = 1|\n|    y = 2|\n|Z", [1, 3]),
    ],
)
def test_ends(text: str, wanted: list[int]) -> None:
    assert last_tokens([piece.encode() for piece in text.split("|")]) == wanted


def test_characters_that_tokens_divide_and_tokens_without_text() -> None:
    stop = "。".encode()
    assert last_tokens([b"", b"a", stop[:1], stop[1:], b"", b"b\n", b""]) == [3, 5]
    assert last_tokens([b"\xff\xfe.", b" \xff"]) == [0]
    assert last_tokens([]) == []


@given(st.text(alphabet="aZ1 .!?\n\"')…。」é", max_size=60), st.sets(st.integers(0, 200)))
def test_the_tokenizer_does_not_matter(text: str, cuts: set[int]) -> None:
    """A sentence ends in the token that holds its last byte, however the text is cut into tokens."""
    data = text.encode()
    bounds = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    pieces = [data[a:b] for a, b in pairwise(bounds)]
    one_by_one = last_tokens([data[i : i + 1] for i in range(len(data))])
    holds = [i for i, piece in enumerate(pieces) for _ in piece]
    assert last_tokens(pieces) == sorted({holds[byte] for byte in one_by_one})
