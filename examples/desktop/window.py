"""The window's parts and where they stand. What they do is the application's."""

from __future__ import annotations

import tkinter as tk
from collections.abc import Callable, Sequence
from tkinter import ttk

import style
from gauge import Gauge
from transcript import Transcript

ADD, TAKE_OFF = "Add document\N{HORIZONTAL ELLIPSIS}", "Take document off"


def shortened(text: str, n: int) -> str:
    """In one line of at most n characters."""
    line = " ".join(text.split())
    return line if len(line) <= n else line[: n - 1] + "\N{HORIZONTAL ELLIPSIS}"


class Window:
    """on_*: set by who uses it."""

    def __init__(self, root: tk.Tk) -> None:
        self.root = root
        root.title("headkv desktop")
        root.geometry("1040x680")
        root.minsize(860, 480)
        style.apply(root)

        self.on_select: Callable[[int], None] = lambda index: None
        self.on_send: Callable[[str], None] = lambda question: None
        self._busy, self._ready = False, False

        root.columnconfigure(1, weight=1)
        root.rowconfigure(0, weight=1)
        self._make_side().grid(row=0, column=0, sticky="ns", padx=(style.PAD, 0), pady=style.PAD)
        self._make_main().grid(row=0, column=1, sticky="nsew", padx=style.PAD, pady=style.PAD)

    def _make_side(self) -> ttk.Frame:
        side = ttk.Frame(self.root)
        side.rowconfigure(1, weight=1)
        buttons = ttk.Frame(side)
        self.new = ttk.Button(buttons, text="New")
        self.delete = ttk.Button(buttons, text="Delete")
        self.new.pack(side="left", expand=True, fill="x")
        self.delete.pack(side="left", expand=True, fill="x", padx=(6, 0))
        buttons.grid(row=0, column=0, sticky="ew")
        self.list = tk.Listbox(
            side,
            width=22,
            relief="flat",
            exportselection=False,
            activestyle="none",
            background=style.PAPER,
            foreground=style.TEXT,
            selectbackground=style.ACCENT,
            selectforeground="#ffffff",
            highlightthickness=1,
            highlightbackground=style.LINE,
            highlightcolor=style.LINE,
        )
        self.list.grid(row=1, column=0, sticky="nsew", pady=style.PAD)
        self.list.bind("<<ListboxSelect>>", self._selected)
        self.gauge = Gauge(side)
        self.gauge.grid(row=2, column=0, sticky="ew")
        return side

    def _make_main(self) -> ttk.Frame:
        main = ttk.Frame(self.root)
        main.columnconfigure(0, weight=1)
        main.rowconfigure(1, weight=1)

        top = ttk.Frame(main)
        self.open_model = ttk.Button(top, text="Open model\N{HORIZONTAL ELLIPSIS}")
        self.open_document = ttk.Button(top, text=ADD)
        self.model = ttk.Label(top, style="Faint.TLabel", text="no model")
        self.open_model.pack(side="left")
        self.open_document.pack(side="left", padx=6)
        self.model.pack(side="right")
        top.grid(row=0, column=0, sticky="ew")

        self.transcript = Transcript(main)
        self.transcript.grid(row=1, column=0, sticky="nsew", pady=style.PAD)

        below = ttk.Frame(main)
        below.columnconfigure(0, weight=1)
        self.status = ttk.Label(below, style="Faint.TLabel", text="Open a model to begin.")
        self.status.grid(row=0, column=0, sticky="w")
        self.progress = ttk.Progressbar(below, length=260, maximum=1.0)
        self.progress.grid(row=0, column=1, sticky="e")
        below.grid(row=2, column=0, sticky="ew")

        bottom = ttk.Frame(main)
        bottom.columnconfigure(0, weight=1)
        self.entry = ttk.Entry(bottom, font="TkTextFont")
        self.entry.grid(row=0, column=0, sticky="ew", ipady=5)
        self.entry.bind("<Return>", lambda _: self._send())
        self.send = ttk.Button(bottom, text="Send", width=7, style="Accent.TButton", command=self._send)
        self.stop = ttk.Button(bottom, text="Stop", width=7)
        self.send.grid(row=0, column=1, padx=(8, 6))
        self.stop.grid(row=0, column=2)
        bottom.grid(row=3, column=0, sticky="ew", pady=(style.PAD, 0))
        return main

    def show_list(self, titles: Sequence[str], selected: int) -> None:
        self.list.delete(0, "end")
        for title in titles:
            self.list.insert("end", f" {shortened(title, 22)}")
        self.list.selection_set(selected)
        self.list.see(selected)

    def set_state(self, *, ready: bool, busy: bool, document_waits: bool) -> None:
        """ready: a model is loaded. busy: it loads, reads or answers. document_waits: for a question."""
        self._ready, self._busy = ready, busy
        self.open_document.configure(text=TAKE_OFF if document_waits else ADD)
        for widget in (self.new, self.delete, self.open_model, self.open_document):
            widget.state(["disabled" if busy else "!disabled"])
        self.send.state(["!disabled" if ready and not busy else "disabled"])
        self.stop.state(["!disabled" if busy and ready else "disabled"])
        self.list.configure(state="disabled" if busy else "normal")
        if not busy:
            self.entry.focus_set()

    def show_progress(self, done: float | None) -> None:
        """done: a share; None while it is not known how far."""
        if done is None:
            self.progress.configure(mode="indeterminate")
            self.progress.start(20)
        else:
            self.progress.stop()
            self.progress.configure(mode="determinate", value=done)

    def _selected(self, _: object) -> None:
        found = self.list.curselection()  # type: ignore[no-untyped-call]
        if found and not self._busy:
            self.on_select(found[0])

    def _send(self) -> None:
        question = self.entry.get().strip()
        if question and self._ready and not self._busy:
            self.entry.delete(0, "end")
            self.on_send(question)
