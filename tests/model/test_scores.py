"""Head scores: found by themselves or given, checked against the model, and followed by the budgets."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import llama_cpp
import numpy as np
import pytest

from headkv_local import ArgumentError, HeadScores, Llama, Retention, ScoresAbsentError, ScoresError
from headkv_local._core import native
from headkv_local.scores import sidecar_path
from helpers import last_logits, random_tokens

Load = Callable[..., Llama]

TOKENS = random_tokens(400)
RAW = np.array([[0, 8, 0, 0], [1, 0, 0, 1]], dtype=np.float32)  # of 2 layers, 4 query heads in 2 groups


def scores_of(model: Path, **fields: object) -> HeadScores:
    source = {"model": model.name, "model_id": native.model_id(str(model)), "samples": 3}
    return HeadScores(scores=RAW, n_head_kv=2, method="r", source=source, **fields)  # type: ignore[arg-type]


@pytest.fixture
def model(tiny_path: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(tiny_path, tmp_path / "model.gguf"))


def assert_followed(kept: np.ndarray) -> None:
    assert kept.sum() == 64 * 4
    assert kept[0, 0] == kept.max()  # 8 of 10
    assert kept[0, 1] == kept.min()  # nothing
    assert abs(kept[1, 0] - kept[1, 1]) <= 1  # alike, up to what does not divide


def test_a_sidecar_is_found_by_itself(load: Load, model: Path) -> None:
    scores_of(model, window=4, kernel=3, beta=1.5).to_sidecar(sidecar_path(model))
    llm = load(model, retention=Retention(budget=64))
    assert llm.scores_from == str(sidecar_path(model))
    llm.prefill(TOKENS)
    stats = llm.cache_stats()
    assert stats.policy == "scores"
    assert stats.scores_from == str(sidecar_path(model))
    assert_followed(stats.kept)
    # beta 1.5 and window 4, as the file recommends: 4 + 60 / 3 entries before the pool is shared out
    assert stats.kept.min() == 24
    assert llm.retention_mask()[:, :, -4:].all()


def test_what_is_given_wins_over_what_the_file_recommends(load: Load, model: Path) -> None:
    scores_of(model, window=4, beta=1.5).to_sidecar(sidecar_path(model))
    llm = load(model, retention=Retention(budget=64, window=16, beta=2.0))
    llm.prefill(TOKENS)
    assert llm.cache_stats().kept.min() == 16 + 24
    assert llm.retention_mask()[:, :, -16:].all()


def test_embedded_scores_are_found(load: Load, model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.gguf"
    scores_of(model).embed(model, copy)
    llm = load(copy, retention=Retention(budget=64))
    llm.prefill(TOKENS)
    assert llm.cache_stats().scores_from == str(copy)
    assert_followed(llm.cache_stats().kept)
    plain = load(model)
    plain.prefill(TOKENS)
    other = load(copy)
    other.prefill(TOKENS)
    assert np.array_equal(last_logits(plain), last_logits(other))


def test_a_copy_with_scores_loads_in_stock_llama_cpp(model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.gguf"
    scores_of(model).embed(model, copy)
    llm = llama_cpp.Llama(str(copy), n_ctx=256, verbose=False)
    assert llm.metadata["headkv.method"] == "r"
    llm.eval(TOKENS[:8])
    llm.close()


def test_a_path_wins_over_the_sidecar(load: Load, model: Path, tmp_path: Path) -> None:
    sidecar_path(model).write_bytes(b"broken")
    path = tmp_path / "given.gguf"
    scores_of(model).to_sidecar(path)
    for given in (path, str(path)):
        llm = load(model, retention=Retention(budget=64, scores=given))
        assert llm.scores_from == str(path)
    llm.prefill(TOKENS)
    assert_followed(llm.cache_stats().kept)


@pytest.mark.parametrize("kind", ["object", "array"])
def test_scores_can_be_given_as_an_object(load: Load, model: Path, kind: str) -> None:
    given = scores_of(model) if kind == "object" else scores_of(model).scores
    llm = load(model, retention=Retention(budget=64, scores=given))
    llm.prefill(TOKENS)
    assert (llm.scores_from, llm.cache_stats().scores_from) == ("given", "given")
    assert_followed(llm.cache_stats().kept)
    llm.reset()
    llm.retention = Retention(caps=np.full(llm.cache_stats().kept.shape, 64))
    assert llm.scores_from is None


def test_uniform_leaves_the_sidecar_alone(load: Load, model: Path) -> None:
    scores_of(model).to_sidecar(sidecar_path(model))
    llm = load(model, retention=Retention(budget=64, scores="uniform"))
    llm.prefill(TOKENS)
    stats = llm.cache_stats()
    assert (stats.policy, stats.scores_from) == ("uniform", None)
    assert (stats.kept == 64).all()


def test_a_broken_sidecar_is_an_error_and_no_fallback(load: Load, model: Path) -> None:
    sidecar_path(model).write_bytes(b"GGUF but not really")
    with pytest.raises(ScoresError, match="GGUF file"):
        load(model, retention=Retention(budget=64))
    load(model).prefill(TOKENS)  # without a retention nobody asks for it


def test_scores_of_another_shape(load: Load, model: Path) -> None:
    other = HeadScores(scores=np.ones((3, 4), np.float32), n_head_kv=2, method="r")
    other.to_sidecar(sidecar_path(model))
    with pytest.raises(ScoresError, match="for 3 layers of 4 query and 2 KV heads, the model has 2 layers"):
        load(model, retention=Retention(budget=64))


def test_scores_name_the_layers_that_they_are_of(
    load: Load, tiny: Callable[..., Path], tmp_path: Path
) -> None:
    """Of a model with sliding windows those that retain; the same caps come of rows for all of its layers."""
    path = tiny(arch="gemma3")
    shape = load(path, flash_attn=True).shape
    retained = tuple(layer.il for layer in shape.layers)
    n_all = max(retained) + 1
    assert retained != tuple(range(n_all))
    raw = np.random.default_rng(1).random((n_all, shape.n_head)).astype(np.float32)
    fields = {"n_head_kv": shape.n_head_kv, "method": "r"}
    caps = []
    for scores in (
        HeadScores(scores=raw[list(retained)], layers=retained, **fields),  # type: ignore[arg-type]
        HeadScores(scores=raw, **fields),  # type: ignore[arg-type]
    ):
        sidecar = tmp_path / f"{len(caps)}.gguf"
        scores.to_sidecar(sidecar)
        assert HeadScores.from_gguf(sidecar).layers == scores.layers
        llm = load(path, retention=Retention(budget=64, scores=sidecar))
        llm.prefill(TOKENS)
        caps.append(llm.cache_stats().kept)
    assert np.array_equal(*caps)
    assert len(np.unique(caps[0])) > 1
    others = tuple(il + 1 for il in retained)
    scores = HeadScores(scores=raw[list(retained)], layers=others, **fields)  # type: ignore[arg-type]
    with pytest.raises(ScoresError, match=f"layers {others[0]}.* retains the layers {retained[0]}"):
        load(path, retention=Retention(budget=64, scores=scores))


@pytest.mark.parametrize("layers", [(0,), (0, 0), (1, 0), (-1, 0)])
def test_layers_that_no_model_has(layers: tuple[int, ...]) -> None:
    with pytest.raises(ArgumentError, match="layers"):
        HeadScores(scores=RAW, layers=layers, n_head_kv=2, method="r")


def test_scores_of_another_model_file(load: Load, model: Path) -> None:
    fields = {"scores": RAW, "n_head_kv": 2, "method": "r"}
    HeadScores(**fields, source={"model_id": "fnv1a-0"}).to_sidecar(sidecar_path(model))  # type: ignore[arg-type]
    with pytest.raises(ScoresError, match=r"they name fnv1a-0, this is fnv1a-[0-9a-f]{16}"):
        load(model, retention=Retention(budget=64))


def test_a_path_without_scores(load: Load, model: Path, tmp_path: Path) -> None:
    with pytest.raises(ScoresAbsentError, match="holds no head scores"):
        load(model, retention=Retention(budget=64, scores=model))
    with pytest.raises(ScoresError, match="cannot be opened"):
        load(model, retention=Retention(budget=64, scores=tmp_path / "none.gguf"))


def test_rows_of_attention_are_softmax_rows(load: Load, model: Path) -> None:
    """What head scores are measured from: each row sums to 1; selection records their power mean."""
    llm = load(model, flash_attn=True)
    ctx = llm.ctx
    n_observed, n = 4, len(TOKENS)
    llm.eval(TOKENS[:-n_observed])
    native.observe(ctx, native.OBSERVE_ROWS)
    rows = []
    for token in TOKENS[-n_observed:]:
        llm.eval([token])
        row = np.zeros((2, 4, n), np.float32)
        row[:, :, : llm.n_tokens] = native.get_rows(ctx)
        rows.append(row)
    assert np.allclose(np.sum(rows, axis=3), 1, atol=1e-5)

    llm.reset()
    native.observe(ctx, native.OBSERVE_TOKENS, n - n_observed, n_observed)
    llm.eval(TOKENS[:-n_observed])
    llm.eval(TOKENS[-n_observed:])
    far = np.arange(n) <= np.arange(n - n_observed, n)[:, None] - 16  # (observed, n)
    powers = ((np.array(rows) * far[:, None, None]) ** 4).mean(axis=0).reshape(2, 2, 2, -1).mean(axis=2)
    assert np.allclose(native.get_attention(ctx), powers**0.25, atol=2e-4)
