from __future__ import annotations

import io
import os
import sys
import threading
from pathlib import Path

import pytest

from headkv_local.chat import documents
from headkv_local.chat.documents import Document, DocumentError, compose, read_document, read_stdin


def pipe_in(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"plain\n", "plain\n"),
        ("\ufeffß\r\n日本".encode(), "ß\n日本"),
        (b"one\rtwo\x1b[0m", "one\rtwo\x1b[0m"),
    ],
)
def test_text_of_a_file(tmp_path: Path, data: bytes, text: str) -> None:
    path = tmp_path / "document"
    path.write_bytes(data)
    assert read_document(str(path)) == Document(str(path), text)


def test_text_of_a_pipe(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_bytes, args=(b"through a pipe",))
    writer.start()
    assert read_document(str(path)).text == "through a pipe"
    writer.join()


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe_in(monkeypatch, b"piped\n")
    assert read_document("-") == Document("-", "piped\n")


def test_closed_standard_input_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert read_stdin() == ""
    with pytest.raises(DocumentError, match="standard input is empty"):
        read_document("-")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"caf\xe9", "is not UTF-8 text: byte 0xe9 at 3"),
        (b"\xff\xfeh\0i\0", "is not UTF-8 text: byte 0xff at 0"),
        (b"GGUF\0\0", "is not text: it holds a zero byte at character 4"),
        (b" \n", "is empty"),
        (b"", "is empty"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path: Path, data: bytes, reason: str) -> None:
    path = tmp_path / "document"
    path.write_bytes(data)
    with pytest.raises(DocumentError) as caught:
        read_document(str(path))
    assert str(caught.value) == f"the document '{path}' {reason}"


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DocumentError, match="cannot read the document '.*': No such file or directory"):
        read_document(str(tmp_path / "missing"))


def test_directory(tmp_path: Path) -> None:
    with pytest.raises(DocumentError, match="cannot read the document '.*': Is a directory"):
        read_document(str(tmp_path))


def test_impossible_name() -> None:
    with pytest.raises(DocumentError, match="cannot read the document"):
        read_document("a\0b")


def test_endless_file_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "MAX_BYTES", 1024**2)
    with pytest.raises(DocumentError, match="the document '/dev/zero' is larger than 1 MiB"):
        read_document("/dev/zero")


def test_message_has_documents_first() -> None:
    given = [Document("a", "\nfirst\n"), Document("b", "  second")]
    assert compose(given, "Why?") == "first\n\n  second\n\nWhy?"
    assert compose([], "Why?\n") == "Why?\n"
