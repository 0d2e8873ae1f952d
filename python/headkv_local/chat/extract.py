"""The text of PDF and DOCX files, through the libraries of the extra `documents`."""

from __future__ import annotations

import codecs
import io
import logging
import zipfile
from collections.abc import Iterator
from typing import Any, Final

from headkv_local.chat.render import counted
from headkv_local.chat.signatures import DOCX, is_docx, is_text

MAX_CHARACTERS: Final = 64 * 1024**2
_MAX_XML: Final = 16 * 1024**2  # bytes, of a DOCX file: one of empty paragraphs alone is read for a while
_PDF: Final = b"%PDF-"
_BEFORE: Final = 1024  # bytes that may stand before it, as its readers agree
_INSTALL: Final = "pip install 'headkv-local[documents]' lets it be read"
_WORD: Final = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_LEFT_OUT: Final = (  # stands elsewhere too, is gone once changes are accepted, or is no text
    "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback",
    f"{_WORD}moveFrom",
    f"{_WORD}del",
    f"{_WORD}tabs",  # places where tabs stop, which are called tabs too
)
_AROUND: Final = frozenset(f"{_WORD}{name}" for name in ("sdt", "sdtContent", "customXml"))
_PIECES: Final = {
    f"{_WORD}{name}": text
    for name, text in (("tab", "\t"), ("br", "\n"), ("cr", "\n"), ("noBreakHyphen", "-"))
}


class ExtractError(ValueError):
    """What such a file is, where its text cannot be had: the end of a sentence that begins with its name."""


def extracted(data: bytes) -> tuple[str, str] | None:
    """The text of a PDF or DOCX file, and what its user should know of it or ""; None for other data.

    Raises ExtractError.
    """
    if is_pdf(data):
        return _pdf(data)
    return (_docx(data), "") if is_docx(data) else None


def is_pdf(data: bytes) -> bool:
    """Whether it begins as a PDF does, also behind what some programs put before that."""
    begin = data[:_BEFORE]
    if begin.lstrip(codecs.BOM_UTF8 + b" \t\r\n").startswith(_PDF):
        return True
    return _PDF in begin and not is_text(data)


def _pdf(data: bytes) -> tuple[str, str]:
    try:
        import pypdf
    except ImportError:
        raise ExtractError(f"is a PDF: {_INSTALL}") from None
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # it warns about each oddity
    try:
        reader = pypdf.PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            raise ExtractError("is an encrypted PDF: save it without its password first")
        if not len(reader.pages):
            raise ExtractError("is a PDF without pages")
        pages, total = [], 0
        for page in reader.pages:
            pages.append(page.extract_text().replace("\0", "").encode("utf-8", "replace").decode())
            total += len(pages[-1])
            if total > MAX_CHARACTERS:
                raise ExtractError("is a PDF with too much text")
    except (ExtractError, MemoryError):
        raise
    except pypdf.errors.DependencyError:
        raise ExtractError(f"is a PDF encrypted with AES: {_INSTALL}") from None
    except Exception as error:  # of damaged files it raises whatever it stumbles over
        raise ExtractError(f"is a PDF that cannot be read: {_told(error)}") from None
    empty = sum(not page.strip() for page in pages)
    if empty == len(pages):
        of = counted(len(pages), "page")
        raise ExtractError(f"is a PDF of {of} without text: it seems to be scanned, and needs OCR first")
    note = f"{empty} of its {len(pages)} pages have no text: they may be scanned" if empty else ""
    return "\n\n".join(page.strip("\n") for page in pages if page.strip()), note


def _docx(data: bytes) -> str:
    try:
        import docx
    except ImportError:
        raise ExtractError(f"is {DOCX}: {_INSTALL}") from None
    try:
        body = docx.Document(_without_pictures(data)).element.body
        for element in list(body.iter(*_LEFT_OUT)):
            parent = element.getparent()
            gone = parent.getparent() if parent.tag == f"{_WORD}trPr" else element  # a row has it as a mark
            gone.getparent().remove(gone)
        return "\n".join(_blocks(body))
    except (ExtractError, MemoryError):
        raise
    except Exception as error:  # as above
        why = "it is damaged" if isinstance(error, LookupError | AttributeError | TypeError) else _told(error)
        raise ExtractError(f"is a DOCX file that cannot be read: {why}") from None


def _without_pictures(data: bytes) -> io.BytesIO:
    """The same file with nothing in what is no XML: the library unpacks all of it, and a picture of a few
    bytes may become gigabytes.
    """
    text = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as whole, zipfile.ZipFile(text, "w") as lean:
        parts = {entry.filename: entry for entry in whole.infolist()}  # of several the last one counts
        unpacked = {name for name in parts if name.lower().endswith((".xml", ".rels"))}
        if sum(parts[name].file_size for name in unpacked) > _MAX_XML:
            raise ExtractError(f"is a DOCX file with more than {_MAX_XML // 1024**2} MiB of XML in it")
        for name, entry in parts.items():
            lean.writestr(name, whole.read(entry) if name in unpacked else b"")
    text.seek(0)
    return text


def _blocks(parent: Any) -> Iterator[str]:
    """Paragraphs and rows of tables; a table in a cell is a part of the cell's text."""
    for child in _children(parent):
        if child.tag == f"{_WORD}p":
            yield _text(child)
        elif child.tag == f"{_WORD}tbl":
            for row in _children(child, "tr"):
                yield " | ".join(" ".join(_blocks(cell)) for cell in _children(row, "tc"))


def _children(parent: Any, name: str | None = None) -> Iterator[Any]:
    """Those of this name, None: all; also those inside of content controls and custom XML."""
    for child in parent:
        if child.tag in _AROUND:
            yield from _children(child, name)
        elif name is None or child.tag == f"{_WORD}{name}":
            yield child


def _text(paragraph: Any) -> str:
    return "".join(
        "".join(each.itertext()) if each.tag == f"{_WORD}t" else _PIECES.get(each.tag, "")
        for each in paragraph.iter()
    )


def _told(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
