"""/kept: what was kept of a prompt, made visible."""

from __future__ import annotations

import html
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from headkv_local import ArgumentError, StateError
from headkv_local.chat.console import Console
from headkv_local.chat.documents import Document
from headkv_local.chat.kept import kept_text, show_kept
from headkv_local.chat.kept_page import write_page
from headkv_local.chat.options import Options
from headkv_local.chat.session import Session, open_session


@pytest.fixture
def session(tiny_path: Path) -> Iterator[Session]:
    session = open_session(
        Options(model=str(tiny_path), budget=16, threads=1, ctx=1024, max_tokens=4, temp=0.0)
    )
    yield session
    session.close()


def test_every_token_with_its_heads(
    session: Session, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StateError, match="everything is kept"):
        kept_text(session.llm)
    text = "Grüße & <b>日本語</b> 🙂. " * 8
    session.attach([Document("a.txt", text)])
    session.ask("Why?", lambda _: None)
    kept = kept_text(session.llm)
    mask = session.llm.retention_mask()
    assert (kept.n_tokens, kept.n_heads) == (mask.shape[2], 4)
    assert text.strip() in "".join(piece for piece, _ in kept.pieces)
    assert {heads for _, heads in kept.pieces} <= set(mask.sum((0, 1)).tolist())
    assert kept.pieces[0][1] == kept.pieces[-1][1] == 4  # sinks and window
    assert [kept.level(heads) for heads in range(5)] == [0, 3, 4, 4, 4]

    page = tmp_path / "kept.html"
    for _ in range(2):  # one of ours may be made anew
        write_page(str(page), kept, session.llm.file_name)
    found = page.read_text(encoding="utf-8")
    assert "budget" not in found  # a session that was loaded may have been kept with another one
    spans = re.findall(r'<span class="l(\d)" title="(\d) of 4">(.*?)</span>', found, re.DOTALL)
    assert html.unescape("".join(text for *_, text in spans)) == "".join(piece for piece, _ in kept.pieces)
    odd = replace(kept, pieces=[("a\0\x1b\x9b\r</main>\n\tb", 1)])  # no page may have what HTML does not know
    write_page(str(page), odd, session.llm.file_name)
    assert ">a&lt;/main&gt;\n\tb</span></main>" in page.read_bytes().decode()
    assert not re.search(r"(src|href)=|@import|url\(", found)
    assert page.stat().st_mode & 0o77 == 0  # it has what the document has
    other = tmp_path / "other"
    other.write_text("mine")
    with pytest.raises(ArgumentError, match="is another file"):
        write_page(str(other), kept, session.llm.file_name)
    with pytest.raises(ArgumentError, match="cannot be written"):
        write_page(str(tmp_path / "no" / "folder"), kept, session.llm.file_name)
    assert other.read_text() == "mine"
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ArgumentError, match="is another file"):
        write_page(str(tmp_path / "pipe"), kept, session.llm.file_name)

    def seen(console: Console) -> str:
        show_kept(kept, console)
        return re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().err)

    console = Console("always")
    assert text.strip() in seen(console)
    console.err_tty = True
    monkeypatch.setenv("PAGER", 'less "')  # none that can be run
    assert text.strip() in seen(console).replace("\n", " ")  # lines end at the window's edge
