"""headkv-chat as a script calls it: on pipes, with the default model."""

from __future__ import annotations

import importlib.metadata
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chat_driver import COMMAND, ENDLESS, TIMEOUT, end, start, wait_until_reading

from headkv_local import Llama, Retention
from headkv_local.chat import main

Chat = Callable[..., "subprocess.CompletedProcess[str]"]

STATS = (
    r"\d+ tokens?(, [\d.]+ tokens/s)?, read \d+ in [\d.]+ s"
    r"(, cache [\d.]+ \w+ -> [\d.]+ \w+, kept [\d.]+ %)?"
)
SHORT = ("--max-tokens", "16", "--temp", "0")  # the tiny model seldom ends its noise by itself
STORY = "Write a very long story about a river."


@pytest.fixture
def document(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "document.txt"
    path.write_text(text[:2000], encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["-f", "-"],
        ["--budget", "nothing", "-p", "hi"],
        ["--budget", "7", "-p", "hi"],
        ["--kernel", "4", "-p", "hi"],
        ["--beta", "1", "-p", "hi"],
        ["--beta", "nan", "-p", "hi"],
        ["--sinks", "-1", "-p", "hi"],
        ["--temp", "x", "-p", "hi"],
        ["-p", ""],
        ["--nonsense"],
    ],
)
def test_wrong_usage(chat: Chat, argv: list[str]) -> None:
    done = chat(*argv)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("usage: headkv-chat")
    assert "headkv-chat: error: " in done.stderr


def test_blank_input_is_no_question(chat: Chat) -> None:
    done = chat(stdin=" \n\n")
    assert done.returncode == 2
    assert "there is no question" in done.stderr


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("missing", None, "cannot read the document '{}': No such file or directory"),
        (
            "latin-1",
            b"caf\xe9",
            "the document '{}' is not UTF-8 text: byte 0xe9 at 3; if it is Latin-1 or Windows-1252, "
            "convert it with iconv -f WINDOWS-1252 -t UTF-8",
        ),
        ("empty", b"", "the document '{}' is empty"),
    ],
)
def test_bad_document(chat: Chat, tmp_path: Path, name: str, content: bytes | None, reason: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    done = chat("-f", str(path), "-p", "What is this?")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"error: {reason.format(path)}\n"


def test_undecodable_input(chat: Chat) -> None:
    done = chat(stdin=b"\xff")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: standard input is not UTF-8 text: byte 0xff at 0")


@pytest.mark.parametrize("content", [None, b"", b"GGUF", b"no model at all" * 1000])
def test_bad_model(chat: Chat, tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "model.gguf"
    if content is not None:
        path.write_bytes(content)
    done = chat(str(path), "-p", "hi")
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"error: .*model\.gguf.*\n", done.stderr)


def test_what_the_library_warns_of_is_said_once(chat: Chat, tiny: Callable[..., Path]) -> None:
    done = chat(str(tiny(chat_template="")), "-p", "Why?", *SHORT)
    told = "the model has no chat template: its chats are written as plain text"
    assert done.stderr.splitlines()[0] == told
    assert done.stderr.count(told) == 1


@pytest.mark.parametrize(
    ("option", "value"), [("--json-schema", '{"type": "wat"}'), ("--budget", "0.001MiB")]
)
def test_options_that_only_the_model_refuses(chat: Chat, tiny_path: Path, option: str, value: str) -> None:
    done = chat(str(tiny_path), "-p", "hi", option, value)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"error: .*\n", done.stderr)


@pytest.mark.parametrize("argv", [["{}"], ["{}", "-p", "hi"], ["-m", "{}", "-p", "hi"]])
def test_a_document_in_the_place_of_the_model(chat: Chat, document: Path, argv: list[str]) -> None:
    done = chat(*(word.format(document) for word in argv))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"error: '{document}' is no GGUF model; a document is given with -f: -f '{document}'\n"
    )


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        (["{}"], 1, "error: '{}' is no GGUF model; a session goes on with --session '{}'"),
        (["x", "{}"], 2, "error: unrecognized arguments: {}; a session goes on with --session '{}'"),
        (
            ["-f", "{}", "-p", "hi"],
            1,
            "error: the document '{}' is a session: it goes on with --session, or in a chat with /load",
        ),
    ],
)
def test_a_session_in_another_place(
    chat: Chat, tiny_path: Path, tmp_path: Path, argv: list[str], code: int, said: str
) -> None:
    path = tmp_path / "a.session"
    with Llama(tiny_path, n_ctx=64, n_threads=1, retention=Retention()) as llm:
        llm.prefill([1, 2, 3])
        llm.save_session(path)
    done = chat(*(word.format(path) for word in argv))
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.endswith(said.format(path, path) + "\n")


def test_a_context_beyond_the_memory_allowed(tiny_path: Path) -> None:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))"
    code = f"import sys; {limit}; from headkv_local.chat import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tiny_path), "-p", "hi", "-t", "1", "-c", "4000000"],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1] == (
        "error: there is not enough memory for a context of 4000000 tokens: start with a smaller --ctx"
    )


def test_a_home_that_the_shell_did_not_expand(chat: Chat, document: Path, tiny_path: Path) -> None:
    ask = (str(tiny_path), "-p", "Why?", "--json", *SHORT, "-f", "~/document.txt")
    done = chat(*ask, HOME=str(document.parent))
    assert json.loads(done.stdout)["usage"]["prompt_tokens"] > 1000


def test_missing_default_model(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def distribution(name: str) -> object:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("headkv_local.models.distribution", distribution)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"hi")))
    assert main([]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"error: .*default model.*pip install.*\n", err)


@pytest.mark.parametrize("argv", [["--help"], ["--version"]])
def test_help_and_version_load_no_library(argv: list[str], tmp_path: Path) -> None:
    code = (
        "import sys; from headkv_local.chat import main; code = main(sys.argv[1:]);"
        "sys.exit(code or sum(name in sys.modules for name in ('llama_cpp', 'numpy', 'prompt_toolkit')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *argv], capture_output=True, text=True, cwd=tmp_path, timeout=TIMEOUT
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(("usage: headkv-chat", "headkv-chat "))


@pytest.mark.parametrize("argv", [["--help"], ["--version"], ["--show-config"]])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_full_standard_output(argv: list[str], unbuffered: str, environment: dict[str, str]) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*COMMAND, *argv],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=environment | {"PYTHONUNBUFFERED": unbuffered},
            timeout=TIMEOUT,
            check=False,
        )
    assert done.returncode == 1
    assert re.fullmatch(r"error: cannot write the .*: No space left on device\n", done.stderr)


class TestAnswers:
    def test_only_the_answer_is_on_standard_output(self, chat: Chat, smollm2: Path) -> None:
        question = "What is the capital of France?"
        drawn = ("--max-tokens", "12", "--seed", "3")
        done = chat("-p", question, *drawn)
        told = chat(str(smollm2), "--json", *drawn, stdin=f"\n{question}\n\n")
        assert done.returncode == 0
        assert done.stdout.strip()
        assert done.stdout == json.loads(told.stdout)["text"] + "\n"
        stats, cut = done.stderr.splitlines()
        assert re.fullmatch(STATS, stats)
        assert cut == "The answer is cut off after 12 tokens (--max-tokens)."
        done = chat("-p", question, "-n", "4", "--grammar", 'root ::= "\U0001f980\U0001f980\U0001f980"')
        stats, cut = done.stderr.splitlines()
        assert not stats.startswith("4 tokens")  # the rest of a character
        assert cut == "The answer is cut off after 4 tokens (--max-tokens)."
        assert "\x1b" not in done.stdout + done.stderr

    def test_question_is_the_same_from_everywhere(self, chat: Chat, tiny_path: Path) -> None:
        question, short = "Write a very long story", (str(tiny_path), *SHORT)
        asked = chat(*short, "-p", question)
        piped = chat(*short, stdin=question + "\n")
        whole = chat(*short, "-p", question, "--no-stream")
        told = json.loads(chat(*short, "-p", question, "--json").stdout)
        assert asked.stdout == piped.stdout == whole.stdout == told["text"] + "\n"

    def test_document_is_the_same_from_everywhere(self, chat: Chat, document: Path, tiny_path: Path) -> None:
        ask = (str(tiny_path), "-p", "What is this about?", "--json", *SHORT)
        named = chat("-f", str(document), *ask)
        piped = chat(*ask, stdin=document.read_text(encoding="utf-8"))
        dashed = chat("-f", "-", *ask, stdin=document.read_text(encoding="utf-8"))
        text = document.read_text("utf-8").strip("\n") + "\n\n" + ask[2]
        asked = chat(*ask[:1], *ask[3:], stdin=text)
        titled = chat(*ask[:1], *ask[3:], stdin="document.txt:\n\n" + text)
        answers = [json.loads(done.stdout) for done in (piped, dashed, asked, named, titled)]
        read = [answer["usage"]["prompt_tokens"] for answer in answers]
        assert answers[0]["text"] == answers[1]["text"]
        assert read[:3] == read[:1] * 3
        assert read[3] == read[4]  # a file goes under its name
        assert read[0] > 1000

    def test_json(self, chat: Chat, document: Path, tiny_path: Path) -> None:
        done = chat(str(tiny_path), "-f", str(document), "-p", "Why?", "--json", *SHORT, "--budget", "64")
        assert done.returncode == 0
        assert done.stdout.count("\n") == 1
        answer: dict[str, Any] = json.loads(done.stdout)
        usage, stats = answer["usage"], answer["stats"]
        assert set(answer) == {"text", "finish_reason", "usage", "stats"}
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
        assert stats["read_tokens"] == stats["compacted_prompt_tokens"] == usage["prompt_tokens"]
        assert stats["reread_reason"] is None
        assert (stats["archive"], stats["archive_tokens"]) == ("memory", usage["prompt_tokens"])
        assert stats["compacted"] is True
        assert stats["policy"] == "uniform"
        assert stats["kept_share"] == pytest.approx(64 / usage["prompt_tokens"], rel=1e-4)
        assert stats["resident_bytes"] < stats["full_bytes"] / 2

    def test_an_answer_without_end_is_stopped(self, chat: Chat, smollm2: Path) -> None:
        done = chat("-p", "What is the capital of France?", "--temp", "0", "--json")
        answer = json.loads(done.stdout)
        assert answer["finish_reason"] == "repetition"
        assert answer["usage"]["completion_tokens"] < 500
        assert done.stderr.endswith("Stopped: the answer had begun to repeat itself without end.\n")

    def test_a_list_that_was_asked_for_is_not(self, chat: Chat, smollm2: Path) -> None:
        answer = chat("-p", "Write the word ha 50 times.", "--temp", "0", "--json", "-n", "300")
        assert json.loads(answer.stdout)["finish_reason"] != "repetition"

    def test_layers_for_a_gpu_that_is_not_there(self, chat: Chat, tiny_path: Path) -> None:
        ask = (str(tiny_path), "-p", "Why?", "--json", *SHORT)
        hidden = {"CUDA_VISIBLE_DEVICES": ""}
        done = chat(*ask, "--gpu-layers", "-1", **hidden)
        assert done.returncode == 0
        assert done.stderr.startswith("--gpu-layers is set aside, all runs on the CPU: ")
        assert done.stderr.count("set aside") == 1
        assert json.loads(done.stdout)["stats"]["devices"] == ["CPU"]
        for silent in ((), ("--gpu-layers", "0")):
            assert "GPU" not in chat(*ask, *silent, **hidden).stderr

    def test_full_budget_keeps_everything(self, chat: Chat, document: Path, tiny_path: Path) -> None:
        done = chat(str(tiny_path), "-f", str(document), "-p", "Why?", "--json", *SHORT, "--budget", "full")
        stats = json.loads(done.stdout)["stats"]
        assert stats["compacted"] is False
        assert stats["kept_share"] == 1
        assert stats["resident_bytes"] == stats["full_bytes"]

    @pytest.mark.parametrize(("max_tokens", "reason"), [(5, "length"), (500, "stop")])
    def test_usage_counts_the_models_tokens(
        self, chat: Chat, smollm2: Path, max_tokens: int, reason: str
    ) -> None:
        limits = ("--max-tokens", str(max_tokens), "--budget", "full", "--ctx", "1024")
        done = chat("-p", "Say hi.", "--system", "Be brief.", "--json", "--temp", "0", *limits)
        answer = json.loads(done.stdout)
        messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say hi."}]
        with Llama(smollm2, n_ctx=1024, flash_attn=True, n_threads=1, n_threads_batch=1) as llm:
            wanted: Any = llm.create_chat_completion(messages, temperature=0.0, max_tokens=max_tokens)
        assert answer["usage"] == wanted["usage"]
        assert answer["text"] == wanted["choices"][0]["message"]["content"]
        assert answer["finish_reason"] == wanted["choices"][0]["finish_reason"] == reason

    def test_seed(self, chat: Chat, tiny_path: Path) -> None:
        ask = (str(tiny_path), "-p", "Why?", "--temp", "5", "--json", "-n", "16", *ENDLESS)
        same = [json.loads(chat(*ask, "--seed", "7").stdout)["text"] for _ in range(2)]
        new = [json.loads(chat(*ask).stdout)["text"] for _ in range(2)]
        assert same[0] == same[1]
        assert new[0] != new[1]

    def test_document_beyond_the_context(self, chat: Chat, document: Path, tiny_path: Path) -> None:
        done = chat(str(tiny_path), "-f", str(document), "-p", "What is this about?", "--ctx", "256")
        assert (done.returncode, done.stdout) == (1, "")
        reason = r"has \d+ tokens, and the context of 256 has room for 192: a larger --ctx .* makes room"
        assert re.fullmatch(rf"error: '.*document.txt' {reason}\n", done.stderr)
        question = chat(str(tiny_path), "-p", "why " * 300, "--ctx", "256")
        assert (question.returncode, question.stdout) == (1, "")
        assert question.stderr == (
            "error: this question and an answer do not fit into the context of 256 tokens. A larger --ctx at "
            "the start makes room.\n"
        )

    def test_answer_up_to_the_end_of_the_context(self, chat: Chat, smollm2: Path) -> None:
        done = chat(str(smollm2), "-p", STORY, "-c", "256", "-n", "-1", "--json", *ENDLESS)
        answer = json.loads(done.stdout)
        assert answer["finish_reason"] == "length"
        assert answer["usage"]["total_tokens"] == 256
        assert "The answer is cut off: the context of 256 tokens is full." in done.stderr

    def test_model_that_cannot_be_compacted(self, chat: Chat, tiny: Callable[..., Path]) -> None:
        ask = (str(tiny(arch="mpt", n_head_kv=4)), "-p", "hi", *SHORT)
        done = chat(*ask)
        assert (done.returncode, done.stdout) == (1, "")
        assert re.fullmatch(r"error: .*; --budget full runs it on the whole cache\n", done.stderr)
        assert chat(*ask, "--budget", "full").returncode == 0

    def test_colors(self, chat: Chat, tiny_path: Path) -> None:
        assert "\x1b" not in chat(str(tiny_path), "-p", "hi", *SHORT).stderr
        assert "\x1b[2m" in chat(str(tiny_path), "-p", "hi", *SHORT, "--color", "always", NO_COLOR="1").stderr

    def test_verbose_logs(self, chat: Chat, tiny_path: Path) -> None:
        done = chat(str(tiny_path), "-p", "hi", *SHORT, "--verbose")
        assert done.returncode == 0
        assert len(done.stderr.splitlines()) > 10


class TestStreams:
    def test_reader_that_leaves(self, environment: dict[str, str], tmp_path: Path, smollm2: Path) -> None:
        process = start([str(smollm2), "-p", STORY, *ENDLESS], environment, tmp_path)
        assert process.stdout is not None
        assert process.stdout.read(1)
        process.stdout.close()
        err = end(process)
        assert (process.returncode, err) == (0, "")

    def test_reader_that_never_was(
        self, environment: dict[str, str], tmp_path: Path, tiny_path: Path
    ) -> None:
        process = start([str(tiny_path), "-p", "hi", "--no-stream", *SHORT], environment, tmp_path)
        assert process.stdout is not None
        process.stdout.close()
        err = end(process)
        assert (process.returncode, err) == (0, "")

    def test_full_disk(self, environment: dict[str, str], tmp_path: Path, tiny_path: Path) -> None:
        with open("/dev/full", "w") as full:
            process = start([str(tiny_path), "-p", "hi", *SHORT], environment, tmp_path, stdout=full.fileno())
            err = end(process)
        assert (process.returncode, err) == (1, "error: cannot write the answer: No space left on device\n")

    @pytest.mark.parametrize(("closed", "code"), [("0<&-", 0), ("1>&-", 1), ("2>&-", 0)])
    def test_closed_streams(
        self, closed: str, code: int, environment: dict[str, str], tmp_path: Path, tiny_path: Path
    ) -> None:
        done = subprocess.run(
            ["sh", "-c", f'exec "$@" {closed}', "sh", *COMMAND, str(tiny_path), "-p", "hi", "--temp", "0"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=environment,
            cwd=tmp_path,
            timeout=TIMEOUT,
            check=False,
        )
        assert done.returncode == code
        assert b"Traceback" not in done.stderr
        assert bool(done.stdout) is (code == 0)

    def test_interrupted_answer(self, environment: dict[str, str], tmp_path: Path, smollm2: Path) -> None:
        process = start([str(smollm2), "-p", STORY, *ENDLESS], environment, tmp_path)
        assert process.stdout is not None
        assert process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        err = end(process)
        assert process.returncode == 130
        stats, note = err.splitlines()
        assert re.fullmatch(STATS, stats)
        assert note == "Stopped."

    def test_interrupted_input(self, environment: dict[str, str], tmp_path: Path) -> None:
        ours, theirs = os.pipe()
        with os.fdopen(theirs, "wb"):
            process = start(["-p", "hi"], environment, tmp_path, stdin=ours)
            os.close(ours)
            wait_until_reading(process)
            process.send_signal(signal.SIGINT)
            err = end(process)
        assert (process.returncode, err) == (130, "")


def test_a_keyboard_without_a_screen(environment: dict[str, str], tmp_path: Path) -> None:
    """Both outputs go elsewhere: the lines typed would end up in the answers."""
    master, terminal = os.openpty()
    try:
        process = start([], environment, tmp_path, stdin=terminal)
        assert "there is no terminal to show the chat on" in end(process)
        assert process.returncode == 2
    finally:
        os.close(master)
        os.close(terminal)


@pytest.mark.parametrize(("n_ctx", "told"), [("8192", False), ("8193", True)])
def test_a_context_beyond_what_the_model_was_trained_for(
    chat: Chat, tiny_path: Path, n_ctx: str, told: bool
) -> None:
    done = chat(str(tiny_path), "-p", "hi", "--ctx", n_ctx, *SHORT)
    assert done.returncode == 0
    assert ("the model was trained for 8192 tokens" in done.stderr) is told
