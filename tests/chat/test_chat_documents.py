from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import threading
import tracemalloc
import zipfile
from contextlib import closing
from pathlib import Path

import pytest

from headkv_local.chat import documents, folders
from headkv_local.chat.documents import Document, DocumentError, compose, read_document, read_stdin
from headkv_local.chat.folders import read_documents
from headkv_local.chat.options import Options
from headkv_local.chat.session import open_session

OTHER = (
    "is not UTF-8 text: byte {}; convert it from its own encoding, such as GB18030, SHIFT_JIS, EUC-KR or "
    "WINDOWS-1251, with iconv -f ENCODING -t UTF-8"
)
UTF16 = "is not UTF-8 text but UTF-16{} without a mark: convert it with iconv -f UTF-16{} -t UTF-8"


def zipped(name: str) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr(name, "content")
    return data.getvalue()


def pipe_in(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"plain\n", "plain\n"),
        ("\ufeffß\r\n日本".encode(), "ß\n日本"),
        (b"a\rb\r\rc", "a\nb\n\nc"),
        (b"one\rtwo\x1b[0m\n", "one\rtwo\x1b[0m\n"),  # as programs write on one line
        ("ß\r\n日本".encode("utf-16"), "ß\n日本"),
        (b"\xfe\xff" + "ß 日本".encode("utf-16-be"), "ß 日本"),
        ("ß 日本".encode("utf-32"), "ß 日本"),
        (b"GGUF is a file format.", "GGUF is a file format."),
        (b"RIFF and OggS are containers.", "RIFF and OggS are containers."),
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


def test_standard_input_that_does_not_block(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    os.write(writing, b"one ")

    def write() -> None:
        os.write(writing, b"two")
        os.close(writing)

    with open(reading, encoding="utf-8") as pipe:
        monkeypatch.setattr(sys, "stdin", pipe)
        later = threading.Timer(0.3, write)
        later.start()
        assert read_stdin().text == "one two"
    later.join()


def test_closed_standard_input_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert read_stdin().text == ""
    with pytest.raises(DocumentError, match="standard input is empty"):
        read_document("-")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (
            b"caf\xe9",
            "is not UTF-8 text: byte 0xe9 at 3; if it is Latin-1 or Windows-1252, convert it with "
            "iconv -f WINDOWS-1252 -t UTF-8",
        ),
        (
            "schöne Grüße".encode("utf-16-le"),
            UTF16.format("LE", "LE"),
        ),
        (
            "plain".encode("utf-16-be"),
            UTF16.format("BE", "BE"),
        ),
        (b"\xff\xfea\0b", "begins as UTF-16 text and is none from byte 4 on"),
        (b"GGUF\0\0", "is a GGUF model, and no document: give it without -f"),
        (b"ID3\xff\xfb", "is a sound file, and no text"),
        (b"{\\rtf1 x}", "is an RTF file: save it as text first"),
        (b"\x7fELF\x02", "is a program, and no text"),
        (b"\x1f\x8b\x08", "is compressed with gzip: unpack it first"),
        (zipped("readme.txt"), "is a ZIP archive: unpack it first"),
        (
            b"PK\x03\x04 cut off",
            "is a damaged ZIP archive, or a damaged file of a kind that is one, such as DOCX",
        ),
        ("Привет, мир".encode("utf-16-le"), UTF16.format("LE", "LE")),
        (b"a text " * 100 + b"\0", "is text with a zero byte, at 700: take it out, as with tr -d '\\000'"),
        *(
            (text.encode(name), OTHER.format(at))
            for name, text, at in (
                ("gb18030", "港口很安静，起重机站在雾中。", "0xb8 at 0"),  # noqa: RUF001
                ("shift_jis", "港は静かだった。", "0x8d at 0"),
                ("cp1251", "В гавани было тихо, и краны стояли.", "0xc2 at 0"),  # noqa: RUF001
            )
        ),
        (b"a\0\x01\x02\x03\x04", "is not text: byte 0x00 at 1"),
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


def pdf(*pages: str) -> bytes:
    """Each page with one line of text, or none."""
    kids = " ".join(f"{4 + 2 * i} 0 R" for i in range(len(pages)))
    objects = [
        "<</Type/Catalog/Pages 2 0 R>>",
        f"<</Type/Pages/Count {len(pages)}/Kids[{kids}]>>",
        "<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
    ]
    for i, text in enumerate(pages):
        stream = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET" if text else ""
        objects += [
            f"<</Type/Page/Parent 2 0 R/MediaBox[0 0 600 800]/Contents {5 + 2 * i} 0 R"
            "/Resources<</Font<</F1 3 0 R>>>>>>",
            f"<</Length {len(stream)}>>stream\n{stream}\nendstream",
        ]
    data, places = b"%PDF-1.4\n", []
    for i, each in enumerate(objects):
        places.append(len(data))
        data += f"{i + 1} 0 obj\n{each}\nendobj\n".encode()
    table = "".join(f"{place:010d} 00000 n \n" for place in places)
    size = len(objects) + 1
    end = f"xref\n0 {size}\n0000000000 65535 f \n{table}trailer<</Size {size}/Root 1 0 R>>\nstartxref\n"
    return data + f"{end}{len(data)}\n%%EOF\n".encode()


def encrypted(data: bytes, password: str = "secret") -> bytes:
    """password: that opens it; "": there is only one that lets it be changed, as banks and journals do."""
    import pypdf

    writer, out = pypdf.PdfWriter(io.BytesIO(data)), io.BytesIO()
    writer.encrypt(password, owner_password="owner", algorithm="AES-256")
    writer.write(out)
    return out.getvalue()


def word(*blocks: str) -> bytes:
    """With these elements at its beginning, whose names have no prefix."""
    import docx
    from docx.oxml import parse_xml

    document, out = docx.Document(), io.BytesIO()
    document.add_paragraph("The keeper\tis Marta.")
    table = document.add_table(1, 2)
    table.cell(0, 0).text, table.cell(0, 1).text = "Bo", "41"
    schema = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
    whole = parse_xml(f'<body xmlns="{schema}" xmlns:w="{schema}">{"".join(blocks)}</body>')
    for i, element in enumerate(list(whole)):
        document.element.body.insert(i, element)
    document.save(out)
    return out.getvalue()


def in_word(text: str) -> str:
    return f"<p><r><t>{text}</t></r></p>"


def row(*cells: str) -> str:
    return f"<tr>{''.join(f'<tc>{cell}</tc>' for cell in cells)}</tr>"


def test_text_of_pdf_and_docx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "document"
    path.write_bytes(pdf("The first page.", "", "The third."))
    document = read_document(str(path))
    assert document.text == "The first page.\n\nThe third."
    assert document.note == "1 of its 3 pages have no text: they may be scanned"
    path.write_bytes(encrypted(pdf("The first page."), password=""))
    assert read_document(str(path)).text == "The first page."
    without = (
        "import sys; sys.modules.update(cryptography=None, Crypto=None); from headkv_local.chat import main"
    )
    chat = [sys.executable, "-c", f"{without}; main()", "-p", "Why?", "-f", str(path)]
    said = subprocess.run(chat, capture_output=True, text=True, stdin=subprocess.DEVNULL).stderr
    assert "is a PDF encrypted with AES: pip install 'headkv-local[documents]' lets it be read" in said
    path.write_bytes(word())
    assert read_document(str(path)).text == "The keeper\tis Marta.\nBo | 41"
    for data, library, what in ((pdf("x"), "pypdf", "a PDF"), (word(), "docx", "a DOCX file")):
        path.write_bytes(data)
        monkeypatch.setitem(sys.modules, library, None)
        with pytest.raises(DocumentError, match=rf"is {what}: pip install 'headkv-local\[documents\]' lets"):
            read_document(str(path))


@pytest.mark.parametrize("before", [b"\xef\xbb\xbf", b"\r\n ", b"HTTP/1.1 200 OK\r\n\r\n"])
def test_a_pdf_behind_something_else(tmp_path: Path, before: bytes) -> None:
    """It was taken for text of another encoding, and to convert it was advised."""
    path, data = tmp_path / "document", pdf("The first page.") + b"%\xff" * 2**16
    path.write_bytes(before + data)
    assert read_document(str(path)).text == "The first page."
    path.write_text("A PDF begins with %PDF-.")
    assert read_document(str(path)).text == "A PDF begins with %PDF-."


def test_a_docx_that_unpacks_to_much_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "document"
    path.write_bytes(word())
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as file:
        file.writestr("word/footnotes.xml", b"<p/>" * (4 * 1024**2))
    with pytest.raises(DocumentError, match="is a DOCX file with more than 16 MiB of XML in it$"):
        read_document(str(path))


def test_a_picture_in_a_docx_is_not_unpacked(tmp_path: Path) -> None:
    """One of black only may be a thousand times as large as the file."""
    path = tmp_path / "document"
    with (
        zipfile.ZipFile(io.BytesIO(word())) as small,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as large,
    ):
        for name in small.namelist():
            data = small.read(name)
            if name == "word/_rels/document.xml.rels":
                image = "http://schemas.openxmlformats.org/officeDocument/2006/relationships/image"
                one = f'<Relationship Id="rId99" Type="{image}" Target="media/black.jpeg"/></Relationships>'
                data = data.replace(b"</Relationships>", one.encode())
            large.writestr(name, data)
        large.writestr("word/media/black.jpeg", bytes(200 * 1024**2))
    tracemalloc.start()
    text = read_document(str(path)).text
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert text == "The keeper\tis Marta.\nBo | 41"
    assert peak < 100 * 1024**2


INNER = f"<tbl>{row(in_word('c'), in_word('d'))}</tbl>"


@pytest.mark.parametrize(
    ("block", "text"),
    [
        (
            f"<tbl>{row(in_word('a'), in_word('b'))}<sdt><sdtContent>{row(INNER, in_word('e'))}"
            "</sdtContent></sdt></tbl>",
            "a | b\nc | d | e",
        ),
        (
            "<p><moveFrom><r><t>moved</t></r></moveFrom><del><r><delText>x</delText><tab/><br/></r></del>"
            "<ins><r><t>The </t></r></ins><moveTo><r><t>moved</t></r></moveTo></p>"
            f"<tbl>{row(in_word('a'))}<tr><trPr><del/></trPr><tc><p/></tc></tr></tbl>",
            "The moved\na",
        ),
        (
            '<p><pPr><tabs><tab w:val="left" w:pos="720"/></tabs></pPr><r><t>At a stop</t></r></p>',
            "At a stop",
        ),
        (
            "<customXml><p><r><t>self</t><noBreakHyphen/><t>employed</t></r></p>"
            f"<tbl><customXml>{row(in_word('a'))}</customXml></tbl></customXml>",
            "self-employed\na",
        ),
        ("<p><r><t>before<!-- a remark --> and behind</t></r></p>", "before and behind"),
    ],
)
def test_text_of_docx(tmp_path: Path, block: str, text: str) -> None:
    (tmp_path / "document").write_bytes(word(block))
    read = read_document(str(tmp_path / "document")).text
    assert read == f"{text}\nThe keeper\tis Marta.\nBo | 41"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (pdf("", ""), "is a PDF of 2 pages without text: it seems to be scanned, and needs OCR first"),
        (pdf(), "is a PDF without pages"),
        (pdf("x")[:200], "is a PDF that cannot be read: "),
        (encrypted(pdf("x")), "is an encrypted PDF: save it without its password first"),
        (zipped("word/document.xml"), "is a DOCX file that cannot be read: "),
    ],
)
def test_pdf_and_docx_without_text_to_be_had(tmp_path: Path, data: bytes, reason: str) -> None:
    path = tmp_path / "document"
    path.write_bytes(data)
    with pytest.raises(DocumentError) as caught:
        read_document(str(path))
    assert str(caught.value).startswith(f"the document '{path}' {reason}")


@pytest.mark.parametrize("part", ["[Content_Types].xml", "word/document.xml", "_rels/.rels"])
@pytest.mark.parametrize("content", ["<x/>", None])
def test_a_docx_with_a_damaged_part(tmp_path: Path, part: str, content: str | None) -> None:
    """Without a word of the library's insides."""
    with (
        zipfile.ZipFile(io.BytesIO(word(in_word("a")))) as whole,
        zipfile.ZipFile(tmp_path / "a", "w") as bad,
    ):
        for name in whole.namelist():
            if name != part:
                bad.writestr(name, whole.read(name))
            elif content is not None:
                bad.writestr(name, content)
    with pytest.raises(DocumentError) as caught:
        read_document(str(tmp_path / "a"))
    assert not re.search("object|attribute|item named|Error", str(caught.value))


def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/caf\xe9.txt"
    Path(os.fsdecode(path)).write_text("something")
    document = read_document(os.fsdecode(path))
    assert document.name == f"{tmp_path}/caf?.txt"
    assert "caf?.txt" in json.dumps(compose([document], "What is it?"), ensure_ascii=False).encode().decode()


def test_a_folder(tmp_path: Path) -> None:
    for name, data in {
        "part10": b"ten",
        "part2": b"two",
        "\u2460": b"one in a circle",
        "sub/a.txt": b"a",
        ".hidden": b"x",
        ".git/x": b"x",
        "z.bin": b"\0\1\2\3",
        "zip.txt": b"BZh begins what bzip2 writes",
        "empty": b"",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "sub" / "round").symlink_to(tmp_path)
    (tmp_path / "made-up").symlink_to("/proc/self/status")
    (tmp_path / "gone").symlink_to("nowhere")
    found = read_documents(str(tmp_path))
    assert [document.text for document in found.documents] == [
        "two",
        "ten",
        "BZh begins what bzip2 writes",
        "one in a circle",
        "a",
    ]
    assert found.notes == [
        f"{tmp_path}: 5 left out: empty (is empty), gone (cannot be read: No such file or directory), "
        "made-up (is made up by the system), pipe (is a pipe, a socket or a device), "
        "z.bin (is not text: byte 0x00 at 0)."
    ]
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "x").write_bytes(b"\x7fELF")
    with pytest.raises(DocumentError, match="no document is in the folder '.*'; .*1 left out: x .is"):
        list(read_documents(str(tmp_path / "only")).documents)


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """Also as root, whom no permission stops: here its path is too long."""
    (tmp_path / "a.txt").write_text("a")
    at = os.open(tmp_path, os.O_RDONLY)
    for _ in range(25):
        os.mkdir("d" * 200, dir_fd=at)
        below = os.open("d" * 200, os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    os.close(at)
    found = read_documents(str(tmp_path))
    assert [document.text for document in found.documents] == ["a"]
    (note,) = found.notes
    assert note.endswith(" (cannot be read: File name too long).")


@pytest.mark.skipif(sys.platform != "linux", reason="others have none")
@pytest.mark.parametrize("folder", ["/proc", "/sys", "/dev"])
def test_nothing_is_read_that_the_system_makes_up(folder: str) -> None:
    """Some of it waits for ever."""
    with pytest.raises(DocumentError, match=f"^no document is in the folder '{folder}'$"):
        list(read_documents(folder).documents)


def test_a_folder_is_read_as_far_as_there_is_room(tiny_path: Path, tmp_path: Path) -> None:
    for i in range(20):
        (tmp_path / f"{i}.txt").write_text("word " * 10)
    rest = iter(read_documents(str(tmp_path)).documents)
    with closing(open_session(Options(model=str(tiny_path), ctx=512))) as session:
        n_tokens = session.attach([next(rest)])
        n_fit = (512 - 64) // n_tokens - 1
        said = rf"'.*/{n_fit + 1}.txt' has {n_tokens} tokens, .* has room for \d+ after {n_fit} others: leave"
        with pytest.raises(DocumentError, match=said):
            session.attach(rest)
        assert len(session.documents) == 1
    (tmp_path / f"{n_fit + 2}.txt").write_text("not read yet")
    assert next(rest).text == "not read yet"


def test_a_folder_without_documents_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "_MOST_PASSED", 9)
    for i in range(3):
        (tmp_path / f"{i}" / "empty").mkdir(parents=True)
        (tmp_path / f"{i}" / "picture").write_bytes(b"\x89PNG")
    with pytest.raises(DocumentError, match="has more than 9 files and folders that are no documents: name"):
        list(read_documents(str(tmp_path)).documents)
    (tmp_path / "2" / "picture").unlink()
    with pytest.raises(DocumentError, match="no document is in the folder"):
        list(read_documents(str(tmp_path)).documents)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DocumentError, match="cannot read the document '.*': No such file or directory"):
        read_document(str(tmp_path / "missing"))


def test_directory(tmp_path: Path) -> None:
    with pytest.raises(DocumentError, match="cannot read the document '.*': Is a directory"):
        read_document(str(tmp_path))


def test_impossible_name() -> None:
    with pytest.raises(DocumentError, match="cannot read the document"):
        read_document("a\0b")


def test_endless_files_are_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "MAX_BYTES", 1024**2)
    (tmp_path / "long").write_text("é" * 1024**2)
    with pytest.raises(DocumentError, match="the document '.*' is larger than 1 MiB"):
        read_document(str(tmp_path / "long"))
    with pytest.raises(DocumentError, match="the document '/dev/zero' is not text: byte 0x00 at 0"):
        read_document("/dev/zero")


def test_a_character_across_the_end_of_what_is_looked_at_first(tmp_path: Path) -> None:
    text = "a" + "é" * 100_000
    (tmp_path / "text").write_text(text)
    assert read_document(str(tmp_path / "text")).text == text


def message(*documents: Document) -> str:
    """As a template that takes no parts gets it."""
    *parts, question = compose(list(documents), "Why?")
    assert all(part.get("document") for part in parts)
    assert question == {"type": "text", "text": "Why?"}
    return "\n".join(part["text"] for part in [*parts, question])


def test_message_has_documents_first_and_their_names() -> None:
    first, second, piped = (
        Document("a/one.txt", "\nfirst\n"),
        Document("two.txt", "  second"),
        Document("-", "x"),
    )
    assert message(first, second) == "one.txt:\n\nfirst\n\ntwo.txt:\n\n  second\n\nWhy?"
    assert message(first, Document("b/one.txt", "x")).startswith("a/one.txt:\n\nfirst\n\nb/one.txt:")
    assert message(piped) == "x\n\nWhy?"
    assert message(piped, second).startswith("Standard input:\n\nx\n\ntwo.txt:")
    assert compose([], "Why?\n") == "Why?\n"


def test_a_name_cannot_hold_more_than_a_line() -> None:
    assert message(Document("a\nb\x1b[0m", "text")).startswith("a b[0m:\n\n")


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "document").write_text("mine")
    assert read_document("~/document").text == "mine"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "~").mkdir()
    (tmp_path / "~" / "document").write_text("a folder of that name")
    assert read_document("~/document").text == "a folder of that name"
