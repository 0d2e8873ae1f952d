"""llama.cpp's log lines go to logging, and the process's file descriptors are left alone.

llama_cpp prints the lines to stderr, and with verbose=False it points the file descriptors 1 and 2 of
the whole process to /dev/null while a model is loaded, whatever other threads write meanwhile. With this
module the lines go to the logger "headkv_local.llama_cpp", and to stderr as well where llama_cpp is
verbose; the swap is not needed then.
"""

from __future__ import annotations

import ctypes
import logging
import sys
import threading
from _thread import get_ident, start_new_thread
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Final

import llama_cpp
from llama_cpp import _internals, _logger, llama, llama_chat_format

_LEVELS: Final = {1: logging.DEBUG, 2: logging.INFO, 3: logging.WARNING, 4: logging.ERROR}
_CONTINUED: Final = 5

logger = logging.getLogger("headkv_local.llama_cpp")
logger.addHandler(logging.NullHandler())  # what llama.cpp warns of is for those who ask


class _PerThread(threading.local):
    level = logging.INFO
    text = ""
    errors: list[str] | None = None

    def __init__(self) -> None:
        self.to_raise: list[type[BaseException]] = []  # what a callback of llama.cpp could not raise


_thread = _PerThread()


def _log(level: int, text: bytes, user_data: ctypes.c_void_p) -> None:
    if _logger.logger.level == logging.DEBUG:  # what verbose=True sets
        _logger.llama_log_callback(level, text, user_data)
    if level != _CONTINUED:
        _thread.level = _LEVELS.get(level, logging.INFO)
    *lines, _thread.text = (_thread.text + text.decode("utf-8", errors="replace")).split("\n")
    for line in lines:
        if not line.strip(" ."):
            continue
        logger.log(_thread.level, "%s", line)
        if _thread.errors is not None and _thread.level >= logging.ERROR:
            _thread.errors.append(line.strip())


_on_log = llama_cpp.llama_log_callback(_log)


def _raised_in_callback(unraisable: sys.UnraisableHookArgs) -> None:
    """Ctrl-C while llama.cpp calls back is raised in the callback, often before its first line, and ctypes
    hands it here. It is raised again when the thread is back in Python code. Should that be the next
    callback, it comes here once more, until the call of llama.cpp has returned.
    """
    kind, module = unraisable.exc_type, getattr(unraisable.object, "__module__", None) or ""
    if module.partition(".")[0] in ("headkv_local", "llama_cpp") and not issubclass(kind, Exception):
        # That thread lets go of the interpreter when the callback has returned; only then the new one runs,
        # but for a busy machine, where it can come first: what is raised here would be lost.
        raised = False
        while not raised:
            try:
                _thread.to_raise.append(kind)
                start_new_thread(_raise_in, (get_ident(), _thread.to_raise))
                raised = True
            except Exception:  # no thread can be had; collected_errors() raises it
                raised = True
            except BaseException as error:
                kind = type(error)
    else:
        _hook_before(unraisable)


def _raise_in(thread: int, to_raise: list[type[BaseException]]) -> None:
    with suppress(IndexError):  # it is raised already
        kind = to_raise.pop()
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(kind))


_hook_before = sys.unraisablehook


@contextmanager
def collected_errors() -> Iterator[list[str]]:
    """The error lines that llama.cpp logs from this thread meanwhile.

    Raises what was to be raised in a callback, if a busy machine has not got round to it yet.
    """
    before, _thread.errors = _thread.errors, []
    try:
        yield _thread.errors
    finally:
        _thread.errors = before
    with suppress(IndexError):
        raise _thread.to_raise.pop()


def _no_swap(disable: bool = True) -> AbstractContextManager[None]:
    """In place of llama_cpp's suppress_stdout_stderr."""
    return nullcontext()


def install() -> None:
    """Once per process, when this package first loads llama_cpp."""
    for module in (llama, _internals, llama_chat_format):
        vars(module)["suppress_stdout_stderr"] = _no_swap
    llama_cpp.llama_log_set(_on_log, ctypes.c_void_p(0))
    sys.unraisablehook = _raised_in_callback


install()
