"""Documents for a prompt: files and standard input, in UTF-8, or in UTF-16 or UTF-32 with a mark."""

from __future__ import annotations

import codecs
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from headkv_local.chat.options import expand
from headkv_local.chat.render import strip_control
from headkv_local.chat.signatures import told_by_bytes, told_by_signature
from headkv_local.errors import HeadKVError

MAX_BYTES = 64 * 1024**2  # far beyond every context, and it ends the reading of /dev/zero
STDIN: Final = "-"

# UTF-32 first: its mark begins with that of UTF-16
_MARKS: Final = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


class DocumentError(HeadKVError, ValueError):
    """A document that cannot be read, is no text, or is too large."""


@dataclass(frozen=True)
class Document:
    """A text that goes before a question, and what the user calls it."""

    name: str
    text: str


def read_document(path: str) -> Document:
    """The file `path`, or standard input for "-". Raises DocumentError, also where it is empty."""
    if path == STDIN:
        text, name = read_stdin(), "standard input"
    else:
        path = expand(path)
        text, name = _read_file(path), f"the document '{path}'"
    if not text.strip():
        raise DocumentError(f"{name} is empty")
    return Document(path, text)


def read_stdin() -> str:
    """All of standard input, "" where it is closed. Raises DocumentError."""
    if sys.stdin is None:
        return ""
    try:
        data = sys.stdin.buffer.read(MAX_BYTES + 1)
    except OSError as error:
        raise DocumentError(f"cannot read standard input: {error.strerror or error}") from error
    return _decode(data, "standard input")


def compose(documents: Sequence[Document], question: str) -> str | list[dict[str, Any]]:
    """The content of one user message: the documents in their order, each under its name, then the question.

    Standard input has no name, so it gets one only where there are others. Documents are marked as such; the
    template puts a line end between two parts.
    """
    if not documents:
        return question
    parts: list[dict[str, Any]] = []
    for document, title in zip(documents, _titles(documents), strict=True):
        text = document.text.strip("\n")
        text = f"{title}:\n\n{text}\n" if title else f"{text}\n"
        parts.append({"type": "text", "text": text, "document": True, "name": document.name})
    return [*parts, {"type": "text", "text": question}]


def decompose(content: Any) -> tuple[list[Document], Any]:
    """The documents and the question of what compose() has made, or somebody else.

    Raises TypeError, KeyError and AttributeError for what is no such content.
    """
    if not isinstance(content, list):
        return [], content
    *parts, question = content
    documents = [Document(part.get("name", STDIN), part["text"]) for part in parts]
    return [
        Document(document.name, document.text.removeprefix(f"{title}:\n\n" if title else ""))
        for document, title in zip(documents, _titles(documents), strict=True)
    ], question["text"]


def _titles(documents: Sequence[Document]) -> list[str]:
    """File names; with their folders where two are the same."""
    paths = [document.name for document in documents]
    bases = [os.path.basename(path) for path in paths]
    titles = []
    for path, base in zip(paths, bases, strict=True):
        if path == STDIN:
            titles.append("Standard input" if len(paths) > 1 else "")
        else:
            titles.append(strip_control(path if bases.count(base) > 1 else base).replace("\n", " "))
    return titles


def _read_file(path: str) -> str:
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        cause = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise DocumentError(f"cannot read the document '{path}': {cause}") from error
    return _decode(data, f"the document '{path}'")


def _decode(data: bytes, name: str) -> str:
    if what := told_by_signature(data):
        raise DocumentError(f"{name} is {what}")
    if len(data) > MAX_BYTES:
        raise DocumentError(f"{name} is larger than {MAX_BYTES // 1024**2} MiB")
    encoding = next((encoding for mark, encoding in _MARKS if data.startswith(mark)), "utf-8-sig")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding != "utf-8-sig":
            raise DocumentError(
                f"{name} begins as {encoding.upper()} text and is none from byte {error.start} on"
            ) from None
        raise DocumentError(f"{name} is {told_by_bytes(data, error.start)}") from None
    if "\0" in text:
        raise DocumentError(f"{name} is {told_by_bytes(data, max(data.find(0), 0))}")
    # A terminal and a text editor see the same lines whatever wrote the file, and so should the model.
    return text.replace("\r\n", "\n")
