"""A program packed by PyInstaller, with nothing but the package's own hook: it loads a model and answers."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    find_spec("PyInstaller") is None, reason="needs PyInstaller: pip install pyinstaller"
)

PROGRAM = """
import sys
from headkv_local import Llama, Retention, library_dir

with Llama(sys.argv[1], n_ctx=1024, n_threads=1, retention=Retention(budget=64)) as llm:
    messages = [{"role": "user", "content": "hello " * 300}]
    reply = llm.create_chat_completion(messages, max_tokens=3, temperature=0.0)
    print(reply["usage"]["completion_tokens"], llm.cache_stats().compacted)
    print(llm.scores_from)
    print(library_dir())
left_open = Llama(sys.argv[1], n_ctx=256, n_threads=1)  # also when Python takes its modules apart
"""


def test_a_packed_program_answers(smollm2: Path, tmp_path: Path) -> None:
    program = tmp_path / "asking.py"
    program.write_text(PROGRAM)
    packing = [sys.executable, "-m", "PyInstaller", "--noconfirm", "--log-level", "WARN", str(program)]
    subprocess.run(packing, cwd=tmp_path, check=True, capture_output=True, timeout=1200)
    moved = tmp_path / "elsewhere"
    shutil.move(tmp_path / "dist" / "asking", moved)
    done = subprocess.run(
        [moved / "asking", smollm2], cwd="/", env={}, capture_output=True, text=True, timeout=600
    )
    assert (done.returncode, done.stderr) == (0, "")
    answered, scores, library = done.stdout.splitlines()
    assert answered == "3 True"
    for file in (scores, library):
        assert Path(file).is_relative_to(moved)
