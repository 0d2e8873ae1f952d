"""Documents for a prompt: UTF-8, UTF-16 or UTF-32 with a mark, PDF or DOCX, from a file or standard input."""

from __future__ import annotations

import codecs
import os
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from headkv_local.chat.extract import ExtractError, extracted, is_pdf
from headkv_local.chat.options import expand
from headkv_local.chat.render import strip_control
from headkv_local.chat.signatures import is_text, told_by_bytes, told_by_signature
from headkv_local.errors import HeadKVError

MAX_BYTES = 64 * 1024**2  # far beyond every context, and it ends the reading of /dev/zero
STDIN: Final = "-"
_PIPED: Final = "Standard input"

# UTF-32 first: its mark begins with that of UTF-16
_MARKS: Final = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)

_HEAD: Final = 64 * 1024
_WHOLE: Final = (b"PK\x03\x04", *(mark for mark, _ in _MARKS))  # what is told, or read, as a whole


class DocumentError(HeadKVError, ValueError):
    """A document that cannot be read, is no text, or is too large.

    reason: the end of a sentence that begins with its name.
    """

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Document:
    """A text that goes before a question.

    name: its path, STDIN, or "" for one of a program that gave none. note: what is odd about it, or "".
    """

    name: str
    text: str
    note: str = field(default="", compare=False)

    @property
    def shown(self) -> str:
        """What the user calls it."""
        return {STDIN: _PIPED, "": "A document without a name"}.get(self.name, self.name)


def read_document(path: str) -> Document:
    """The file `path`, or standard input for "-". Raises DocumentError, also where it is empty."""
    if path == STDIN:
        document, name = read_stdin(), "standard input"
    else:
        path = expand(path)
        name = f"the document '{path}'"
        document = _decode(_content(path), path, name)
    if not document.text.strip():
        raise _refusal(name, "is empty")
    return document


def read_stdin() -> Document:
    """All of standard input, empty where it is closed. Raises DocumentError."""
    return _decode(_piped(), STDIN, "standard input")


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


def decompose(content: Any) -> tuple[list[Document], str]:
    """The documents, and the question, of what compose() has made, or somebody else: in parts of any order.

    Raises TypeError, KeyError, AttributeError and ValueError for what is no such content.
    """
    parts = content if isinstance(content, list) else [{"text": content}]
    texts = [(part, require_text(part["text"])) for part in parts]
    documents = [
        Document(require_text(part.get("name", "")), text) for part, text in texts if part.get("document")
    ]
    return [
        Document(document.name, document.text.removeprefix(f"{title}:\n\n" if title else ""))
        for document, title in zip(documents, _titles(documents), strict=True)
    ], "\n".join(text for part, text in texts if not part.get("document"))


def require_text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{str(value)[:40]!r} is no text")
    value.encode()  # halves of a character are a ValueError
    return value


def _titles(documents: Sequence[Document]) -> list[str]:
    """File names; with their folders where two are the same."""
    paths = [document.name for document in documents]
    bases = [os.path.basename(path) for path in paths]
    titles, counts = [], Counter(bases)
    for path, base in zip(paths, bases, strict=True):
        if path == STDIN:
            titles.append(_PIPED if len(paths) > 1 else "")
        else:
            titles.append(strip_control(path if counts[base] > 1 else base).replace("\n", " "))
    return titles


def _piped() -> bytes:
    if sys.stdin is None:
        return b""
    with suppress(OSError, ValueError):  # of some programs it has only what is there by now
        os.set_blocking(sys.stdin.fileno(), True)
    try:
        return sys.stdin.buffer.read(MAX_BYTES + 1)
    except OSError as error:
        raise DocumentError(f"cannot read standard input: {error.strerror or error}") from error


def _content(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            data = file.read(_HEAD)
            return data if _is_no_text(data) else data + file.read(MAX_BYTES + 1 - len(data))
    except (OSError, ValueError) as error:
        cause = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise DocumentError(
            f"cannot read the document '{path}': {cause}", f"cannot be read: {cause}"
        ) from error


def _is_no_text(head: bytes) -> bool:
    """Whether a file's beginning shows that already, so that the rest need not be read."""
    if head.startswith(_WHOLE) or is_pdf(head):
        return False
    return not is_text(head) or told_by_signature(head) is not None


def _refusal(name: str, reason: str) -> DocumentError:
    return DocumentError(f"{name} {reason}", reason)


def _decode(data: bytes, path: str, name: str) -> Document:
    """name: of the document, in a sentence."""
    if len(data) > MAX_BYTES and told_by_signature(data) is None:
        raise _refusal(name, f"is larger than {MAX_BYTES // 1024**2} MiB")
    try:
        if found := extracted(data):
            return Document(_shown(path), *found)
    except ExtractError as error:
        raise _refusal(name, str(error)) from None
    if what := told_by_signature(data):
        raise _refusal(name, f"is {what}")
    zero = data.find(0)
    encoding = next((encoding for mark, encoding in _MARKS if data.startswith(mark)), "utf-8-sig")
    if encoding == "utf-8-sig" and zero >= 0:
        raise _refusal(name, f"is {told_by_bytes(data, zero)}")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding != "utf-8-sig":
            begins = f"begins as {encoding.upper()} text and is none from byte {error.start} on"
            raise _refusal(name, begins) from None
        raise _refusal(name, f"is {told_by_bytes(data, error.start)}") from None
    if "\0" in text:
        raise _refusal(name, f"is {told_by_bytes(data, max(zero, 0))}")
    # A terminal and a text editor see the same lines whatever wrote the file, and so should the model.
    text = text.replace("\r\n", "\n")
    return Document(_shown(path), text if "\n" in text else text.replace("\r", "\n"))


def _shown(path: str) -> str:
    """A name that is no UTF-8, as text that a model can read and a session can hold."""
    return path.encode(errors="replace").decode()
