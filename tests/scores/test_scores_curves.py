"""Curves in a file of head scores: written, read, shown, and made budgets of."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from headkv_local import ArgumentError, HeadScores, Llama, Retention, ScoresError, cli
from headkv_local._core import native
from headkv_local._gguf import writing
from headkv_local.curves import Curves

LOSSES = np.array([[[2, 1, 0.5], [0, 0, 0]], [[1, -1, 3], [0.5, 0.25, 0]]])
SCORES = HeadScores(
    scores=np.ones((2, 4)),
    n_head_kv=2,
    method="ablation",
    beta=2,
    curves=Curves(np.array([0, 0.25, 1]), LOSSES),
)


def test_a_file_with_curves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.headkv.gguf"
    SCORES.to_sidecar(path)
    found = HeadScores.from_gguf(path)
    assert found.curves is not None
    assert found.curves.shares.tolist() == [0, 0.25, 1]
    assert np.array_equal(found.curves.losses, LOSSES)
    assert cli.main(["scores", "show", str(path)]) == 0
    assert "loss of each KV head at 0%, 25%, 100% of the prompt" in " ".join(capsys.readouterr().out.split())
    assert cli.main(["scores", "show", str(path), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)["curves"]
    assert shown == {"shares": [0, 0.25, 1], "losses": LOSSES.tolist()}


def test_a_c_program_gets_the_curves_of_a_file(tmp_path: Path) -> None:
    ffi, call = native.ffi, native._functions
    shares, losses = ffi.new("float[3]"), ffi.new("float[12]")

    def get(scores: HeadScores, n_points: int, n_losses: int) -> None:
        scores.to_sidecar(tmp_path / "a.headkv.gguf", force=True)
        handle = ffi.new("struct headkv_scores **")
        native._check(call["headkv_scores_load"](str(tmp_path / "a.headkv.gguf").encode(), handle))
        loaded = ffi.gc(handle[0], call["headkv_scores_free"])
        native._check(call["headkv_scores_get_curves"](loaded, shares, n_points, losses, n_losses))

    get(SCORES, 3, 12)
    assert list(shares) == [0, 0.25, 1]
    assert list(losses) == LOSSES.ravel().tolist()
    for n_points, n_losses in ((2, 12), (3, 11)):
        with pytest.raises(ArgumentError, match="values were given room for"):
            get(SCORES, n_points, n_losses)
    with pytest.raises(ArgumentError, match="the file of these head scores holds no curves"):
        get(replace(SCORES, curves=None), 0, 0)


def test_budgets_follow_the_curves_of_a_file(
    tiny_path: Path, tmp_path: Path, load: Callable[..., Llama]
) -> None:
    path, session = tmp_path / "a.headkv.gguf", tmp_path / "a.session"
    SCORES.to_sidecar(path)
    retention = Retention(budget=40, scores=str(path), window=8, archive="memory")
    llm = load(tiny_path, retention=retention)
    llm.prefill(list(range(3, 203)))
    kept = llm.cache_stats().kept
    assert kept.sum() == 4 * 40
    # half of what is beyond the window is equal: 8 + 16; the rest where the loss falls: 8 + 48, 25 %
    assert kept.tolist() == [[56, 24], [56, 24]]
    assert llm.cache_stats().policy == "scores"

    given = load(tiny_path, retention=Retention(budget=40, scores=SCORES, archive="memory"))
    given.prefill(list(range(3, 203)))
    assert np.array_equal(given.cache_stats().kept, kept)
    given.save_session(session)
    with Llama.open_session(session) as opened:
        assert opened.retention == given.retention
        assert isinstance(opened.retention, Retention)
        assert isinstance(opened.retention.scores, HeadScores)
        assert opened.retention.scores.curves is not None


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"headkv.curve.losses": None}, "headkv.curve.losses is missing"),
        ({"headkv.curve.shares": None}, "headkv.curve.shares is missing"),
        (
            {"headkv.curve.shares": np.arange(3, dtype=np.uint32)},
            "headkv.curve.shares must be an array of f32",
        ),
        ({"headkv.curve.losses": 1.5}, "headkv.curve.losses must be an array of f32"),
        ({"headkv.curve.losses": np.zeros(11, np.float32)}, "must have 12 values, .*, not 11"),
        ({"headkv.curve.losses": np.full(12, np.inf, np.float32)}, "losses must be finite"),
        ({"headkv.curve.shares": np.array([0, 1, 1], np.float32)}, "must ascend from 0 to 1"),
        (
            {"headkv.curve.shares": np.linspace(0, 1, 65, dtype=np.float32)},
            "must have 2 to 64 values, not 65",
        ),
    ],
)
def test_what_breaks_the_format(tmp_path: Path, changed: dict[str, writing.Value], reason: str) -> None:
    path = tmp_path / "bad.gguf"
    values = {key: value for key, value in (SCORES._metadata() | changed).items() if value is not None}
    writing.write_metadata(path, values)
    with pytest.raises(ScoresError, match=f"bad.gguf: .*{reason}"):
        HeadScores.from_gguf(path)
