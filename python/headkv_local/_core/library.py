"""Which native library and which llama_cpp are used.

The wheel holds the Python files of the pinned llama-cpp-python, whose ctypes structs must fit the library,
and the library where these look for it: _vendor/llama_cpp/lib. The line in headkv_local.pth puts _vendor at
the end of sys.path, so that any program of the environment finds this llama_cpp where no other one is
installed. Once headkv_local is imported it stands first.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Final

from ..errors import LibraryConflictError

_VARIABLE: Final = "LLAMA_CPP_LIB_PATH"  # llama_cpp takes the library from there
_FILE_NAME: Final = {"win32": "llama.dll", "darwin": "libllama.dylib"}.get(sys.platform, "libllama.so")

_logger = logging.getLogger("headkv_local")  # without a handler: Python shows its warnings on stderr then


def vendor_dir() -> Path:
    """The folder with this package's llama_cpp."""
    return Path(__file__).resolve().parent.parent / "_vendor"


def library_dir() -> Path:
    """The folder with the libllama and libggml* that this package uses. Loads nothing."""
    return vendor_dir() / "llama_cpp" / "lib"


def library_path() -> Path:
    """The libllama of this package. LibraryConflictError if it is not there."""
    path = library_dir() / _FILE_NAME
    if not path.is_file():
        raise LibraryConflictError(
            f"the native library {path} is missing: install headkv-local from its wheel, or build it"
        )
    return path


def claim() -> None:
    """See to it that llama_cpp is ours, or make sure that what was imported before is.

    Raises LibraryConflictError if another llama_cpp, or ours with another library, was imported before.
    """
    if "llama_cpp" in sys.modules:
        loaded = loaded_dir()
        if loaded != library_dir():
            raise LibraryConflictError(
                f"llama_cpp was imported before with the library in {loaded}: import headkv_local first, it "
                f"needs the one in {library_dir()}"
            )
        return
    theirs = os.environ.get(_VARIABLE)
    if theirs and Path(theirs).resolve() != library_dir():
        _logger.warning("%s=%s is set aside for %s", _VARIABLE, theirs, library_dir())
        del os.environ[_VARIABLE]
    ours = str(vendor_dir())
    sys.path[:] = [ours, *(entry for entry in sys.path if entry != ours)]


def loaded_dir() -> Path | None:
    """The folder that llama_cpp has loaded its library from, None if that cannot be told."""
    base = getattr(sys.modules.get("llama_cpp.llama_cpp"), "_base_path", None)
    return None if base is None else Path(base).resolve()
