"""`headkv scores import`, for the tiny model of 2 layers, 4 query and 2 KV heads."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from headkv_local import HeadScores, Llama, Retention, cli
from headkv_local._core import native
from headkv_local.exits import FAILED, MISUSED
from headkv_local.models import n_layers, retained_shape
from helpers import random_tokens

LISTS = {f"{layer}-{head}": [layer, head, 0.5] for layer in range(2) for head in range(4)}
TSV = "0.25\t0\n1.000000000000000000e+00\t5.0e-01\n"


def run(path: Path, model: Path, output: Path, kind: str, *more: str) -> int:
    return cli.main(["scores", "import", str(path), str(model), "-o", str(output), "--format", kind, *more])


@pytest.mark.parametrize("kind", ["headkv", "retrieval-head"])
def test_lists_of_scores_per_head(kind: str, tiny_path: Path, tmp_path: Path) -> None:
    path, output = tmp_path / "published.json", tmp_path / "out.gguf"
    path.write_text(json.dumps(LISTS), encoding="utf-8-sig")  # with a byte order mark
    assert run(path, tiny_path, output, kind) == 0
    found = HeadScores.from_gguf(output)
    expected = [[(layer + head + 0.5) / 3 for head in range(4)] for layer in range(2)]
    assert np.allclose(found.scores, expected)
    assert (found.method, found.n_head_kv) == (kind, 2)
    assert found.source["model"] == tiny_path.name
    assert found.source["data"] == f"published.json, sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}"
    found.for_model(retained_shape(tiny_path), tiny_path)
    assert found.source["model_id"] == native.model_id(str(tiny_path))


def test_duo_patterns_are_spread_over_the_group(tiny_path: Path, tmp_path: Path) -> None:
    path, output = tmp_path / "full_attention_heads.tsv", tmp_path / "out.gguf"
    path.write_text(TSV)
    assert run(path, tiny_path, output, "duo") == 0
    found = HeadScores.from_gguf(output)
    assert found.scores.tolist() == [[0.125, 0.125, 0, 0], [0.5, 0.5, 0.25, 0.25]]
    assert found.method == "duo"


def test_draft_heads_are_no_layers(
    tiny: Callable[..., Path], load: Callable[..., Llama], tmp_path: Path
) -> None:
    model = tiny(arch="glm4moe-draft")
    assert n_layers(model) == 3
    path, output = tmp_path / "full_attention_heads.tsv", tmp_path / "out.gguf"
    path.write_text("0.25\t0\n1\t0.5\n0\t1\n")
    assert run(path, model, output, "duo") == 0
    llm = load(model, retention=Retention(budget=48, scores=output))
    assert [layer.il for layer in llm.cache_stats().layers] == [0, 1, 2]
    llm.prefill(random_tokens(300))
    kept = llm.cache_stats().kept
    assert kept[0, 0] > kept[0, 1]


def test_budgets_of_the_layers_that_are_compacted(
    tiny: Callable[..., Path],
    tiny_path: Path,
    load: Callable[..., Llama],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, output = tmp_path / "optimized_agnostic.json", tmp_path / "out.gguf"
    path.write_text('{"L2H0": 0.25, "L2H1": 0.75, "L5H0": 1, "L5H1": 0}')
    model = tiny(arch="gemma3")  # of 6 layers only these two retain
    assert run(path, model, output, "compaction") == 0
    found = HeadScores.from_gguf(output)
    assert (found.layers, found.scores.tolist()) == ((2, 5), [[0.125, 0.125, 0.375, 0.375], [0.5, 0.5, 0, 0]])
    assert (found.method, found.beta) == ("compaction", pytest.approx(1.001))
    llm = load(model, retention=Retention(budget=48, scores=output))
    assert [layer.il for layer in llm.cache_stats().layers] == [2, 5]
    for content, said in (
        ('{"L1H0": 0.25, "L1H1": 0.75}', "has no heads of the layers 0, which the model retains"),
        ('{"L1H0": 0.25}', "'L1H1' is missing"),
        ('{"L1H0": 0.25, "L1H2": 1}', "'L1H2' is beyond the model's 2 layers of 2 KV heads"),
        ('{"L1H0": 0.25, "1-1": 1}', "'1-1' is not of the form"),
        ('{"L1H0": 0.25, "L1H1": -1}', "'L1H1' has '-1', which is no score"),
        ('{"L1H0": 0, "L1H1": 0}', "all scores are zero"),
        ("{}", "has no shares"),
    ):
        path.write_text(content)
        capsys.readouterr()
        assert run(path, tiny_path, tmp_path / "none.gguf", "compaction") == FAILED
        assert said in capsys.readouterr().err


@pytest.mark.parametrize("arch", ["lfm2", "granitehybrid", "jamba", "nemotron_h"])
def test_layers_that_retain_nothing_are_not_asked_for(
    tiny: Callable[..., Path], load: Callable[..., Llama], tmp_path: Path, arch: str
) -> None:
    """Recurrent layers have no KV heads, and others may differ in theirs."""
    path, output, model = tmp_path / "published", tmp_path / "out.gguf", tiny(arch=arch)
    layers = retained_shape(model).layers
    lists = {f"{one.il}-{head}": [one.il + head] for one in layers for head in range(one.n_head)}
    path.write_text(json.dumps(lists | {"0-0": [9]}))
    assert run(path, model, output, "headkv") == 0
    found = HeadScores.from_gguf(output)
    assert found.layers == tuple(one.il for one in layers)
    assert found.scores.tolist() == [[one.il + head for head in range(one.n_head)] for one in layers]
    shares = {f"L{one.il}H{head}": head for one in layers for head in range(one.n_head_kv)}
    path.write_text(json.dumps(shares))
    assert run(path, model, output, "compaction", "--force") == 0
    groups = [one.n_head // one.n_head_kv for one in layers]
    wanted = [[h // group / group for h in range(4)] for group in groups]
    assert HeadScores.from_gguf(output).scores.tolist() == wanted
    llm = load(model, retention=Retention(budget=48, scores=output))
    llm.prefill(random_tokens(300))
    assert [layer.il for layer in llm.cache_stats().layers] == [one.il for one in layers]


def test_the_model_is_never_the_output(
    tiny_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, model = tmp_path / "a.tsv", Path(shutil.copy(tiny_path, tmp_path / "model.gguf"))
    path.write_text(TSV)
    (tmp_path / "link.gguf").symlink_to(model)
    for output in (model, tmp_path / "link.gguf"):
        assert run(path, model, output, "duo", "--force") == MISUSED
        assert "is the model itself, which would be lost" in capsys.readouterr().err
    assert run(path, model, path, "duo", "--force") == MISUSED
    assert "is what is read here, and would be lost" in capsys.readouterr().err
    assert path.read_text() == TSV
    assert model.read_bytes() == tiny_path.read_bytes()


def test_an_output_that_exists(tiny_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, output = tmp_path / "a.tsv", tmp_path / "out.gguf"
    path.write_text(TSV)
    output.write_text("mine")
    assert run(path, tiny_path, output, "duo") == MISUSED
    assert "exists already" in capsys.readouterr().err
    assert output.read_text() == "mine"
    assert run(path, tiny_path, output, "duo", "--force") == 0
    assert HeadScores.from_gguf(output).method == "duo"


def lists(**changed: object) -> str:
    return json.dumps(LISTS | changed)


BAD = {
    "no text": ("headkv", b"\xff\xfe", "is no text, byte 0 is not UTF-8"),
    "no JSON": ("headkv", b'{"0-0": [1],\n"0-1" [1]}', "line 2 is no JSON: Expecting ':' delimiter"),
    "nothing": ("headkv", b"", "line 1 is no JSON"),
    "no object": ("headkv", b"[1, 2]", "must be a JSON object with a key for each head"),
    "lists without end": ("headkv", b"[" * 100_000, "is no JSON that can be read"),
    "a number without end": ("headkv", b'{"0-0": [' + b"9" * 10_000 + b"]}", "is no JSON that can be read"),
    "key twice": ("headkv", b'{"0-0": [1], "0-0": [2]}', "the key '0-0' is there twice"),
    "odd key": ("headkv", lists(**{"0_0": [1]}), "the key '0_0' is not of the form 'layer-head'"),
    "negative key": ("headkv", lists(**{"-1-0": [1]}), "the key '-1-0' is not of the form"),
    "padded key": ("headkv", lists(**{"00-1": [1]}), "the key '00-1' is not of the form"),
    "layer beyond": (
        "headkv",
        lists(**{"2-0": [1]}),
        "'2-0' is beyond the model's 2 layers of 4",
    ),
    "head beyond": ("headkv", lists(**{"1-4": [1]}), "'1-4' is beyond the model's 2 layers of 4 query heads"),
    "no list": ("headkv", lists(**{"1-1": 0.5}), "the key '1-1' must have a list of scores"),
    "empty list": ("headkv", lists(**{"1-1": []}), "the key '1-1' must have a list of scores"),
    "text": ("headkv", lists(**{"1-1": ["0.5"]}), "the key '1-1' has '0.5', which is no score"),
    "true": ("headkv", lists(**{"1-1": [True]}), "the key '1-1' has 'True', which is no score"),
    "negative": ("headkv", lists(**{"1-1": [0, -0.5]}), "the key '1-1' has '-0.5', which is no score"),
    "NaN": ("headkv", lists(**{"1-1": [float("nan")]}), "the key '1-1' has 'nan', which is no score"),
    "infinity": ("headkv", lists(**{"1-1": [float("inf")]}), "the key '1-1' has 'inf', which is no score"),
    "far below 0": ("headkv", lists(**{"1-1": [-(10**400)]}), "the key '1-1' has '-1000"),
    "too large": ("headkv", lists(**{"1-1": [10**400]}), "the key '1-1' has '1000"),
    "missing": ("headkv", b'{"0-0": [1]}', "7 of the model's 8 query heads are missing, the first is '0-1'"),
    "all zero": ("headkv", json.dumps({key: [0, 0] for key in LISTS}), "all scores are zero"),
    "nothing in 32 bits": ("headkv", json.dumps({key: [1e-300] for key in LISTS}), "all scores are zero"),
    "too few lines": ("duo", "0\t1\n", "has 1 lines, the model has 2 layers"),
    "too many lines": ("duo", TSV + "0\t1\n", "has 3 lines, the model has 2 layers"),
    "too few values": ("duo", "0\t1\n1\n", "line 2 has 1 values, the model has 2 KV heads"),
    "too many values": ("duo", "0\t1\t1\t1\n1\t0\n", "line 1 has 4 values, the model has 2 KV heads"),
    "commas": ("duo", "0,1\n1,0\n", "line 1 has 1 values"),
    "no number": ("duo", "0\t1\n1\tx\n", "line 2 has 'x', which is not a number from 0 to 1"),
    "above 1": ("duo", "0\t1.5\n1\t0\n", "line 1 has '1.5', which is not a number from 0 to 1"),
    "below 0": ("duo", "0\t-0.1\n1\t0\n", "line 1 has '-0.1', which is not a number from 0 to 1"),
    "nan": ("duo", "0\tnan\n1\t0\n", "line 1 has 'nan', which is not a number from 0 to 1"),
    "zeros": ("duo", "0\t0\n0\t0\n", "all scores are zero"),
    "empty": ("duo", "", "has 0 lines, the model has 2 layers"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_the_file_should_not_hold(
    name: str, tiny_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kind, content, said = BAD[name]
    path, output = tmp_path / "bad", tmp_path / "out.gguf"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert run(path, tiny_path, output, kind) == FAILED
    shown = capsys.readouterr()
    assert (shown.out, shown.err.count("\n")) == ("", 1)
    assert shown.err.startswith(f"headkv: {path}: ")
    assert said in shown.err
    assert not output.exists()


def test_files_that_are_missing(tiny_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.tsv"
    path.write_text(TSV)
    for given, model, said in (
        (tmp_path / "none.tsv", tiny_path, "No such file or directory"),
        (Path("/dev/zero"), tiny_path, "/dev/zero is not a file"),
        (path, tmp_path / "none.gguf", "cannot be opened: No such file or directory"),
        (path, path, "is not a GGUF file"),
    ):
        assert run(given, model, tmp_path / "out.gguf", "duo") == FAILED
        assert said in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["a.tsv"]
