"""The demo: its document with the real tokenizer, and its run on a tiny model."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from pathlib import Path

import pytest

from headkv_local import Llama
from headkv_local.bench.tasks import found
from headkv_local.demo import __main__ as demo
from headkv_local.demo.material import document, questions


def test_the_document_is_long_enough(smollm2: Path) -> None:
    with Llama(smollm2, n_ctx=256) as llm:
        n_tokens = len(llm.tokenize(document().encode(), add_bos=False))
    assert 4300 <= n_tokens <= 5500


def test_every_answer_stands_in_the_document_and_they_are_spread() -> None:
    text = document()
    asked = questions()
    assert len(asked) >= 8
    assert all(found(question.expected, text) for question in asked)
    assert len({question.text for question in asked}) == len(asked)
    depths = [text.index(question.expected) / len(text) for question in asked]
    assert {int(depth * 5) for depth in depths} == set(range(5))


def test_answers_come_from_both_caches(
    tiny_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "document", lambda: document()[:2000])  # few bytes share a token here
    assert demo.main(["--model", str(tiny_path), "--questions", "2", "--threads", "1", "--budget", "64"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for number, question in enumerate(questions()[:2]):
        assert f"{number + 1}. {question.text}\n" in out
    rows = {cells[0]: cells[1:] for line in out.splitlines() if len(cells := re.split("  +", line)) == 3}
    full, compacted = rows["prompt tokens"]
    assert full == compacted
    assert rows["kept of the prompt"] == ["100.0%", f"{64 / int(full):.1%}"]
    assert rows["cache, full size"] == [rows["cache, resident now"][0]] * 2
    before, after = (float(size.removesuffix(" MiB")) for size in rows["cache, resident now"])
    assert after < before
    assert all(cell.endswith(" of 2") for cell in rows["answers right"])


def test_json_on_stdout_is_alone_there(
    tiny_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "document", lambda: document()[:500])
    arguments = ["--model", str(tiny_path), "--questions", "1", "--threads", "1", "--json", "-"]
    assert demo.main(arguments) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["settings"]["questions"] == 1
    assert "answers right" in err


def test_a_reader_that_has_seen_enough_leaves_the_json(
    tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "document", lambda: document()[:500])
    reader, writer = os.pipe()
    os.close(reader)
    arguments = ["--model", str(tiny_path), "--questions", "1", "--threads", "1"]
    for more in ([], ["--json", str(tmp_path / "out.json")]):
        monkeypatch.setattr(sys, "stdout", open(os.dup(writer), "w"))  # noqa: SIM115
        assert demo.main([*arguments, *more]) == 0
    assert json.loads((tmp_path / "out.json").read_text())["bench"] == "demo"


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_interrupts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    before = signal.getsignal(number)
    if number != signal.SIGINT:
        signal.signal(number, signal.SIG_DFL)
    try:
        monkeypatch.setattr(demo, "_run", lambda _: os.kill(os.getpid(), number))
        assert demo.main([]) == code
    finally:
        signal.signal(number, before)
    assert capsys.readouterr().err == "\ndemo: interrupted\n"


def test_a_document_too_long_for_the_model_is_one_sentence(
    tiny_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo.main(["--model", str(tiny_path), "--questions", "1", "--threads", "1"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("demo: the model was trained for 8192 tokens")


@pytest.mark.parametrize("option", ["--questions", "--threads"])
def test_wrong_usage_exits_with_2(option: str) -> None:
    with pytest.raises(SystemExit) as exit_info:
        demo.main([option, "0"])
    assert exit_info.value.code == 2
