"""What was said, as text that grows at its end."""

from __future__ import annotations

import tkinter as tk
from collections.abc import Iterable
from tkinter import font, ttk

import style
from conversations import Message, shown


class Transcript(ttk.Frame):
    """Read only, but can be selected from and copied."""

    def __init__(self, parent: tk.Misc) -> None:
        super().__init__(parent)
        self._text = tk.Text(
            self,
            wrap="word",
            font="TkTextFont",
            state="disabled",
            relief="flat",
            padx=18,
            pady=14,
            background=style.PAPER,
            foreground=style.TEXT,
            highlightthickness=1,
            highlightbackground=style.LINE,
            highlightcolor=style.LINE,
            spacing2=3,
        )
        scroll = ttk.Scrollbar(self, command=self._text.yview)
        self._text.configure(yscrollcommand=scroll.set)
        scroll.pack(side="right", fill="y")
        self._text.pack(side="left", fill="both", expand=True)
        bold = font.nametofont("TkTextFont").copy()
        bold.configure(weight="bold")
        self._bold = bold  # Tk keeps no reference
        self._text.tag_configure("who", font=bold, foreground=style.FAINT, spacing1=12)
        self._text.tag_configure("user", foreground=style.ACCENT)
        self._text.tag_configure("note", foreground=style.FAINT, spacing1=6)
        self._text.tag_configure("error", foreground=style.WARNING, spacing1=6)

    @property
    def content(self) -> str:
        return self._text.get("1.0", "end-1c")

    def show(self, messages: Iterable[Message]) -> None:
        """In place of what is there."""
        self._text.configure(state="normal")
        self._text.delete("1.0", "end")
        self._text.configure(state="disabled")
        for message in messages:
            document, text = shown(message)
            if message["role"] == "user":
                self.ask(text, document)
            else:
                self.answer()
                self.add(text)
        self.after_idle(self._text.see, "end")  # once it is laid out

    def ask(self, question: str, document: str | None) -> None:
        self._line("You", "who")
        if document is not None:
            self._line(f"with {document}", "note")
        self._line(question, "user")

    def answer(self) -> None:
        """One begins: add() is a part of it."""
        self._line("Model", "who")

    def add(self, piece: str) -> None:
        self._write(piece)

    def note(self, text: str, error: bool = False) -> None:
        self._line(text, "error" if error else "note")

    def _line(self, text: str, tag: str) -> None:
        start = "" if self._text.index("end-1c").endswith(".0") else "\n"
        self._write(start)
        self._write(text, tag)
        self._write("\n")

    def _write(self, text: str, *tags: str) -> None:
        at_end = self._text.yview()[1] >= 0.999  # else the reader has scrolled up
        self._text.configure(state="normal")
        self._text.insert("end", text, tags)
        self._text.configure(state="disabled")
        if at_end:
            self._text.see("end")
