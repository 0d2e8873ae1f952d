"""What a file that is no text most likely is, told by its first bytes, and what to do about it."""

from __future__ import annotations

import codecs
import io
import os
import zipfile
from collections import Counter
from typing import Final

_GGUF: Final = b"GGUF"
_SESSION: Final = b"headkv session\n\0"
DOCX: Final = "a DOCX file"
_CONVERT: Final = "save it as text first"

_SIGNATURES: Final[tuple[tuple[bytes, str], ...]] = (
    (_GGUF, "a GGUF model, and no document: give it without -f"),
    (_SESSION, "a session: it goes on with --session, or in a chat with /load"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", f"an old Word, Excel or PowerPoint file: {_CONVERT}"),
    (b"{\\rtf", f"an RTF file: {_CONVERT}"),
    (b"\x1f\x8b", "compressed with gzip: unpack it first"),
    (b"BZh", "compressed with bzip2: unpack it first"),
    (b"\xfd7zXZ\0", "compressed with xz: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd: unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive: unpack it first"),
    (b"Rar!\x1a\x07", "a RAR archive: unpack it first"),
    (b"\x89PNG", "a picture (PNG), and no text"),
    (b"\xff\xd8\xff", "a picture (JPEG), and no text"),
    (b"GIF8", "a picture (GIF), and no text"),
    (b"II*\0", "a picture (TIFF), and no text"),
    (b"MM\0*", "a picture (TIFF), and no text"),
    (b"\x7fELF", "a program, and no text"),
    (b"SQLite format 3\0", "an SQLite database, and no text"),
    (b"ID3", "a sound file, and no text"),
    (b"OggS", "a sound file, and no text"),
    (b"RIFF", "a sound, video or picture file, and no text"),
)
# a zip file is told by the name of a file in it
_ZIPPED: Final[tuple[tuple[str, str], ...]] = (
    ("word/", f"{DOCX}: {_CONVERT}"),
    ("xl/", f"an XLSX file: {_CONVERT}"),
    ("ppt/", f"a PPTX file: {_CONVERT}"),
    ("META-INF/container.xml", f"an EPUB book: {_CONVERT}"),
    ("content.xml", f"an OpenDocument file: {_CONVERT}"),
)


def is_no_model(path: str) -> bool:
    """Whether it is no file, or begins in another way than GGUF files do; a short one may be cut off."""
    begin = _begin(path, len(_GGUF))
    is_other = os.path.exists(path) and not os.path.isfile(path)
    return is_other or (bool(begin) and not _GGUF.startswith(begin))


def is_model(path: str) -> bool:
    """Whether it begins as GGUF files do."""
    return _begin(path, len(_GGUF)) == _GGUF


def is_session(path: str) -> bool:
    """Whether it begins as sessions do."""
    return _begin(path, len(_SESSION)) == _SESSION


def hint(path: str) -> str:
    """The option for what is given without one, and is no model."""
    if is_session(path):
        return f"a session goes on with --session '{path}'"
    return f"a document is given with -f: -f '{path}'"


def _begin(path: str, n_bytes: int) -> bytes:
    """b"" where nothing can be read: loading it will tell. A pipe would be waited for."""
    if not os.path.isfile(path):
        return b""
    try:
        with open(path, "rb") as file:
            return file.read(n_bytes)
    except (OSError, ValueError):
        return b""


def told_by_signature(data: bytes) -> str | None:
    """What a file with these bytes is; None for a text, and for a beginning that is not known."""
    if data.startswith(b"PK\x03\x04"):
        return _told_by_zip(data)
    told = next((each for each in _SIGNATURES if data.startswith(each[0])), None)
    if told is None or (told[0].isalnum() and is_text(data)):  # a text may begin with such letters
        return None
    return told[1]


def is_text(data: bytes) -> bool:
    """Whether it is UTF-8 without a zero byte; a character may go on behind it."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(data)
    except UnicodeDecodeError:
        return False
    return b"\0" not in data


def told_by_bytes(data: bytes, where: int) -> str:
    """What a file may be whose byte at `where` is no UTF-8, or a zero."""
    sample = data[: 64 * 1024]
    for name in ("UTF-16LE", "UTF-16BE"):
        if _reads_as(sample, name):
            return f"not UTF-8 text but {name} without a mark: convert it with iconv -f {name} -t UTF-8"
    control = sum(sample.count(byte) for byte in range(32) if byte not in b"\t\n\r\f\x1b")
    if control > len(sample) / 100:
        return f"not text: byte {data[where]:#04x} at {where}"
    if data[where] == 0:
        return f"text with a zero byte, at {where}: take it out, as with tr -d '\\000'"
    found = f"not UTF-8 text: byte {data[where]:#04x} at {where}"
    if sum(byte >= 0x80 for byte in sample) > 0.3 * len(sample):  # an alphabet that is not Latin
        return (
            f"{found}; convert it from its own encoding, such as GB18030, SHIFT_JIS, EUC-KR or WINDOWS-1251, "
            "with iconv -f ENCODING -t UTF-8"
        )
    return f"{found}; if it is Latin-1 or Windows-1252, convert it with iconv -f WINDOWS-1252 -t UTF-8"


def _reads_as(sample: bytes, utf16: str) -> bool:
    """Whether it is printable then, and most of it from one alphabet: 256 characters that lie together."""
    try:
        text = sample[: len(sample) & ~1].decode(utf16)
    except UnicodeDecodeError:
        return False
    printable = sum(c.isprintable() or c in "\t\r\n" for c in text)
    alphabets = Counter(ord(c) >> 8 for c in text)
    return 0 in alphabets and printable > 0.99 * len(text) and max(alphabets.values()) > 0.7 * len(text)


def _told_by_zip(data: bytes) -> str:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return "a damaged ZIP archive, or a damaged file of a kind that is one, such as DOCX"
    for begin, what in _ZIPPED:
        if any(name.startswith(begin) for name in names):
            return what
    return "a ZIP archive: unpack it first"


def is_docx(data: bytes) -> bool:
    return (told_by_signature(data) or "").startswith(DOCX)
