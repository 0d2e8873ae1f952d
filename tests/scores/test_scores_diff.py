"""`headkv scores diff`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headkv_local import HeadScores, cli
from headkv_local.budgets import LayerShape, ModelShape
from headkv_local.exits import FAILED, MISUSED
from headkv_local.scoresfile import diff
from headkv_local.scoresfile.heads import NAME, Heads, of, told


def scores_of(raw: object, n_head_kv: int = 2) -> HeadScores:
    return HeadScores(scores=np.array(raw, dtype=np.float32), n_head_kv=n_head_kv, method="r")


RISING = scores_of(np.arange(1, 41).reshape(5, 8))


def test_a_file_and_itself() -> None:
    for found in diff.compare(RISING, RISING, top=5).values():
        assert found.spearman == pytest.approx(1)
        assert [x.common == x.k for x in found.overlaps] == [True, True]


def test_a_file_and_its_reverse() -> None:
    reverse = scores_of(np.arange(40, 0, -1).reshape(5, 8))
    found = diff.compare(RISING, reverse, top=7)
    assert found["query heads"].spearman == pytest.approx(-1)
    assert found["query heads"].overlaps == [diff.Overlap(4, 0), diff.Overlap(7, 0)]
    assert found["KV heads"].n_heads == 10
    assert found["KV heads"].overlaps == [diff.Overlap(1, 0), diff.Overlap(7, 4)]


def test_kv_heads_are_sums_over_their_group() -> None:
    heads = [Heads(4, 2), Heads(4, 2)]
    assert diff.by_kv_head(scores_of([[1, 2, 3, 4], [5, 6, 7, 8]]), heads).tolist() == [3, 7, 11, 15]
    a, b = scores_of([[1, 9, 4, 4]]), scores_of([[9, 1, 3, 2]])
    assert diff.compare(a, b)["KV heads"].spearman == pytest.approx(1)
    assert diff.compare(a, b)["query heads"].spearman == pytest.approx(-4.5 / np.sqrt(4.5 * 5))


def test_equal_scores_share_their_rank() -> None:
    assert diff.ranks(np.array([3.0, 1.0, 3.0, 2.0, 3.0])).tolist() == [3, 0, 3, 1, 3]
    flat = scores_of(np.ones((5, 8)))
    found = diff.compare(RISING, flat)["query heads"]
    assert found.spearman is None
    assert found.overlaps == [diff.Overlap(4, 0)]  # ties go to the lower head


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=2, max_size=40))
def test_spearman_is_the_correlation_of_ranks_by_counting(pairs: list[tuple[int, int]]) -> None:
    a, b = np.array(pairs, dtype=np.float64).T
    slow = [[(v < x).sum() + ((v == x).sum() - 1) / 2 for x in v] for v in (a, b)]
    assert [diff.ranks(v).tolist() for v in (a, b)] == slow
    found = diff.spearman(a, b)
    if min(np.ptp(a), np.ptp(b)) == 0:
        assert found is None
    else:
        assert found == pytest.approx(np.corrcoef(slow)[0, 1])


def uneven(seed: int, text: str | None) -> HeadScores:
    """2 layers of 8 query and 4 KV heads, 6 of 4 and 1: rows of these end in zeros."""
    rng = np.random.default_rng(seed)
    raw = np.zeros((8, 8), np.float32)
    raw[:2], raw[2:, :4] = rng.random((2, 8)), rng.random((6, 4))
    source = {} if text is None else {NAME: text}
    return HeadScores(scores=raw, n_head_kv=4, method="r", source=source)


UNEVEN = ",".join(["8/4"] * 2 + ["4/1"] * 6)


def test_heads_that_a_layer_does_not_have_agree_in_nothing() -> None:
    a, b = uneven(0, UNEVEN), uneven(1, UNEVEN)
    found = diff.compare(a, b)
    assert {name: one.n_heads for name, one in found.items()} == {"KV heads": 14, "query heads": 40}
    there = np.concatenate([a.scores[:2].ravel(), a.scores[2:, :4].ravel()])
    others = np.concatenate([b.scores[:2].ravel(), b.scores[2:, :4].ravel()])
    assert found["query heads"].spearman == diff.spearman(there, others)
    sums = [np.concatenate([x.scores[:2].reshape(8, 2).sum(1), x.scores[2:, :4].sum(1)]) for x in (a, b)]
    assert found["KV heads"].spearman == pytest.approx(diff.spearman(*sums))
    moved = diff.moves(a, b)
    assert {(m.layer, m.head) for m in moved} <= {(i, j) for i in range(8) for j in range(4 if i < 2 else 1)}
    assert diff.compare(a, uneven(1, None)) == found  # one file says it

    with pytest.raises(ValueError, match="number of KV heads, 14, not 15"):
        diff.compare(a, b, top=15)
    with pytest.raises(ValueError, match="models whose layers have different heads"):
        diff.compare(a, uneven(1, ",".join(["8/4"] * 2 + ["4/2"] * 6)))


def test_where_nobody_says_which_heads_there_are() -> None:
    a, b = uneven(0, None), uneven(1, None)
    found = diff.compare(a, b)
    assert [(name, one.n_heads) for name, one in found.items()] == [("query heads", 40)]
    assert diff.moves(a, b) == []
    assert "KV heads are unknown" in diff.text(found, [])
    assert diff.document(found, [])["kv_heads"] is None
    with pytest.raises(ValueError, match="number of query heads, 40, not 41"):
        diff.compare(a, b, top=41)


@pytest.mark.parametrize(
    "text",
    ["", "8/4", "8/4,8/4", UNEVEN + ",4/1", UNEVEN.replace("4/1", "4/3"), UNEVEN.replace("4/1", "3/1"), "x"],
)
def test_what_the_scores_cannot_be_of_is_not_believed(text: str) -> None:
    assert of(uneven(0, UNEVEN)) == [Heads(8, 4)] * 2 + [Heads(4, 1)] * 6
    expected = [Heads(8, 4)] * 8 if text == "8/4" else None
    assert of(uneven(0, text or None)) == expected


def test_layers_that_are_alike_are_told_once() -> None:
    layers = [LayerShape(i, 9, 3, 256) for i in range(4)]
    assert told(ModelShape.of(layers)) == "9/3"
    assert told(ModelShape.of([*layers, LayerShape(4, 6, 3, 256)])) == "9/3,9/3,9/3,9/3,6/3"


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b, other = (str(tmp_path / name) for name in ("a.gguf", "b.gguf", "other.gguf"))
    RISING.to_sidecar(a)
    scores_of(np.arange(40, 0, -1).reshape(5, 8)).to_sidecar(b)
    scores_of(np.ones((5, 8)), n_head_kv=4).to_sidecar(other)
    assert cli.main(["scores", "diff", a, b, "--top", "7"]) == 0
    assert capsys.readouterr().out == (
        "          KV heads  query heads\n"
        "heads           10           40\n"
        "Spearman   -1.0000      -1.0000\n"
        "top 10 %    0 of 1       0 of 4\n"
        "top         4 of 7       0 of 7\n"
        "more in A (layer-KV head, share in A and in B)\n"
        "  4-1      18.8%   1.2%\n"
        "  4-0      16.8%   3.2%\n"
        "  3-1      14.9%   5.1%\n"
        "  3-0      12.9%   7.1%\n"
        "  2-1      11.0%   9.0%\n"
        "more in B (layer-KV head, share in A and in B)\n"
        "  0-0       1.2%  18.8%\n"
        "  0-1       3.2%  16.8%\n"
        "  1-0       5.1%  14.9%\n"
        "  1-1       7.1%  12.9%\n"
        "  2-0       9.0%  11.0%\n"
    )
    assert cli.main(["scores", "diff", a, a, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["moves"] == []
    assert document["query_heads"] == {
        "heads": 40,
        "spearman": pytest.approx(1),
        "overlaps": [{"k": 4, "common": 4}],
    }
    for arguments, said, code in (
        ((a, other), "5 layers of 8 query and 2 KV heads, and 5 layers of 8 query and 4 KV heads", MISUSED),
        ((a, b, "--top", "11"), "--top must be at most the number of KV heads, 10, not 11", MISUSED),
        ((a, str(tmp_path / "none")), "cannot be opened", FAILED),
    ):
        assert cli.main(["scores", "diff", *arguments]) == code
        shown = capsys.readouterr()
        assert (shown.out, shown.err.count("\n")) == ("", 1)
        assert said in shown.err
