"""Colours and fonts, in one place."""

from __future__ import annotations

import tkinter as tk
from tkinter import font, ttk

PAPER, PANEL, LINE = "#ffffff", "#f3f4f6", "#d8dbe0"
TEXT, FAINT = "#1f2328", "#68707b"
ACCENT, KEPT, TROUGH, WARNING = "#2f6fde", "#2f9e6e", "#dfe3e8", "#b3261e"
PAD = 10


def apply(root: tk.Tk) -> None:
    """For all that is in the window."""
    root.configure(background=PANEL)
    for name in ("TkDefaultFont", "TkTextFont", "TkMenuFont"):
        font.nametofont(name).configure(size=11)
    style = ttk.Style(root)
    style.theme_use("clam")  # the one that looks the same everywhere
    style.configure(".", background=PANEL, foreground=TEXT, bordercolor=LINE, focuscolor=ACCENT)
    style.configure("Faint.TLabel", foreground=FAINT)
    style.configure("TButton", padding=(12, 5), background=PAPER, lightcolor=PAPER, darkcolor=PAPER)
    style.map("TButton", background=[("active", TROUGH)], foreground=[("disabled", "#a6adb6")])
    style.configure("Accent.TButton", background=ACCENT, foreground="#ffffff", bordercolor=ACCENT)
    style.configure("Accent.TButton", lightcolor=ACCENT, darkcolor=ACCENT)
    style.map(
        "Accent.TButton",
        background=[("disabled", TROUGH), ("active", "#2459b8")],
        foreground=[("disabled", "#a6adb6")],
        **{name: [("disabled", TROUGH)] for name in ("bordercolor", "lightcolor", "darkcolor")},
    )
    style.configure("TProgressbar", troughcolor=TROUGH, background=ACCENT, thickness=10)
    style.configure("TProgressbar", bordercolor=TROUGH, lightcolor=ACCENT, darkcolor=ACCENT)
