"""headkv-chat as a person uses it: in a terminal."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from chat_driver import ENDLESS, TIMEOUT, Terminal, words

from headkv_local.chat.prompt import open_history
from headkv_local.chat.render import strip_control
from headkv_local.errors import HeadKVError

ANSWERED = r"\d+ tokens?(, [\d.]+ tokens/s)?, read"
STORY = "Write a very long story about a river."

Chat = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def document(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "document.txt"
    path.write_text(text[:4500], encoding="utf-8")
    return path


def read_counts(screen: str) -> list[int]:
    """How many prompt tokens each answer so far had to evaluate."""
    return [int(count) for count in re.findall(r"read (\d+) in", screen)]


@pytest.mark.usefixtures("smollm2")
class TestConversation:
    def test_turns_go_on_from_the_compacted_cache(self, terminal: Terminal, document: Path) -> None:
        terminal.start("-f", str(document), "--budget", "64", "--max-tokens", "24")
        assert "is read with your first question" in terminal.wait_prompt()
        terminal.line("What is this about?")
        first = read_counts(terminal.wait(ANSWERED))[0]
        assert first > 800
        terminal.line("Can you say more?")
        assert read_counts(terminal.wait(ANSWERED, count=2))[1] < 100
        terminal.wait_prompt()
        terminal.line("/stats")
        prompt = re.search(r"prompt: (\d+) tokens, kept \d\.\d % \(scores\)", terminal.wait("peak"))
        assert prompt is not None
        assert first < int(prompt[1]) < first + 100
        terminal.line("/again")
        terminal.wait(r"/again .*tokens?(, [\d.]+ tokens/s)?, cache")  # nothing is read
        terminal.wait_prompt()
        terminal.line("/undo")
        terminal.wait(r"Taken back: Can you say more\?")
        terminal.line("/info")
        terminal.wait(r"archive: \d+ tokens, [\d.]+ MiB in memory turns: 1")
        terminal.type("C-d")
        assert terminal.exit_code() == 0

    def test_interrupts(self, terminal: Terminal, document: Path) -> None:
        terminal.start("--budget", "64", *ENDLESS)
        terminal.wait_prompt()
        terminal.line(f"/file {document}")
        terminal.wait("read with your next question")
        terminal.line("What is this about?")
        terminal.wait(r" [1-9]\d*/\d+ [\d.]+tok/s")
        terminal.type("C-c")
        screen = terminal.wait("Stopped while the prompt was read; its documents go with the next question.")
        assert read_counts(screen)[0] < 800
        terminal.wait_prompt()

        terminal.line(STORY)  # the document goes with it
        terminal.wait(rf"{STORY}( [^\s%|]+){{3}}")
        terminal.type("C-c")
        screen = terminal.wait("Stopped; the answer so far is part of the chat.")
        assert read_counts(screen)[1] > 800  # what was read of it has been dropped
        terminal.wait_prompt()

        terminal.line("Please go on.")
        terminal.wait(r"Please go on\.( [^\s%|]+){3}")
        terminal.type("C-c")
        screen = terminal.wait("part of the chat", count=2)
        answered = [int(count) for count in re.findall(r"(\d+) tokens?(?:, [\d.]+ tokens/s)?, read", screen)]
        assert read_counts(screen)[2] < answered[-2] + 40  # that answer against the archive, and the turn
        terminal.line("/info")
        terminal.wait("turns: 2")
        terminal.wait_prompt()
        terminal.type("C-c")
        terminal.wait("Ctrl-C again or Ctrl-D leaves.")
        terminal.type("C-c")
        assert terminal.exit_code() == 130


@pytest.mark.usefixtures("smollm2")
def test_a_loop_does_not_stay_in_the_chat(terminal: Terminal) -> None:
    terminal.start("--temp", "0", "--max-tokens", "400")
    terminal.wait_prompt()
    terminal.line("What is the capital of France?")
    terminal.wait("Stopped: the answer had begun to repeat itself without end. The chat keeps .* once.")
    terminal.wait_prompt()
    terminal.line("Say hi.")
    screen = terminal.wait(ANSWERED, count=2)
    assert read_counts(screen)[1] < 60
    terminal.wait_prompt()
    terminal.line("/info")
    used = re.search(r"context: (\d+) of", terminal.wait("turns: 2"))
    assert used is not None
    assert int(used[1]) < 320  # the prompt and the loop alone took more


def test_commands(terminal: Terminal, tiny_path: Path) -> None:
    terminal.start(str(tiny_path))
    assert terminal.wait_prompt().startswith(f"{tiny_path.name}, context 8192 tokens, budget 128.")
    for line, reply in [
        ("/nonsense now", "error: there is no command /nonsense; /help lists them"),
        ("/clear all", "error: /clear takes no argument"),
        ("/file", "error: /file takes the path of a document"),
        ("/file missing", "error: cannot read the document 'missing': No such file or directory"),
        ("/file -", "error: standard input is this chat; /file takes a path"),
        ("/set budget 3", "error: budget must be at least"),
        ("/set budget full", "budget: full (/set), from the next prompt on"),
        ("/set budget", "> /set budget budget: full (/set)"),
        ("/stats", "prompt: 0 tokens, kept whole"),
        (
            "/info",
            "budget: full head scores: none threads: 1 sampling: temp 0.6, top-k 40, top-p 0.95, "
            "min-p 0.05, repeat-penalty 1.05 cache on: CPU archive: none, the cache keeps everything "
            "turns: 0",
        ),
        ("/again", "error: there is no answer yet"),
        ("/undo", "error: there is no question to take back"),
        ("/clear", "A new chat."),
    ]:
        terminal.line(line)
        terminal.wait(re.escape(reply))
    terminal.line("/help")
    screen = terminal.wait("/exit: leave")
    assert all(
        f"/{name}:" in screen
        for name in ("help", "info", "clear", "file PATH", "again", "undo", "set [NAME] [VALUE]", "stats")
    )
    terminal.wait(re.escape("/quit is /exit, /bye is /exit, /? is /help, /new is /clear."))
    terminal.line("/exit")
    assert terminal.exit_code() == 0


def test_lines_and_quotes(terminal: Terminal, tiny_path: Path, tmp_path: Path) -> None:
    history = tmp_path / "history"
    terminal.start(str(tiny_path), "--max-tokens", "8", "--history", str(history))
    terminal.wait_prompt()
    terminal.type("Enter")
    terminal.line("a question")
    terminal.wait(ANSWERED)
    terminal.wait_prompt()
    terminal.type("half a line", "C-c")
    terminal.wait("half a line >")
    terminal.line('"""/stats is no')
    terminal.wait(r"no \.\.\.")
    terminal.line('command"""')
    terminal.wait(ANSWERED, count=2)
    terminal.wait_prompt()
    terminal.line("/info")
    assert "Ctrl-C again" not in terminal.wait("turns: 2")
    terminal.type("C-d")
    assert terminal.exit_code() == 0
    assert "+a question" in history.read_text()
    assert history.stat().st_mode & 0o777 == 0o600
    assert "half a line" not in history.read_text()


def test_end_of_the_context(terminal: Terminal, tiny_path: Path, document: Path, tmp_path: Path) -> None:
    terminal.start(str(tiny_path), "--ctx", "512", "--budget", "16", "--max-tokens", "8")
    terminal.wait_prompt()
    terminal.line("hi")
    terminal.wait(ANSWERED)
    terminal.wait_prompt()
    terminal.line(f"/file {document}")
    terminal.wait("error: .*has room for 4")
    small = tmp_path / "small.txt"
    small.write_text("word " * 60)
    terminal.line(f"/file {small}")
    terminal.wait("read with your next question")
    terminal.line("why " * 60)
    terminal.wait(
        r"error: this question with its documents and an answer do not fit into the context of 512 "
        r"tokens; the chat so far takes \d+\. It was not asked\. Its documents stay attached\. /clear starts"
    )
    terminal.line("hi again")
    terminal.wait(ANSWERED, count=2)
    terminal.wait_prompt()
    terminal.line("/info")
    terminal.wait("turns: 2")
    terminal.line("/set budget 32")
    terminal.wait(r"budget: 32 \(/set\), after /clear")
    terminal.line("/clear")
    terminal.wait("A new chat")
    terminal.line("/info")
    assert "context: 0 of 512 tokens budget: 32" in terminal.wait("turns: 0")
    terminal.type("C-d")
    assert terminal.exit_code() == 0


def test_answer_cannot_steer_the_terminal(terminal: Terminal, chat: Chat, tiny_path: Path) -> None:
    ask = (str(tiny_path), "-p", "hi", "--color", "never", "--max-tokens", "16", "--temp", "0")
    ask = (*ask, "--markdown", "off")
    text = json.loads(chat(*ask, "--json").stdout)["text"]
    assert strip_control(text) != text
    terminal.start(*ask)
    assert terminal.exit_code() == 0
    assert terminal.wait(ANSWERED).startswith(words(strip_control(text)))


def test_narrow_terminal(terminal: Terminal, tiny_path: Path, document: Path) -> None:
    terminal.start(str(tiny_path), "-f", str(document), "--color", "always", "--max-tokens", "8", columns=40)
    terminal.wait_prompt()
    terminal.line("hi " * 20)
    terminal.wait(ANSWERED)
    assert "\n... " not in terminal.screen()  # where a long line goes on no new one begins
    terminal.line("/help")
    terminal.wait("/exit: leave")
    terminal.line("/stats")
    terminal.wait("peak")
    lines = terminal.screen().splitlines()
    assert max(map(len, lines)) <= 40
    assert "kept whole" not in terminal.wait("MiB peak")
    terminal.type("C-d")
    assert terminal.exit_code() == 0


def test_an_error_of_the_template_ends_a_turn_only(terminal: Terminal, tiny: Callable[..., Path]) -> None:
    terminal.start(str(tiny(chat_template="{{ foo.bar.baz }}")))
    terminal.wait_prompt()
    terminal.line("hello")
    terminal.wait("error: the model's chat template is broken: UndefinedError: 'foo' is undefined; another")
    assert "completions" not in terminal.wait_prompt()
    terminal.line("/exit")
    assert terminal.exit_code() == 0


def test_a_template_that_makes_every_turn_read_all(terminal: Terminal, tiny: Callable[..., Path]) -> None:
    """It writes the number of messages first. Said where a part was read before, and not after /clear."""
    model = tiny(chat_template="{{ messages|length }}{% for m in messages %} {{ m['content'] }}{% endfor %}")
    terminal.start(str(model), "--budget", "16", "--max-tokens", "4")
    for turn in (1, 2, 3, 4):
        terminal.wait_prompt()
        if turn == 3:
            terminal.line("/clear")
            terminal.wait("A new chat.")
        terminal.line("why " * 20)
        terminal.wait(ANSWERED, count=turn)
        screen = terminal.wait_prompt()
        assert screen.count("The prompt was read as a whole: ") == turn // 2
    assert "chat template writes messages in another way when others follow." in screen
    read = read_counts(screen)
    assert read[0] == read[2] < read[1]
    terminal.type("C-d")
    assert terminal.exit_code() == 0


def test_a_document_that_does_not_fit(terminal: Terminal, tiny_path: Path, document: Path) -> None:
    terminal.start(str(tiny_path), "-f", str(document), "--ctx", "512")
    assert terminal.exit_code() == 1
    terminal.wait("error: .* and the context of 512 has room for 448: a larger --ctx at the start makes room")


def test_another_file_is_no_history(tmp_path: Path) -> None:
    (tmp_path / "letter").write_text("Dear Ines,\n")
    with pytest.raises(HeadKVError, match="letter' is another file, no history of lines"):
        open_history(str(tmp_path / "letter"))
    assert (tmp_path / "letter").read_text() == "Dear Ines,\n"


def test_a_history_that_cannot_be_written_any_more(
    terminal: Terminal, tiny_path: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    terminal.start(str(tiny_path), "--history", str(folder / "history"))
    terminal.wait_prompt()
    shutil.rmtree(folder)
    terminal.line("/stats")
    terminal.wait("error: the history file could not be written: No such file or directory")
    terminal.wait("kept whole")
    terminal.wait_prompt()


def test_a_block_is_not_lost(terminal: Terminal, tiny_path: Path) -> None:
    terminal.start(str(tiny_path), "--max-tokens", "8")
    terminal.wait_prompt()
    for count in (1, 2):  # twice in a row: a block is no empty prompt
        terminal.line('"""')
        terminal.line(f"line {count}")
        terminal.type("C-c")
        terminal.wait("Not sent. The up key brings the text back.", count=count)
        terminal.wait_prompt()
    terminal.type("Up")
    terminal.wait(r'> """ \.\.\. line 2 \.\.\.$')
    terminal.line('and the end"""')
    terminal.wait(ANSWERED)
    terminal.wait_prompt()
    terminal.line("/info")
    terminal.wait("turns: 1")
    terminal.type("C-d")
    assert terminal.exit_code() == 0


def writing_to(pipe: Path) -> int:
    """Once somebody reads from it, who then waits for what is written."""
    end = time.monotonic() + TIMEOUT
    while True:
        with suppress(OSError):
            return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        assert time.monotonic() < end, "nobody reads from the pipe"
        time.sleep(0.02)


def test_a_command_can_be_interrupted(terminal: Terminal, tiny_path: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    terminal.start(str(tiny_path))
    terminal.wait_prompt()
    terminal.line("/file pipe")
    writer = writing_to(tmp_path / "pipe")
    terminal.type("C-c")
    terminal.wait("Stopped.")
    terminal.wait_prompt()
    os.close(writer)
    terminal.line("/exit")
    assert terminal.exit_code() == 0


@pytest.mark.parametrize("word", ["exit", "quit", "/quit", "EXIT"])
def test_words_that_leave(terminal: Terminal, tiny_path: Path, word: str) -> None:
    terminal.start(str(tiny_path))
    terminal.wait_prompt()
    terminal.line(word)
    assert terminal.exit_code() == 0


def test_tab(terminal: Terminal, tiny_path: Path, tmp_path: Path) -> None:
    (tmp_path / "a long name.txt").write_text("text")
    (tmp_path / os.fsdecode(b"no UTF-8 \xff.txt")).write_text("text")
    terminal.start(str(tiny_path))
    terminal.wait_prompt()
    terminal.type("/fi", "Tab")
    terminal.wait("> /file$")
    terminal.type("a", "Tab")
    terminal.wait("> /file a long name.txt$")
    terminal.type("Enter")
    terminal.wait("a long name.txt: 4 tokens, read with your next question")
    terminal.wait_prompt()
    terminal.type("/file n", "Tab", "Enter")
    terminal.wait(r"no UTF-8 .\.txt: 4 tokens, read with your next question")
    terminal.wait_prompt()
    terminal.type("/", "Tab")
    terminal.wait("/info")
    terminal.type("C-c")
    terminal.line(f"/file '{tmp_path}/a long name.txt'")
    terminal.wait("tokens, read with", count=3)
    terminal.type("C-d")
    assert terminal.exit_code() == 0


def test_interrupts_at_any_time_after_enter(terminal: Terminal, tiny_path: Path) -> None:
    """Between a line and its answer the terminal sends a signal; wherever it arrives, the chat goes on."""
    terminal.start(str(tiny_path), "--max-tokens", "4")
    terminal.wait_prompt()
    for i in range(30):
        line = ("x",) if i % 2 else ('"""', "Enter", "y")
        terminal.type(*line, "Enter", "C-c")
        # The terminal echoes keys before the prompt reads them, and may drop what was written just before
        # Ctrl-C: only what the prompt draws anew has been read by it, and can be taken back.
        terminal.fill_in(f"z{i}")
        terminal.type("C-u")
    screen = terminal.screen()
    assert "Traceback" not in screen
    assert "xception" not in screen
    terminal.fill_in("/exit")
    terminal.type("Enter")
    assert terminal.exit_code() == 0


def test_answers_break_between_words(terminal: Terminal, smollm2: Path, chat: Chat) -> None:
    ask = ("-p", STORY, "--temp", "0", "-n", "120", "--color", "never")
    text = chat(*ask, "--json").stdout
    terminal.start(*ask, columns=40)
    assert terminal.exit_code() == 0
    terminal.wait(ANSWERED)
    answer = [line for line in terminal.screen().splitlines() if not re.match(ANSWERED, line)]
    assert max(map(len, answer)) < 40
    shown = words("\n".join(answer))
    assert words(json.loads(text)["text"]) in shown


def test_colours_in_what_is_typed_are_text(terminal: Terminal, tiny_path: Path) -> None:
    """As in a log that is pasted amid an answer, where the terminal does not mark what is pasted."""
    terminal.start(str(tiny_path))
    terminal.wait_prompt()
    terminal.line("\x1b[31mred\x1b[0m")
    screen = terminal.wait("tokens, ")
    assert "> ^[[31mred^[[0m" in screen
    assert "xception" not in screen


def test_suspended_at_the_prompt(terminal: Terminal, tiny_path: Path) -> None:
    terminal.start(str(tiny_path), jobs=True)
    terminal.wait_prompt()
    terminal.type("C-z")
    assert terminal.exit_code() == 128 + signal.SIGTSTP


@pytest.mark.usefixtures("smollm2")
def test_keys_amid_an_answer_stand_at_the_next_prompt(terminal: Terminal) -> None:
    terminal.start("--max-tokens", "100", *ENDLESS)
    terminal.wait_prompt()
    terminal.line(STORY)
    terminal.wait(rf"{STORY}( [^\s%|]+){{3}}")
    terminal.type("/info", "Enter")
    screen = terminal.wait("turns: 1")
    assert screen.index("100 tokens,") < screen.index("/info")  # typed before, seen behind the answer


@pytest.mark.usefixtures("smollm2")
def test_keys_are_shown_after_a_chat_that_was_killed_amid_an_answer(terminal: Terminal) -> None:
    terminal.start(*ENDLESS)
    terminal.wait_prompt()
    terminal.line(STORY)
    terminal.wait(rf"{STORY}( [^\s%|]+){{3}}")
    terminal.kill(signal.SIGTERM)
    assert terminal.exit_code() == 128 + signal.SIGTERM
    terminal.line("typed")
    terminal.wait("typed typed")  # shown, and written back by cat
