"""The application: what the user does becomes jobs of the engine, and its events are shown."""

from __future__ import annotations

import queue
import tkinter as tk
from pathlib import Path
from tkinter import filedialog

from conversations import Conversations, Document
from engine import Closed, Ended, Engine, Event, Failed, Loaded, Loading, Memory, NotLoaded, Piece, Reading
from gauge import size
from window import Window, shortened

_POLL_MS = 30


class App:
    """root.mainloop() runs it until the window is closed."""

    def __init__(
        self, root: tk.Tk, conversations: Conversations, engine: Engine, model: Path | None = None
    ) -> None:
        """Who has made the conversations and the engine closes them, the engine first."""
        self.window = window = Window(root)
        self._root, self.conversations, self.engine = root, conversations, engine
        self._ready = self._busy = self._answering = self._closing = self.closed = False
        self._question = ""  # asked last
        self.current = conversations.all[0] if conversations.all else conversations.new()

        window.on_select = self._select
        window.on_send = self.ask
        window.new.configure(command=self._new)
        window.delete.configure(command=self._delete)
        window.open_model.configure(command=self._choose_model)
        window.open_document.configure(command=self._choose_document)
        window.stop.configure(command=self._stop)
        root.protocol("WM_DELETE_WINDOW", self.close)
        self._show_conversation()
        self._set_state()
        if model is not None:
            self.load(model)
        root.after(_POLL_MS, self._poll)

    def load(self, path: Path) -> None:
        self._ready, self._busy = False, True
        self._set_state(f"Looking into {path.name} \N{HORIZONTAL ELLIPSIS}")
        self.window.show_progress(None)
        self.engine.load(path)

    def add_document(self, path: Path) -> None:
        """It goes with the next question."""
        try:
            self.current.document = Document.read(path)
        except (OSError, ValueError) as error:
            self.window.transcript.note(f"{path.name} cannot be read: {error}", error=True)
            return
        self._show_list()
        self._set_state(f"{path.name} goes with your next question.")

    def ask(self, question: str) -> None:
        document, self._question = self.current.document, question
        self.window.transcript.ask(question, document.name if document else None)
        self._busy, self._answering = True, False
        self._set_state("Reading \N{HORIZONTAL ELLIPSIS}")
        self.engine.ask(self.current, question)

    def close(self) -> None:
        """The window goes when the model has gone."""
        if not self._closing:
            self._closing = self._busy = True
            self._set_state("Closing \N{HORIZONTAL ELLIPSIS}")
            self.engine.close()

    def _stop(self) -> None:
        self.window.status.configure(text="Stopping \N{HORIZONTAL ELLIPSIS}")
        self.engine.stop()

    def _select(self, index: int) -> None:
        self.current = self.conversations.all[index]
        self._show_conversation()

    def _new(self) -> None:
        self.current = self.conversations.new()
        self._show_conversation()

    def _delete(self) -> None:
        try:
            self.conversations.delete(self.current)
        except OSError as error:
            self.window.transcript.note(f"It cannot be deleted: {error.strerror or error}", error=True)
            return
        self.current = self.conversations.all[0] if self.conversations.all else self.conversations.new()
        self._show_conversation()

    def _choose_model(self) -> None:
        path = filedialog.askopenfilename(title="Open a model", filetypes=[("GGUF models", "*.gguf")])
        if path:
            self.load(Path(path))

    def _choose_document(self) -> None:
        """Or take off the one that waits, as one that is too long for the model."""
        if self.current.document is not None:
            self.current.document = None
            self._show_list()
            self._set_state("Ready." if self._ready else None)
            return
        path = filedialog.askopenfilename(title="Add a document", filetypes=[("Text", "*.txt *.md *")])
        if path:
            self.add_document(Path(path))

    def _show_conversation(self) -> None:
        self.window.transcript.show(self.current.messages)
        self._show_list()
        self._set_state()

    def _show_list(self) -> None:
        every = self.conversations.all
        self.window.list.configure(state="normal")
        self.window.show_list([one.title for one in every], every.index(self.current))

    def _set_state(self, status: str | None = None) -> None:
        waits = self.current.document is not None
        self.window.set_state(ready=self._ready, busy=self._busy, document_waits=waits)
        if status is not None:
            self.window.status.configure(text=status)

    def _poll(self) -> None:
        """Takes what the engine has to say, a window's worth at a time."""
        for _ in range(200):
            try:
                event = self.engine.events.get_nowait()
            except queue.Empty:
                break
            if isinstance(event, Closed):
                self.closed = True
                self._root.destroy()
                return
            try:
                self._show(event)
            except Exception as error:  # what cannot be shown is no reason to show nothing more
                self.window.transcript.note(f"{type(error).__name__}: {error}", error=True)
        self._root.after(_POLL_MS, self._poll)

    def _show(self, event: Event) -> None:
        window = self.window
        if isinstance(event, Loading):
            self._set_state(f"Loading {event.name}, which takes up to {size(event.needs)}")
        elif isinstance(event, Loaded):
            self._ready, self._busy = True, False
            window.model.configure(text=f"{shortened(event.name, 28)}, {event.n_ctx:,} tokens")
            window.show_progress(0.0)
            self._set_state("Ready.")
        elif isinstance(event, Reading):
            window.show_progress(event.done / event.total)
            self._set_state(f"Reading: {event.done:,} of {event.total:,} tokens")
        elif isinstance(event, Piece):
            if not self._answering:
                self._answering = True
                window.transcript.answer()
                self._set_state("Answering \N{HORIZONTAL ELLIPSIS}")
            window.transcript.add(event.text)
        elif isinstance(event, Memory):
            window.gauge.show(event.now, event.full, event.archive)
        elif isinstance(event, Ended):
            self._ended(event)
        elif isinstance(event, Failed):
            window.transcript.note(event.text, error=True)
        elif isinstance(event, NotLoaded):
            self._not_loaded(event)

    def _ended(self, event: Ended) -> None:
        self._busy = self._answering = False
        if event.stopped:
            self.window.transcript.note("Stopped.")
        if not event.asked:
            self.window.entry.insert(0, self._question)  # to ask again
        self.window.show_progress(0.0)
        self._set_state("Stopped." if event.stopped else "Ready.")
        self._show_list()

    def _not_loaded(self, event: NotLoaded) -> None:
        self.window.transcript.note(event.text, error=True)
        self._ready, self._busy = event.ready, False
        if not event.ready:
            self.window.model.configure(text="no model")
        self.window.show_progress(0.0)
        self._set_state("Ready." if event.ready else "Open a model to begin.")
