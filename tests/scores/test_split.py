"""A model in several files: one identity, one sidecar, and no tool takes the first file for the whole."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gguf_factory import TinyModel
from headkv_local import HeadScores, Llama, Retention, ScoresError, UnsupportedError, cli
from headkv_local._core import native
from headkv_local._core.gguf import Gguf
from headkv_local._gguf import reading, writing
from headkv_local.exits import FAILED, MISUSED
from headkv_local.models import retained_shape
from headkv_local.scores import sidecar_path
from helpers import last_logits, random_tokens

Load = Callable[..., Llama]

N_PARTS = 3
TOKENS = random_tokens(200)


def part(folder: Path, i: int) -> Path:
    return folder / f"tiny-{i:05d}-of-{N_PARTS:05d}.gguf"


@pytest.fixture
def first(tmp_path: Path) -> Path:
    """The first of three files; together they are tiny_path's model."""
    TinyModel().write(tmp_path / "tiny.gguf", split_max_tensors=8)
    assert sorted(tmp_path.iterdir()) == [part(tmp_path, i + 1) for i in range(N_PARTS)]
    return part(tmp_path, 1)


def scores_of(model: Path, method: str = "r") -> HeadScores:
    source = {"model_id": native.model_id(str(model))}
    scores = np.array([[0, 8, 0, 0], [1, 0, 0, 1]], dtype=np.float32)
    return HeadScores(scores=scores, n_head_kv=2, method=method, source=source)


def fails(said: str, capsys: pytest.CaptureFixture[str], *arguments: object, code: int = FAILED) -> None:
    assert cli.main([str(argument) for argument in arguments]) == code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert said in shown.err
    assert shown.err.count("\n") == 1


def test_it_is_the_model_in_one_file(first: Path, tiny_path: Path, load: Load) -> None:
    assert native.model_id(str(first)) == native.model_id(str(tiny_path))
    assert reading.n_layers(first) == reading.n_layers(tiny_path)
    logits = []
    for path in (first, tiny_path):
        llm = load(path)
        llm.eval(TOKENS)
        logits.append(last_logits(llm))
    assert np.array_equal(*logits)


def test_every_weight_counts(first: Path) -> None:
    whole = native.model_id(str(first))
    for i in range(N_PARTS):
        path = part(first.parent, i + 1)
        content = bytearray(path.read_bytes())
        content[-1] ^= 0xFF
        path.write_bytes(content)
        assert native.model_id(str(first)) != whole
        content[-1] ^= 0xFF
        path.write_bytes(content)
    assert native.model_id(str(first)) == whole


def test_its_sidecar_is_named_after_the_whole(
    first: Path, load: Load, capsys: pytest.CaptureFixture[str]
) -> None:
    sidecar = first.with_name("tiny.headkv.gguf")
    assert sidecar_path(first) == sidecar
    scores_of(first).to_sidecar(sidecar)
    llm = load(first, retention=Retention(budget=64))
    llm.prefill(TOKENS)
    assert llm.cache_stats().scores_from == str(sidecar)
    assert llm.cache_stats().kept.min() < 64
    assert cli.main(["scores", "show", str(first), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["file"], shown["beside_model"]) == (str(sidecar), str(first))
    assert cli.main(["scores", "diff", str(first), str(sidecar)]) == 0


def test_scores_are_not_embedded_into_one_of_its_files(
    first: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sidecar, before = sidecar_path(first), first.read_bytes()
    scores_of(first).to_sidecar(sidecar)
    there = sorted(tmp_path.iterdir())
    said = f"a copy of it alone would not load: keep the head scores in the sidecar {sidecar}"
    fails(said, capsys, "scores", "embed", sidecar, first, "-o", tmp_path / "copy.gguf")
    assert cli.main(["scores", "embed", str(sidecar), str(first), "-o", str(first), "--force"]) == 2
    assert "is the model itself" in capsys.readouterr().err
    with pytest.raises(UnsupportedError, match="would not load"):
        scores_of(first).embed(first, tmp_path / "copy.gguf")
    assert sorted(tmp_path.iterdir()) == there
    assert first.read_bytes() == before


def test_scores_that_were_embedded_before_it_was_split_are_found(first: Path) -> None:
    writing.write_metadata(first.with_name("keys.gguf"), scores_of(first, "embedded")._metadata())
    found = Gguf(str(first))
    start = found.data_offset
    found.replace("headkv.", Gguf(str(first.with_name("keys.gguf"))))
    first.write_bytes(found.to_bytes() + first.read_bytes()[start:])
    scores, where = HeadScores.find(first) or (None, None)
    assert scores is not None
    assert (scores.method, where) == ("embedded", first)
    scores.for_model(retained_shape(first), first)


def test_scores_of_another_split_model(first: Path, tmp_path: Path, load: Load) -> None:
    """Another last file, which an identity of the first alone would not see."""
    scores_of(first).to_sidecar(sidecar_path(first))
    other = tmp_path / "other"
    other.mkdir()
    TinyModel(seed=9).write(other / "tiny.gguf", split_max_tensors=8)
    shutil.copy(part(other, N_PARTS), part(tmp_path, N_PARTS))
    with pytest.raises(ScoresError, match="were measured on another model file"):
        load(first, retention=Retention(budget=64))


def test_a_part_that_is_not_there_or_not_what_its_name_says(first: Path, tmp_path: Path) -> None:
    second, last = part(tmp_path, 2), part(tmp_path, N_PARTS)
    for path in (second, last):
        with pytest.raises(ScoresError, match=f"^{path} is part . of a model in 3 files: name the first$"):
            native.model_id(str(path))
    renamed = Path(shutil.copy(first, tmp_path / "model.gguf"))
    with pytest.raises(ScoresError, match="found only if its name ends in -00001-of-00003.gguf$"):
        native.model_id(str(renamed))
    shutil.copy(second, last)
    with pytest.raises(ScoresError, match=f"^{last} is not part 3 of 3, as its name says$"):
        native.model_id(str(first))
    last.write_bytes(b"GGUF")
    with pytest.raises(ScoresError, match=f"^{last} is damaged: it ends within its header$"):
        native.model_id(str(first))
    last.unlink()
    with pytest.raises(ScoresError, match=f"^{last} cannot be opened: No such file or directory$"):
        native.model_id(str(first))


def test_no_output_replaces_a_part(first: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pattern = tmp_path / "full_attention_heads.tsv"
    pattern.write_text("0\t1\n1\t0\n")
    before = [part(tmp_path, i + 1).read_bytes() for i in range(N_PARTS)]
    for i in range(N_PARTS):
        output = part(tmp_path, i + 1)
        arguments = [pattern, first, "--format", "duo", "-o", output, "--force"]
        fails("is the model itself", capsys, "scores", "import", *arguments, code=MISUSED)
        fails("is the model itself", capsys, "score", first, "-o", output, "--force", code=MISUSED)
    assert [part(tmp_path, i + 1).read_bytes() for i in range(N_PARTS)] == before
