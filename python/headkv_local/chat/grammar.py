"""The form of an answer: a JSON schema or a grammar, compiled, or refused with the reason."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from llama_cpp.llama_grammar import LlamaGrammar

from headkv_local.chat.options import Options, expand
from headkv_local.errors import ArgumentError
from headkv_local.grammars import MOST_BYTES, from_schema, reason_of, require_compiled


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
    with _standard_error_aside() as written:
        try:
            require_compiled(vocab, text)
        except ArgumentError as error:
            reason = str(error)
        else:
            reason = ""
    if reason:
        raise ArgumentError(f"{what} does not compile: {reason_of(''.join(written)) or reason}")
    return LlamaGrammar.from_string(text, verbose=False)


@contextmanager
def _standard_error_aside() -> Iterator[list[str]]:
    """What anybody has written there meanwhile, once that is over: llama.cpp tells some reasons there."""
    written: list[str] = []
    try:
        before = os.dup(2)
    except OSError:  # it is closed
        yield written
        return
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield written
        finally:
            os.dup2(before, 2)
            os.close(before)
        file.seek(0)
        written.append(file.read().decode("utf-8", errors="replace"))
