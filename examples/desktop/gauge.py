"""A bar that shows how much of the full KV cache is held now."""

from __future__ import annotations

import tkinter as tk
from tkinter import ttk

import style

_HEIGHT = 10


def size(n: int) -> str:
    """Bytes for a reader."""
    return f"{n / 2**30:.1f} GiB" if n >= 2**30 else f"{n / 2**20:.1f} MiB"


class Gauge(ttk.Frame):
    """The trough is the cache for all of the context, the bar what is held."""

    def __init__(self, parent: tk.Misc) -> None:
        super().__init__(parent)
        self._share = 0.0
        self._text = ttk.Label(self, style="Faint.TLabel", text="no model")
        self._text.pack(anchor="w")
        self.bar = tk.Canvas(self, height=_HEIGHT, width=120, background=style.TROUGH, highlightthickness=0)
        self.bar.pack(fill="x", pady=(4, 0))
        self.bar.bind("<Configure>", lambda _: self._draw())

    def show(self, now: int, full: int, archive: int) -> None:
        """In bytes."""
        self._share = now / full if full else 0.0
        archived = f"\n+ {size(archive)} archive" if archive else ""
        self._text.configure(text=f"cache {size(now)} of {size(full)}{archived}")
        self._draw()

    def _draw(self) -> None:
        width = self.bar.winfo_width()
        held = round(width * min(self._share, 1.0))
        self.bar.delete("all")
        if held:
            self.bar.create_rectangle(0, 0, held, _HEIGHT, fill=style.KEPT, width=0)
