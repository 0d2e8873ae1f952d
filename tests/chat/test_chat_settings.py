"""Commands that change a chat, and what answers look like then, in terminals of two widths and in a pipe."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from chat_driver import Terminal

ANSWERED = r"\d+ tokens, [\d.]+ tokens/s"
ANSWER = "# Head\n\n- one **bold** item that is longer than a line of forty columns\n\nEnd *it*.\n"
THOUGHT = "<think>\nFirst some words.\n</think>\n\n"

Chat = Callable[..., "subprocess.CompletedProcess[str]"]


def grammar(text: str) -> str:
    return f"root ::= {json.dumps(text)}"


@pytest.mark.parametrize("columns", [80, 40])
def test_in_a_terminal(terminal: Terminal, tiny: Callable[..., Path], tmp_path: Path, columns: int) -> None:
    (tmp_path / "thinks.gbnf").write_text(grammar(THOUGHT + ANSWER))
    (tmp_path / "docs").mkdir()
    for name in ("a.txt", "b.txt"):
        (tmp_path / "docs" / name).write_text("some words " * 30)
    (tmp_path / "docs" / "c.bin").write_bytes(b"\x7fELF")
    first, second = tiny(), tiny(arch="qwen2")
    terminal.start(str(first), "--budget", "16", "-n", "300", "--grammar", "thinks.gbnf", columns=columns)
    terminal.wait_prompt()
    for line, reply in [
        (
            "/file docs",
            r"docs: 1 left out: c.bin \(is a program, and no text\)\. docs, 2 docu",
        ),
        ("Why?", rf"Thought for 3 words; /thinking shows them\. Head - one bold item .* End it\. {ANSWERED}"),
        ("/thinking", "/thinking First some words"),
        ("/set thinking show", r"thinking: show \(/set\)"),
        ("/set markdown off", r"markdown: off \(/set\)"),
        ("/again", r"</think> # Head - one \*\*bold\*\* item"),
        ("/set temp warm", "error: 'warm' is not a number from 0 up"),
        ("/set wat 1", "error: /set knows no 'wat', but temp, top-k"),
        ("/set parameter top_p 1", "error: /set takes the name of a setting at once, such as /set temp 0.2"),
        ("/set system Be brief.", "error: /set knows no 'system'; /system Be brief. is a command"),
        (f"/load {second}", "is a GGUF model, and no session; /model goes on with it"),
        ("/set seed -1", r"seed: open \(/set\)"),
        ("/set", r"temp: 0\.6 \(default\) .* budget: 16 \(the command line\) .* thinking: show \(/set\)"),
        ("/system Be brief.", "There is a system message now. The chat is read anew with your next"),
        ("/system", "/system Be brief."),
        ('/system ""', "There is no system message now"),
        ("/kept", r"entries of \d+ tokens are kept, by 4 KV heads; .* Kept by: no.head .* some words"),
        ("/kept --html kept.html", "Written to kept.html; a browser shows it"),
        ("/model docs/a.txt", r"error: 'docs/a\.txt' is no GGUF model; a document is given with /file"),
        (f"/model {second}", r"context 8192 tokens\. The chat of 1 turn is read anew with your next"),
        ("And then?", rf"And then\?.*{ANSWERED}, read [1-9]\d\d in"),
        ("/budget 8", "error: there is no command /budget; /set budget 8 is one"),
        ("/info", f"model: .*{second.name[:8]}"),
    ]:
        terminal.line(line)
        terminal.wait(reply)
        terminal.wait_prompt()
    assert (tmp_path / "kept.html").stat().st_size > 1000
    screen = terminal.screen()
    assert "- one bold item" in screen
    assert max(map(len, screen.splitlines())) <= columns
    terminal.type("/set the", "Tab", "Tab")
    terminal.type("C-u")
    terminal.type("/set th", "Tab", "h", "Tab", "Enter")
    terminal.wait(r"> /set thinking hide thinking: hide \(/set\)")
    terminal.type("/mod", "Tab", "doc", "Tab")
    terminal.wait(r"> /model docs/?$")


def test_in_a_pipe(chat: Chat, tiny_path: Path) -> None:
    """The model's own text, and nothing that is for terminals."""
    ask = (str(tiny_path), "-p", "Why?", "-n", "300", "--grammar", grammar(THOUGHT + ANSWER))
    assert chat(*ask).stdout == THOUGHT + ANSWER
    assert chat(*ask, "--thinking", "hide").stdout == ANSWER
    assert chat(*ask, HEADKV_CHAT_THINKING="hide", HEADKV_CHAT_STREAM="0").stdout == ANSWER
    assert json.loads(chat(*ask, "--thinking", "hide", "--json").stdout)["text"] == THOUGHT + ANSWER
    done = chat(*ask, "--config", "missing.toml")
    assert (done.returncode, done.stdout) == (2, "")


def test_a_question_that_is_far_too_long(chat: Chat, tiny_path: Path) -> None:
    """Refused before all of it is tokenized, which would take longer than the test waits."""
    done = chat(str(tiny_path), stdin="word and more, " * 4_000_000, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    assert "do not fit into the context of 8192 tokens" in done.stderr
