"""Text without a break, some hundred thousand characters long: std::regex would overflow the stack."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def relabelled(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default model with a pre-tokenizer that upstream has no splitter of its own for."""
    path = tmp_path_factory.mktemp("relabelled") / "gpt-4o.gguf"
    command = [sys.executable, "-m", "gguf.scripts.gguf_new_metadata", "--force", "--pre-tokenizer", "gpt-4o"]
    subprocess.run([*command, smollm2, path], check=True, capture_output=True)
    return path


@pytest.mark.parametrize("run", ["A", " ", "7", "中", "é\N{COMBINING ACUTE ACCENT}", "-", "aB", "\n"])
def test_a_long_run_is_tokenized(relabelled: Path, run: str) -> None:
    """In a process of its own, which an overflow would end. The tokens make up the text again."""
    code = (
        "import sys; from headkv_local import Llama\n"
        f"text = ({run!r} * 200000 + '!').encode()\n"
        f"with Llama({str(relabelled)!r}, vocab_only=True) as llm:\n"
        "    tokens = llm.tokenize(text, add_bos=False)\n"
        "    start = b''.join(llm._model.detokenize([token]) for token in tokens[:50])\n"
        "    print(len(tokens), text.startswith(start))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    n_tokens, same = done.stdout.split()
    assert int(n_tokens) > 1000
    assert same == "True"
