"""Finds the native library of this package and makes llama_cpp load that one and no other.

llama_cpp reads LLAMA_CPP_LIB_PATH once, when it is first imported. So the variable is set when
headkv_local is imported; processes started from here inherit it.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Final

from .errors import LibraryConflictError

_VARIABLE: Final = "LLAMA_CPP_LIB_PATH"
_FILE_NAME: Final = {"win32": "llama.dll", "darwin": "libllama.dylib"}.get(sys.platform, "libllama.so")

_logger = logging.getLogger("headkv_local")  # without a handler: Python shows its warnings on stderr then


def library_dir() -> Path:
    """The folder with libllama and libggml*: lib/ in this package."""
    return Path(__file__).resolve().parent / "lib"


def library_path() -> Path:
    """The libllama of this package. LibraryConflictError if it is not there."""
    path = library_dir() / _FILE_NAME
    if not path.is_file():
        raise LibraryConflictError(
            f"the native library {path} is missing: install headkv-local from its wheel, or build it"
        )
    return path


def claim() -> None:
    """Point llama_cpp to our library, or make sure that it was imported with it.

    Raises LibraryConflictError if llama_cpp was imported before with another library.
    """
    ours = library_dir()
    if "llama_cpp" not in sys.modules:
        theirs = os.environ.get(_VARIABLE)
        if theirs and Path(theirs).resolve() != ours:
            _logger.warning("%s=%s is set aside for %s", _VARIABLE, theirs, ours)
        os.environ[_VARIABLE] = str(ours)
        return
    loaded = loaded_dir()
    if loaded != ours:
        raise LibraryConflictError(
            f"llama_cpp was imported before with the library in {loaded}: import headkv_local first, it "
            f"needs the one in {ours}"
        )


def loaded_dir() -> Path | None:
    """The folder that llama_cpp has loaded its library from, None if that cannot be told."""
    base = getattr(sys.modules.get("llama_cpp.llama_cpp"), "_base_path", None)
    return None if base is None else Path(base).resolve()
