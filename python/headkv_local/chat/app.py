"""The headkv-chat command: from the command line to an exit code."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from functools import partial

from headkv_local.chat.args import build_parser, parse_options
from headkv_local.chat.console import Console, OutputError
from headkv_local.chat.documents import Document, read_document, read_stdin
from headkv_local.chat.options import Options
from headkv_local.chat.signatures import is_no_model
from headkv_local.chat.wording import sentence
from headkv_local.errors import ArgumentError, HeadKVError, ModelError

OK, FAILED, MISUSED, INTERRUPTED = 0, 1, 2, 130


def main(argv: list[str] | None = None) -> int:
    """Run headkv-chat with `argv` (None: the process's own arguments) and return its exit code.

    0 done, 1 failed, 2 wrong usage, 130 interrupted. A reader that closes the pipe early is no failure.
    """
    try:
        code = _run(argv)
        _flush()
    except SystemExit as leave:  # argparse, after it has printed help or the usage error
        code = leave.code if isinstance(leave.code, int) else FAILED
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BrokenPipeError:
        code = OK
    else:
        return code
    # What is still buffered cannot be delivered; the interpreter must not complain about that at its end.
    try:
        _flush()
    except OSError:
        _discard_output()
    return code


def _run(argv: list[str] | None) -> int:
    parser = build_parser()
    options = parse_options(argv, parser)
    console = Console(options.color)
    try:
        return _chat(options, parser, console)
    except OutputError as error:
        console.error(str(error))
        _discard_output()
    except (BrokenPipeError, KeyboardInterrupt, SystemExit):
        raise
    except Exception as error:
        console.error(sentence(error, options))
        if options.verbose and not isinstance(error, HeadKVError):
            traceback.print_exc()
    return FAILED


def _chat(options: Options, parser: argparse.ArgumentParser, console: Console) -> int:
    from headkv_local import default_model_path

    log = logging.getLogger("headkv_local")
    if options.verbose:
        log.addHandler(logging.StreamHandler())
        log.setLevel(logging.DEBUG)
    else:
        log.addHandler(logging.NullHandler())  # the chat itself says what its user has to know
    try:
        options.retention(options.budget)
    except ArgumentError as error:
        parser.error(str(error))
    if options.model is not None and is_no_model(options.model):
        raise ModelError(
            f"'{options.model}' is no GGUF model; a document is given with -f: -f '{options.model}'"
        )
    question, documents = _gather(options, parser)
    if question is None and not (console.err_tty or console.out_tty):
        parser.error(
            "there is no terminal to show the chat on: leave one of the outputs to it, or ask with -p"
        )

    # From here on the model is needed, and with it llama_cpp.
    from headkv_local.chat.archive import open_archive
    from headkv_local.chat.display import show_answer
    from headkv_local.chat.keeping import Keeper, model_of, saved_at
    from headkv_local.chat.model import load_model
    from headkv_local.chat.session import Session
    from headkv_local.devices import set_aside

    chat = saved_at(options.session)
    if chat is not None:
        options = options.completed({**chat.settings, "model": model_of(chat, options)})
    path = options.model if options.model is not None else str(default_model_path())
    if reason := set_aside(options.gpu_layers):
        console.note(reason)
    with _interrupts_end_the_process():
        llm = load_model(path, options, chat.context if chat is not None else {})
    with contextlib.closing(llm):
        if isinstance(options.ctx, int) and 0 < llm.trained_tokens < options.ctx:
            console.note(
                f"the model was trained for {llm.trained_tokens} tokens, it may lose track beyond them"
            )
        session = Session(llm, options, open_archive(llm, options))
        if session.archive.reason:
            console.note(session.archive.told)
        keeper = Keeper(session, console, options)
        keeper.open(chat)
        for document in documents:
            session.attach(document)
        if question is None:
            from headkv_local.chat.repl import Repl

            return Repl(session, console, options, keeper).run()
        ask = partial(session.ask, question)
        try:
            answer = show_answer(session, ask, console, options, in_chat=False)
        except (OutputError, BrokenPipeError):
            keeper.leave()
            raise
        keeper.leave()
        return INTERRUPTED if answer.finish_reason == "interrupt" else OK


@contextlib.contextmanager
def _interrupts_end_the_process() -> Iterator[None]:
    """While a model is loaded there is nothing to tidy up, and nobody wants to wait for it."""
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _gather(options: Options, parser: argparse.ArgumentParser) -> tuple[str | None, list[Document]]:
    """The question (None: an interactive chat) and the documents that come before it."""
    terminal = sys.stdin is not None and sys.stdin.isatty()
    takes_stdin = "-" in options.files
    if options.prompt is None and not terminal and takes_stdin:
        parser.error("there is no question: standard input is a document here, so give the question with -p")
    documents = [read_document(name) for name in options.files]
    if terminal:
        return options.prompt, documents
    piped = "" if takes_stdin else read_stdin()
    if options.prompt is None:
        if not piped.strip():
            parser.error("there is no question: give one with -p, pipe one in, or start a chat on a terminal")
        return piped.strip("\n"), documents
    if piped.strip():
        documents.append(Document("-", piped))
    return options.prompt, documents


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()


def _discard_output() -> None:
    """Let the interpreter's last flush go nowhere instead of failing again."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            with contextlib.suppress(OSError, ValueError):
                os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
