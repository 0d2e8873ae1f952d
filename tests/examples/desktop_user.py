"""Sits before the window of examples/desktop and looks: desktop_user.py SCENARIO FOLDER MODEL.

A process of its own: Tk ends the one that it is in when its screen goes.
"""

from __future__ import annotations

import logging
import queue
import subprocess
import sys
import threading
import time
import tkinter
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "desktop"))

import style
from app import App
from conversations import Conversations, Document
from engine import RETENTION, SAMPLING, Engine, Event, Loaded, Piece, Reading

from headkv_local import Llama

DESKTOP = Path(style.__file__).parent
Picture = npt.NDArray[np.uint8]  # (height, width, 3)

TEXT = files("headkv_local.demo").joinpath("document.txt").read_text(encoding="utf-8")[:4000]


class Paced(queue.SimpleQueue[Event]):
    """The model goes on as its user waits: nothing is over while he looks, or reaches for a button."""

    def __init__(self) -> None:
        super().__init__()
        self.waits = threading.Event()

    def put(self, item: Event, block: bool = True, timeout: float | None = None) -> None:
        if isinstance(item, Loaded | Reading | Piece):
            self.waits.clear()
            self.waits.wait(300)
        super().put(item, block, timeout)


class User:
    """Sits before one window."""

    seated: ClassVar[list[User]] = []

    def __init__(self, folder: Path, model: Path) -> None:
        self.root, self.engine = tkinter.Tk(), Engine()
        self.engine.events = self.events = Paced()
        self.seated.append(self)
        self.conversations = Conversations(folder / "conversations")
        self.app: Any = App(self.root, self.conversations, self.engine, model)
        self.window = self.app.window
        self.totals: list[int] = []  # of the prompts that were read
        show = self.app._show

        def watching(event: Event) -> None:
            if isinstance(event, Reading):
                self.totals.append(event.total)
            show(event)

        self.app._show = watching

    @property
    def status(self) -> str:
        return str(self.window.status.cget("text"))

    @property
    def said(self) -> str:
        return str(self.window.transcript.content)

    def until(self, happens: Callable[[], bool]) -> None:
        end = time.monotonic() + 300
        while not happens():
            assert time.monotonic() < end, self.status
            self.events.waits.set()
            self.root.update()
            time.sleep(0.005)

    def wait(self) -> None:
        self.until(lambda: not self.app._busy)

    def ask(self, question: str) -> None:
        self.window.entry.insert(0, question)
        self.window.entry.event_generate("<Return>")
        self.window.send.invoke()  # a second question while the first one is answered: is not taken

    def select(self, index: int) -> None:
        self.window.list.selection_clear(0, "end")
        self.window.list.selection_set(index)
        self.window.list.event_generate("<<ListboxSelect>>")
        self.root.update()

    def see(self, widget: Any) -> Picture:
        """What is painted where the widget is."""
        self.root.update()
        shot = subprocess.run(
            ["import", "-window", "root", "-depth", "8", "ppm:-"], capture_output=True, check=True, timeout=60
        ).stdout
        header, width, height = shot.split(b"\n", 3)[:3], *map(int, shot.split(b"\n", 3)[1].split())
        pixels = np.frombuffer(shot[len(b"\n".join(header)) + 1 :], dtype=np.uint8)
        x, y = widget.winfo_rootx(), widget.winfo_rooty()
        whole = pixels.reshape(height, width, 3)
        return whole[y : y + widget.winfo_height(), x : x + widget.winfo_width()]

    def filled(self, widget: Any, colour: str) -> float:
        """The share of a bar's length that has a colour."""
        row = self.see(widget)[widget.winfo_height() // 2]
        return float((row == np.frombuffer(bytes.fromhex(colour[1:]), np.uint8)).all(axis=1).mean())

    def ink(self) -> int:
        """Pixels of the transcript that are not paper."""
        return int((self.see(self.window.transcript) != 255).any(axis=2).sum())

    def close(self) -> None:
        self.app.close()
        self.until(lambda: self.app.closed)
        self.conversations.close()


def a_day_at_the_desk(folder: Path, model: Path) -> None:
    """Loading, reading, streaming, stopping, another conversation, and all of it reopened."""
    document = folder / "harbour.txt"
    document.write_text(TEXT, encoding="utf-8")
    user = User(folder, model)
    window, blue, green = user.window, style.ACCENT, style.KEPT

    # loading
    assert 0.02 < user.filled(window.progress, blue) < 0.5
    assert window.send.instate(["disabled"])
    user.wait()
    assert "SmolLM2" in window.model.cget("text")
    assert user.filled(window.progress, blue) == 0
    empty = user.ink()

    # reading
    user.app.add_document(document)
    user.ask("In which year was the lamp of the lighthouse first lit?")
    shares = []
    for least in (0.2, 0.6):
        user.until(lambda least=least: window.progress["value"] > least)
        shares.append(user.filled(window.progress, blue))
        assert "Reading: " in user.status
        assert abs(shares[-1] - float(window.progress["value"])) < 0.06
    assert shares[0] < shares[1]
    user.wait()
    assert "1871" in user.said
    n_document = user.totals[-1]

    # the gauge
    stats = user.app.engine._llm.cache_stats()
    held = stats.resident_bytes / stats.full_bytes
    assert 0.01 < held < 0.2
    assert abs(user.filled(window.gauge.bar, green) - held) < 0.01

    # streaming, and stopped
    user.ask("Write a very long story about the harbour master.")
    user.until(lambda: user.app._answering)
    ink = [user.ink()]
    said = len(user.said)
    user.until(lambda: len(user.said) > said + 80)
    ink.append(user.ink())
    assert empty < ink[0] < ink[1]
    window.stop.invoke()
    user.wait()
    assert user.said.endswith("Stopped.\n")
    assert user.status == "Stopped."

    # another conversation, and back
    window.new.invoke()
    assert user.ink() == empty
    user.ask("What is the capital of France?")
    user.until(lambda: user.app._answering)
    window.stop.invoke()
    user.wait()
    assert [title.strip() for title in window.list.get(0, "end")] == ["What is the capital o…", "harbour.txt"]
    user.select(1)
    picture, text = user.see(window.transcript), user.said
    assert "1871" in text
    user.close()

    # reopened
    again = User(folder, model)
    again.wait()
    assert {title.strip() for title in again.window.list.get(0, "end")} == {
        "What is the capital o…",
        "harbour.txt",
    }
    again.select([title.strip() for title in again.window.list.get(0, "end")].index("harbour.txt"))
    assert again.said == text
    assert np.array_equal(again.see(again.window.transcript), picture)
    again.ask("In which year was it first lit?")
    again.until(lambda: again.app._answering or not again.app._busy)
    again.window.stop.invoke()
    again.wait()
    assert max(again.totals) < n_document / 2  # the document is not read again
    again.close()


def mishaps(folder: Path, model: Path) -> None:
    """model: one that is quick."""
    broken = folder / "broken.gguf"
    broken.write_bytes(b"GGUF")
    conversations = folder / "conversations"
    conversations.mkdir()
    image = {"type": "image_url", "image_url": {"url": "x"}}
    with Llama(model, n_ctx=512, retention=RETENTION) as llm:  # another program's conversations
        llm.prefill([1, 2, 3])
        for name, content in {"call": None, "image": [image], "text": "Hello there."}.items():
            said = [{"role": "assistant", "content": content}]
            llm.save_session(conversations / f"{name}.session", messages=said)
    logging.getLogger("conversations").disabled = True  # it says which ones are left out
    user = User(folder, broken)
    assert [title.strip() for title in user.window.list.get(0, "end")] == ["Hello there."]
    assert len(list(conversations.glob("*.session"))) == 3

    again = subprocess.run(
        [sys.executable, str(DESKTOP), "--folder", str(conversations), str(model)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert again.returncode == 1
    assert again.stderr.startswith("another window has the conversations in ")
    assert again.stderr.count("\n") == 1

    user.wait()
    assert "Failed to load model" in user.said
    assert user.window.send.instate(["disabled"])

    user.app.load(model)
    user.wait()
    named = user.window.model.cget("text")
    user.app.load(broken)  # the model that is there stays
    user.wait()
    assert (user.status, user.window.model.cget("text")) == ("Ready.", named)
    user.app.add_document(model)  # no text
    assert "cannot be read" in user.said
    long = folder / "long.txt"
    long.write_text(TEXT * 10, encoding="utf-8")
    user.app.add_document(long)
    user.ask("What is this?")
    user.wait()
    assert "do not fit into the context" in user.said
    assert user.window.entry.get() == "What is this?"
    user.window.open_document.invoke()  # it is taken off
    assert user.app.current.document is None
    assert user.window.open_document.cget("text") == "Add document…"

    user.window.new.invoke()
    n_there = user.window.list.size()
    user.window.new.invoke()  # nothing was asked in that one
    assert user.window.list.size() == n_there
    in_the_way = user.app.current.path
    in_the_way.mkdir()
    user.window.delete.invoke()
    assert "cannot be deleted" in user.said
    assert user.window.list.size() == n_there
    in_the_way.rmdir()
    user.window.delete.invoke()
    assert user.window.list.size() == n_there - 1

    short = folder / "short.txt"
    short.write_text(TEXT, encoding="utf-8-sig")  # a mark before it is none of its text
    user.app.add_document(short)
    assert user.app.current.document == Document(short.name, TEXT)
    user.window.entry.delete(0, "end")
    user.ask("What is this?")
    user.until(lambda: user.window.progress["value"] > 0)
    user.window.stop.invoke()  # while it is read: the question can be asked again
    user.wait()
    assert user.window.entry.get() == "What is this?"
    assert user.status == "Stopped."
    user.close()


if __name__ == "__main__":
    scenario = {"day": a_day_at_the_desk, "mishaps": mishaps}[sys.argv[1]]
    SAMPLING["temperature"] = 0.0
    try:
        scenario(Path(sys.argv[2]), Path(sys.argv[3]))
    finally:
        for user in User.seated:
            user.engine.close()
