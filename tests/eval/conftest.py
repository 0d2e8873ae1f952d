"""lm_eval, and a suite for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def lm_eval() -> Any:
    return pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install lm-eval")


@pytest.fixture
def babilong(tmp_path: Path) -> Path:
    """A folder with two questions of BABILong at 1k."""
    text = "It rained all day long, and nobody came to see the old house. " * 12 + "Mary went to the office."
    row = json.dumps({"input": text, "question": "Where is Mary? ", "target": "office"})
    folder = tmp_path / "data" / "1k"
    folder.mkdir(parents=True)
    (folder / "qa1.jsonl").write_text(f"{row}\n{row}")
    return folder.parent
