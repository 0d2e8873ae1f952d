"""Running `headkv score` on a tiny model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headkv_local.cli import main

Score = Callable[..., int]


@pytest.fixture
def score(tiny_path: Path, tmp_path: Path) -> Score:
    """score(*options, model=..., out=...): the exit code. Short prompts and few of them, unless told else."""

    def run(*options: str, model: Path = tiny_path, out: str = "out.gguf") -> int:
        short = ("--samples", "4", "--lengths", "400,600", "--threads", "1")
        return main(["score", str(model), "-o", str(tmp_path / out), *short, *options])

    return run


@pytest.fixture
def examples_file(tmp_path: Path) -> Callable[..., Path]:
    """examples_file(*examples): the path of a file with them."""

    def write(*examples: dict[str, Any]) -> Path:
        path = tmp_path / "examples.jsonl"
        path.write_text("".join(json.dumps(example) + "\n" for example in examples), encoding="utf-8")
        return path

    return write
