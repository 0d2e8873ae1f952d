"""`headkv scores show`."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from headkv_local import HeadScores, cli
from headkv_local.exits import FAILED, MISUSED
from headkv_local.scores import sidecar_path
from headkv_local.scoresfile.plot import heat_map

RAW = np.array([[0, 1, 0.01, 0.25], [0.0001, 0, 0.5, 0]], dtype=np.float32)


def scores_of(raw: np.ndarray = RAW, n_head_kv: int = 2, **fields: object) -> HeadScores:
    given = {"method": "r2", "source": {"model": "tiny", "seed": 3}} | fields
    return HeadScores(scores=raw, n_head_kv=n_head_kv, **given)  # type: ignore[arg-type]


def show(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert cli.main(["scores", "show", *map(str, arguments)]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    return shown.out


def test_a_sidecar(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.chdir(tmp_path)
    scores_of(beta=1.02, kernel=13).to_sidecar("a.headkv.gguf")
    assert show(capsys, "a.headkv.gguf") == (
        "file          a.headkv.gguf\n"
        "method        r2\n"
        "shape         2 layers, 4 query heads, 2 KV heads\n"
        "beta          1.02\n"
        "kernel        13\n"
        "source.model  tiny\n"
        "source.seed   3\n"
        "\n"
        "0 | @ .+|\n"
        "1 |.  # |\n"
        "\n"
        "A row per layer, a column per query head, 2 of a KV head\n"
        "together. Blank: 0; '.:-=+*#%@': up to 1, by square root.\n"
    )


def test_layers_that_differ_in_their_heads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    raw = np.array([[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 0, 0]], dtype=np.float32)
    scores_of(raw, source={"layer_heads": "4/2,4/1,2/1"}).to_sidecar("a.headkv.gguf")
    shown = show(capsys, "a.headkv.gguf")
    assert "shape               3 layers, 2 to 4 query heads, 1 to 2 KV heads\n" in shown
    assert "\n0 |@@ @@|\n1 |@@@@|\n2 |@@|\n" in shown
    assert "those of a KV head together" in shown
    assert json.loads(show(capsys, "a.headkv.gguf", "--json"))["layer_heads"] == [[4, 2], [4, 1], [2, 1]]


def test_a_model_with_scores_in_it_and_beside_it(
    tiny_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model, both = Path("model.gguf"), Path("both.gguf")
    shutil.copy(tiny_path, model)
    scores_of(method="embedded").embed(model, both)
    assert "embedded" in show(capsys, both)
    scores_of(method="beside").to_sidecar(sidecar_path(both))
    said = " ".join(show(capsys, both).split())
    assert "method beside" in said
    assert f"file {sidecar_path(both)}" in said
    assert f"{both}: these scores are its sidecar's" in said
    assert cli.main(["scores", "show", str(model)]) == FAILED
    said = f"headkv: {model} holds no head scores, and there is no {sidecar_path(model)}\n"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(
    ("n_head", "n_head_kv"), [(1, 1), (9, 3), (32, 8), (64, 8), (71, 1), (128, 128), (96, 2)]
)
@pytest.mark.parametrize("columns", [20, 40, 80, 200])
def test_it_fits_and_shows_every_head_once(
    n_head: int,
    n_head_kv: int,
    columns: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.chdir(tmp_path)
    raw = np.random.default_rng(1).uniform(0.1, 1, (12, n_head)).astype(np.float32)
    scores_of(raw, n_head_kv, source={"command": "word " * 60}).to_sidecar("a.gguf")
    lines = show(capsys, "a.gguf").splitlines()
    assert max(map(len, lines)) <= max(columns, 40)
    assert all(line.isascii() for line in lines)
    for layer in range(12):
        rows = [line.split("|")[1] for line in lines if re.match(rf" ?{layer} \|", line)]
        shades = "".join(rows).replace(" ", "")
        assert len(shades) == n_head
        expected = np.ceil(np.sqrt(raw[layer] / raw.max()) * 9).astype(int)
        assert [".:-=+*#%@".index(c) + 1 for c in shades] == expected.tolist()


def test_what_a_terminal_would_obey_is_not_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.gguf"
    scores_of(method="\x1b]0;title\x07", source={"model": "a\nb\u202ec", "\x7e": "\x9b2J"}).to_sidecar(path)
    shown = show(capsys, path)
    assert all(line.isprintable() for line in shown.splitlines())
    assert "?]0;title?" in shown


def test_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.gguf"
    scores_of(sinks=0).to_sidecar(path)
    document = json.loads(show(capsys, path, "--json"))
    assert document == {
        "file": str(path),
        "beside_model": None,
        "method": "r2",
        "n_layer": 2,
        "layers": [0, 1],
        "n_head": 4,
        "n_head_kv": 2,
        "layer_heads": None,
        "recommended": {"sinks": 0},
        "source": {"model": "tiny", "seed": "3"},
        "scores": RAW.astype(float).tolist(),
        "curves": None,
    }


def test_png(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is the extra 'plot'")
    path, picture = tmp_path / "a.gguf", tmp_path / "a.png"
    scores_of(method="$r2").to_sidecar(path)
    show(capsys, path, "--png", picture)
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert cli.main(["scores", "show", str(path), "--png", str(picture)]) == MISUSED
    assert "exists already" in capsys.readouterr().err
    show(capsys, path, "--png", picture, "--force")


def test_png_names_the_layers_that_scores_are_of() -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is the extra 'plot'")
    figure = heat_map(scores_of(layers=(5, 11)))
    figure.draw_without_rendering()
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert [label for label in labels if label] == ["5", "11"]


def test_png_without_matplotlib(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    path = tmp_path / "a.gguf"
    scores_of().to_sidecar(path)
    assert cli.main(["scores", "show", str(path), "--png", str(tmp_path / "a.png")]) == FAILED
    shown = capsys.readouterr()
    assert shown.out == ""
    said = "headkv: --png needs matplotlib: pip install 'headkv-local[plot]', or matplotlib by itself\n"
    assert shown.err == said
    assert not (tmp_path / "a.png").exists()
