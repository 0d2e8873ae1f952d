"""The form of an answer: a JSON schema or a grammar, compiled, or refused with the reason."""

from __future__ import annotations

import logging
import os
import re
import tempfile
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import llama_cpp
from llama_cpp.llama_grammar import LlamaGrammar

from headkv_local.chat.options import Options, expand
from headkv_local.errors import ArgumentError
from headkv_local.grammars import MOST_BYTES, from_schema, require_bounded

_SHOWN: Final = 120  # characters of a reason
_PREFIX: Final = re.compile(r"^\w+: (error parsing grammar: |failed to parse grammar)?", re.MULTILINE)


def compiled(options: Options, vocab: Any) -> LlamaGrammar | None:
    """What --json-schema or --grammar ask for, for a model with this vocabulary. Raises ArgumentError."""
    if options.json_schema is not None:
        return _checked(
            from_schema(_text_of(options.json_schema, "{", "the JSON schema")), "the JSON schema", vocab
        )
    if options.grammar is not None:
        return _checked(_text_of(options.grammar, "::=", "the grammar"), "the grammar", vocab)
    return None


def _text_of(given: str, mark: str, what: str) -> str:
    """The text itself, which `mark` shows, or what is in a file."""
    if mark in given:
        return given
    path = expand(given)
    try:
        with open(path, "rb") as file:
            data = file.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise ArgumentError(f"{what} in {path} is larger than {MOST_BYTES // 1024**2} MiB")
        return data.decode("utf-8-sig")
    except (OSError, ValueError) as error:
        if isinstance(error, ArgumentError):
            raise
        reason = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
        if isinstance(error, OSError):
            reason = error.strerror or reason
        raise ArgumentError(f"cannot read {what} '{path}': {reason}") from None


def _checked(text: str, what: str, vocab: Any) -> LlamaGrammar:
    """llama.cpp would go on without a grammar that it cannot parse, and crash."""
    try:
        require_bounded(text)
    except ArgumentError as error:
        raise ArgumentError(f"{what} does not compile: {error}") from None
    grammar = LlamaGrammar.from_string(text, verbose=False)
    with _said_by_the_library() as said:
        sampler = llama_cpp.llama_sampler_init_grammar(vocab, text.encode(), grammar._root.encode())
    if not sampler:
        lines = " ".join(_PREFIX.sub("", "\n".join(said)).split())
        reason = textwrap.shorten(lines, _SHOWN, placeholder=" ...")
        raise ArgumentError(f"{what} does not compile: {reason or 'llama.cpp gives no reason'}")
    llama_cpp.llama_sampler_free(sampler)
    return grammar


@contextmanager
def _said_by_the_library() -> Iterator[list[str]]:
    """What llama.cpp logs and writes to standard error meanwhile: it tells reasons in both places."""
    said: list[str] = []
    log, handler = logging.getLogger("headkv_local.llama_cpp"), logging.Handler(logging.ERROR)
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    log.addHandler(handler)
    try:
        with tempfile.TemporaryFile() as file, _standard_error_in(file.fileno()):
            yield said
            file.seek(0)
            said.insert(0, file.read().decode("utf-8", errors="replace"))
    finally:
        log.removeHandler(handler)


@contextmanager
def _standard_error_in(descriptor: int) -> Iterator[None]:
    try:
        before = os.dup(2)
    except OSError:  # it is closed
        yield
        return
    os.dup2(descriptor, 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)
