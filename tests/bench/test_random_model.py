"""Random models: the shapes are what they say, the files load, and nothing is left behind."""

from __future__ import annotations

import tempfile
from pathlib import Path

import gguf
import numpy as np
import pytest

from headkv_local import ArgumentError, Llama, Retention
from headkv_local.bench import random_model
from headkv_local.bench.random_model import SHAPES, opened, parse
from helpers import last_logits


@pytest.mark.parametrize("quant", ["q4_k", "q8_0"])
def test_a_random_model_loads_and_its_logits_are_numbers(quant: str) -> None:
    settings = {"n_ctx": 512, "n_threads": 1, "n_threads_batch": 1}
    with (
        opened(f"random:tiny:{quant}") as path,
        Llama(path, retention=Retention(budget=32), **settings) as llm,
    ):
        llm.prefill(llm.tokenize(b"Speed does not depend on what the weights say. " * 6))
        logits = last_logits(llm)
        stats = llm.cache_stats()
    assert stats.compacted
    assert stats.kept.shape == (2, 2)
    assert np.isfinite(logits).all()
    assert logits.std() > 0.01
    assert not Path(path).exists()


@pytest.mark.parametrize(
    ("name", "n_params", "n_biases"),
    [  # parameters of the layers, as the models' own cards count them
        ("llama-3-8b", 32 * (4096 * (4096 + 1024 + 1024 + 4096) + 3 * 4096 * 14336), 0),
        ("qwen2.5-7b", 28 * (3584 * (3584 + 512 + 512 + 3584) + 3 * 3584 * 18944), 3),
    ],
)
def test_the_large_shapes(name: str, n_params: int, n_biases: int) -> None:
    shape = SHAPES[name]
    assert shape.n_layer * sum(n_out * n_in for _, n_out, n_in in shape.matrices()) == n_params
    assert all(n_in % 256 == 0 for _, _, n_in in shape.matrices())  # whole blocks of Q4_K
    assert (shape.arch == "qwen2") == bool(n_biases)
    assert shape.n_ctx > 131072


def test_the_values_have_the_scale_of_real_weights(tmp_path: Path) -> None:
    for quant in random_model.QUANTS.values():
        random_model.write(SHAPES["tiny"], quant, tmp_path / "tiny.gguf")
        tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "tiny.gguf").tensors}
        for name, n_in in (("blk.0.attn_q.weight", 256), ("blk.1.ffn_down.weight", 512)):
            tensor = tensors[name]
            assert tensor.tensor_type == quant
            assert tensor.shape[0] == n_in
            values = gguf.quants.dequantize(tensor.data, quant)
            assert values.std() * np.sqrt(n_in) == pytest.approx(1, abs=0.4)
            assert abs(values.mean()) < values.std() / 4


def test_a_kept_model_is_found_again(tmp_path: Path) -> None:
    with opened("random:tiny", tmp_path / "models") as path:
        made = Path(path).stat().st_mtime_ns
    assert Path(path).exists()
    with opened("random:tiny", tmp_path / "models") as again:
        assert again == path
        assert Path(path).stat().st_mtime_ns == made
    assert [file.name for file in (tmp_path / "models").iterdir()] == ["random-tiny.gguf"]


def test_any_other_name_is_a_file() -> None:
    with opened("model.gguf") as path:
        assert path == "model.gguf"


@pytest.mark.parametrize("name", ["random:", "random:llama", "random:tiny:q2_k"])
def test_an_unknown_shape_is_refused_with_those_that_there_are(name: str) -> None:
    with pytest.raises(ArgumentError, match=r"llama-3-8b, qwen2\.5-7b, much-cache, tiny.*q4_k, q8_0"):
        parse(name)


def test_a_full_disk_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    usage = type("Usage", (), {"free": 2**28})
    monkeypatch.setattr(random_model.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(OSError, match="TMPDIR"), opened("random:tiny"):
        pass
    assert list(tmp_path.iterdir()) == []
