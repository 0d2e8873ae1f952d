"""Every script of examples/ runs and prints what it promises; the tiny model's answers are noise."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
PRINTS = {
    "document_questions.py": [
        r"full cache, as turns: \d of 3 right, cache ",
        r"64 entries per KV head, each on its own: \d of 3 right, cache ",
    ],
    "stream_and_cancel.py": [r"read (\d+) of \1 tokens\n", r"(stopped after|then) '"],
    "session.py": [
        r"session: [\d.]+ MiB, light: [\d.]+ MiB\n",
        r"read after opening: \d{1,3} of \d{4} tokens",
    ],
    "retention_mask.py": [r"2 layers, 2 KV heads, \d+ prompt tokens\n", r"mean 64\n", r"kept by most"],
}


def test_every_example_is_tested() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} - {"material.py"} == set(PRINTS)


@pytest.mark.parametrize("name", PRINTS)
def test_example(name: str, tiny_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, str(EXAMPLES / name), str(tiny_path)], capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr
    for pattern in PRINTS[name]:
        assert re.search(pattern, run.stdout), run.stdout
