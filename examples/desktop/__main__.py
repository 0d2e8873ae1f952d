"""A small chat window about documents, to be taken apart: `python examples/desktop [MODEL.gguf]`.

Needs Tk: it comes with Python, or as the package python3-tk. Conversations are kept in a folder, and go on
from there without reading their documents again.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from headkv_local import ModelError, default_model_path

try:
    import tkinter as tk

    from app import App
    from conversations import Conversations
    from engine import Engine
except ImportError as error:
    sys.exit(f"this window needs Tk, which is not there ({error}): install the package python3-tk")


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
    model = options.model
    if model is None:
        try:
            model = default_model_path()
        except ModelError as error:
            print(error, file=sys.stderr)  # one can be opened in the window
    try:
        root = tk.Tk()
    except tk.TclError as error:
        sys.exit(f"no window can be opened: {error}")
    try:
        conversations = Conversations(options.folder)
    except BlockingIOError:
        sys.exit(f"another window has the conversations in {options.folder}: give this one another --folder")
    except OSError as error:
        sys.exit(f"conversations cannot be kept in {options.folder}: {error.strerror}")
    engine = Engine()
    try:
        App(root, conversations, engine, model)
        root.mainloop()
    finally:  # also where the window cannot be made: the thread would keep the process
        engine.close()
        engine.join()
        conversations.close()


if __name__ == "__main__":
    main()
