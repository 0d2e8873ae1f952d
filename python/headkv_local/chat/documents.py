"""Documents that are read into a prompt: files and standard input, UTF-8 only."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from headkv_local.errors import HeadKVError

MAX_BYTES = 64 * 1024**2  # far beyond every context, and it ends the reading of /dev/zero


class DocumentError(HeadKVError, ValueError):
    """A document that cannot be read or is no UTF-8 text."""


@dataclass(frozen=True)
class Document:
    """A text that goes before a question, and what the user calls it."""

    name: str
    text: str


def read_document(path: str) -> Document:
    """The file `path`, or standard input for "-". Raises DocumentError, also where it is empty."""
    if path == "-":
        text, name = read_stdin(), "standard input"
    else:
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


def compose(documents: list[Document], question: str) -> str:
    """One user message: the documents in their order, then the question, blank lines between them."""
    return "\n\n".join([*(document.text.strip("\n") for document in documents), question])


def _read_file(path: str) -> str:
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        cause = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise DocumentError(f"cannot read the document '{path}': {cause}") from error
    return _decode(data, f"the document '{path}'")


def _decode(data: bytes, name: str) -> str:
    if len(data) > MAX_BYTES:
        raise DocumentError(f"{name} is larger than {MAX_BYTES // 1024**2} MiB")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DocumentError(
            f"{name} is not UTF-8 text: byte {data[error.start]:#04x} at {error.start}"
        ) from None
    if "\0" in text:
        raise DocumentError(f"{name} is not text: it holds a zero byte at character {text.index(chr(0))}")
    # A terminal and a text editor see the same lines whatever wrote the file, and so should the model.
    return text.replace("\r\n", "\n")
