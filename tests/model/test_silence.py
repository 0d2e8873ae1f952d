"""Nothing is printed unless it is asked for: llama.cpp's lines go to logging."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from headkv_local import Llama

Load = Callable[..., Llama]

SILENT = """
import logging, os, sys
from llama_cpp import LlamaGrammar
from headkv_local import Llama, Retention
from headkv_local.errors import GrammarError

def swapped(*_):
    raise AssertionError("a file descriptor was swapped")

os.dup2 = swapped
records = []
handler = logging.Handler()
handler.emit = records.append
if "log" in sys.argv:
    logging.getLogger("headkv_local").addHandler(handler)
    logging.getLogger("headkv_local").setLevel(logging.DEBUG)
with Llama(sys.argv[1], n_ctx=512, retention=Retention(budget=32)) as llm:
    llm.create_chat_completion([{"role": "user", "content": "quick brown fox " * 10}], max_tokens=4)
    for grammar in ("root ::= nowhere", 'root ::= "x" ) \\u001b[31m', "no"):
        try:
            llm.create_completion("a", grammar=LlamaGrammar.from_string(grammar), max_tokens=1)
        except GrammarError as error:
            assert len(str(error)) > 40
        else:
            raise AssertionError(grammar)
try:
    Llama(sys.argv[1], type_v=2)
except ValueError as error:
    assert "quantized V" in str(error)
if "log" in sys.argv:
    ours = [record for record in records if record.name == "headkv_local"]
    theirs = [record for record in records if record.name == "headkv_local.llama_cpp"]
    assert any("was compacted to 128 rows" in record.getMessage() for record in ours)
    assert {record.levelno for record in theirs} >= {logging.INFO, logging.ERROR}
    assert not any("\\n" in record.getMessage() for record in theirs)
"""


@pytest.mark.parametrize("arguments", [[], ["log"]])
def test_nothing_is_printed_and_no_descriptor_is_swapped(tiny_path: Path, arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SILENT, str(tiny_path), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_verbose_prints_as_the_parent_does(
    tiny_path: Path, capsys: pytest.CaptureFixture[str], load: Load
) -> None:
    with load(tiny_path, verbose=True) as llm:
        llm.create_completion("hello", max_tokens=2)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "llama_model_loader" in captured.err
    assert "Model metadata" in captured.err
    load(tiny_path).create_completion("hello", max_tokens=2)
    assert capsys.readouterr() == ("", "")


def test_a_gpu_that_is_not_there_is_told_without_any_logging_set_up(tiny_path: Path) -> None:
    program = "import sys, headkv_local as h; h.Llama(sys.argv[1], n_ctx=256, n_gpu_layers=-1).close()"
    done = subprocess.run(
        [sys.executable, "-c", program, str(tiny_path)],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
    )
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.startswith("n_gpu_layers=-1 is set aside, all runs on the CPU: ")
    assert done.stderr.count("\n") == 1
