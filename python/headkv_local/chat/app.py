"""The headkv-chat command: from the command line to an exit code."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import sys
import traceback
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Final

from headkv_local.chat.args import build_parser
from headkv_local.chat.config import parse_options, require_retention, shown
from headkv_local.chat.console import Console, OutputError
from headkv_local.chat.documents import Document, read_stdin
from headkv_local.chat.folders import Found, read_documents
from headkv_local.chat.options import Options
from headkv_local.chat.render import counted
from headkv_local.chat.signatures import hint, is_no_model
from headkv_local.chat.wording import sentence
from headkv_local.errors import HeadKVError, ModelError
from headkv_local.exits import FAILED, INTERRUPTED, OK, code_of

if TYPE_CHECKING:
    from headkv_local.chat.saved import SavedChat
    from headkv_local.chat.session import Session

_LIBRARY: Final = "headkv_local"  # its logger


def main(argv: list[str] | None = None) -> int:
    """See headkv_local.chat.main()."""
    code = OK
    try:
        try:
            code = _run(argv)
        except SystemExit as leave:  # argparse, after it has printed help or the usage error
            code = leave.code if isinstance(leave.code, int) else FAILED
        _flush()
        return code
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BrokenPipeError:
        pass
    except OSError as error:
        code = FAILED
        with contextlib.suppress(OSError):
            print(f"error: cannot write the output: {error.strerror or error}", file=sys.stderr)
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
        if options.show_config:
            require_retention(options, parser)
            console.answer(shown(_resumed(options)[0], parser))
            return OK
        with _logged(options.verbose, console):
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
        return code_of(error)
    return FAILED


def _resumed(options: Options) -> tuple[Options, SavedChat | None]:
    """With the chat of --session, and its settings where no others are given. Raises SessionError."""
    if options.session is None:
        return options, None
    from headkv_local.chat.keeping import model_of, saved_at

    chat = saved_at(options.session)
    if chat is None:
        return options, None
    settings = {**chat.settings, "model": model_of(chat, options)}
    return options.completed(settings, f"the session {options.session}"), chat


def _chat(options: Options, parser: argparse.ArgumentParser, console: Console) -> int:
    require_retention(options, parser)
    if options.session is None:  # which may have another one
        _require_model(options)
    question, given = _gather(options, parser, console)
    if question is None and not (console.err_tty or console.out_tty):
        parser.error(
            "there is no terminal to show the chat on: leave one of the outputs to it, or ask with -p"
        )

    # From here on the model is needed, and with it llama_cpp.
    from headkv_local.chat.display import show_answer
    from headkv_local.chat.info import notes
    from headkv_local.chat.keeping import Keeper
    from headkv_local.chat.session import open_session
    from headkv_local.chat.worker import on_interrupt
    from headkv_local.devices import set_aside

    options, chat = _resumed(options)
    _require_model(options)
    if reason := set_aside(options.gpu_layers):
        console.note(reason)
    # while a model is loaded there is nothing to tidy up, and nobody wants to wait for it
    with on_interrupt(signal.SIG_DFL):
        session = open_session(options, chat)
    with contextlib.closing(session):
        for note in notes(session):
            console.note(note)
        keeper = Keeper(session, console)
        keeper.open(chat, options.system)
        _attach_new(session, chain.from_iterable(found.documents for found in given), console)
        for note in chain.from_iterable(found.notes for found in given if found.folder):
            console.note(note)
        if question is None:
            from headkv_local.chat.repl import Repl

            return Repl(session, console, keeper).run()
        ask = partial(session.ask, question)
        try:
            answer = show_answer(session, ask, console, in_chat=False)
        except (OutputError, BrokenPipeError):
            keeper.leave()
            raise
        keeper.leave()
        return INTERRUPTED if answer.finish_reason == "interrupt" else OK


@contextlib.contextmanager
def _logged(verbose: bool, console: Console) -> Iterator[None]:
    """All of what the library logs, or its warnings as notes."""
    log = logging.getLogger(_LIBRARY)
    handler = logging.StreamHandler() if verbose else _Warnings(console)
    log.addHandler(handler)
    level = log.level
    if verbose:
        log.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


class _Warnings(logging.Handler):
    """What the library warns of, such as of the model's chat template, as notes; not what llama.cpp says."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.WARNING)
        self.addFilter(lambda record: record.name == _LIBRARY)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        self._console.warn(record.getMessage())


def _attach_new(session: Session, documents: Iterable[Document], console: Console) -> None:
    """Before the next question goes what the chat does not have: that of --session may have been given it."""
    answered = chain.from_iterable(turn.documents for turn in session.answered)
    there = {(each.name, each.text.strip("\n")) for each in chain(session.documents, answered)}
    names: list[str] = []

    def new() -> Iterator[Document]:
        for document in documents:
            if (document.name, document.text.strip("\n")) in there:
                names.append(document.shown)
            else:
                yield document

    session.attach(new())
    if names:
        others = f" and {counted(len(names) - 1, 'other')}" if len(names) > 1 else ""
        console.note(f"In the chat already, not read again: {names[0]}{others}.")


def _require_model(options: Options) -> None:
    if options.model is not None and is_no_model(options.model):
        raise ModelError(f"'{options.model}' is no GGUF model; {hint(options.model)}")


def _gather(
    options: Options, parser: argparse.ArgumentParser, console: Console
) -> tuple[str | None, list[Found]]:
    """The question (None: an interactive chat) and the documents that come before it.

    Those of folders are not read yet: only the model tells how many there is room for.
    """
    terminal = sys.stdin is not None and sys.stdin.isatty()
    takes_stdin = "-" in options.files
    if options.prompt is None and not terminal and takes_stdin:
        parser.error("there is no question: standard input is a document here, so give the question with -p")
    given = [read_documents(path) for path in options.files]
    for note in chain.from_iterable(found.notes for found in given):
        console.note(note)
    if terminal:
        return options.prompt, given
    piped = Document("-", "") if takes_stdin else read_stdin()
    if piped.note:
        console.note(f"Standard input: {piped.note}.")
    if options.prompt is None:
        if not piped.text.strip():
            parser.error("there is no question: give one with -p, pipe one in, or start a chat on a terminal")
        return piped.text.strip("\n"), given
    if piped.text.strip():
        given.append(Found([piped], []))
    return options.prompt, given


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
