"""A small chat window about documents, to be taken apart: `python examples/desktop [MODEL.gguf]`.

Needs Tk: it comes with Python, or as the package python3-tk. Conversations are kept in a folder, and go on
from there without reading their documents again.
"""

from __future__ import annotations

import argparse
import tkinter as tk
from pathlib import Path

from app import App

from headkv_local import default_model_path


def main() -> None:
    parser = argparse.ArgumentParser(prog="desktop", description=__doc__.split("\n", 1)[0])
    parser.add_argument("model", nargs="?", type=Path, help="a GGUF file; the default model if left out")
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path.home() / ".local" / "share" / "headkv-desktop",
        help="where conversations are kept",
    )
    options = parser.parse_args()
    root = tk.Tk()
    app = App(root, options.folder, options.model or default_model_path())
    try:
        root.mainloop()
    finally:
        app.engine.close()


if __name__ == "__main__":
    main()
