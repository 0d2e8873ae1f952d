"""The head scores that come with the project: each is what it says, and scores/README.md names it."""

from __future__ import annotations

from pathlib import Path

import pytest

from headkv_local import HeadScores
from headkv_local.retention import DEFAULTS
from headkv_local.scores import SHIPPED, SUFFIX

SOURCES = Path(__file__).parents[2] / "scores"
NAMES = sorted(path.name for path in SOURCES.glob("*.gguf"))
BETAS = {
    "SmolLM2-135M-Instruct.Q4_1": 3.0,
    "gemma-3-270m-q4_k_m": 5.0,
    "qwen2.5-coder-0.5b-instruct-q4_k_m": 1.005,
}


def test_all_of_them_are_installed() -> None:
    assert sorted(path.name for path in SHIPPED.iterdir()) == NAMES
    assert len(NAMES) == len(BETAS)


@pytest.mark.parametrize("name", NAMES)
def test_provenance(name: str) -> None:
    scores = HeadScores.from_gguf(SOURCES / name)
    assert name == Path(str(scores.source["model"])).stem + SUFFIX  # so that it is found for that model
    assert str(scores.source["model_id"]).startswith("fnv1a-")
    assert {"data", "samples", "seed", "lengths", "date", "licence", "tool"} <= scores.source.keys()
    advice = {key: getattr(scores, key) for key in DEFAULTS}
    assert advice == pytest.approx(DEFAULTS | {"beta": BETAS[name.removesuffix(SUFFIX)]})
    assert f"`{name}`" in (SOURCES / "README.md").read_text(encoding="utf-8")


def test_they_are_found_under_any_name(smollm2: Path, tmp_path: Path) -> None:
    link = tmp_path / "another name.gguf"
    link.symlink_to(smollm2)
    found, named = HeadScores.find(link), HeadScores.find(smollm2)
    assert found is not None
    assert named is not None
    assert found[1] == named[1]
    assert found[1].parent == SHIPPED
