"""Tables, shares with their interval, and JSON."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from importlib.metadata import version
from itertools import combinations
from math import sqrt
from pathlib import Path
from typing import Any

import llama_cpp

from headkv_local.devices import gpus
from headkv_local.errors import ArgumentError
from headkv_local.exits import is_nobody_there, say_no_more
from headkv_local.files import replacing
from headkv_local.machine import cpu_name

from .contexts import Setup

_KINDS = ("speed", "orders", "cancel", "quality", "turns", "suite", "demo")  # of documents
_Z = 1.959964  # 95 % of a normal distribution


def wilson(hits: float, total: float) -> tuple[float, float]:
    """The 95 % Wilson score interval of a share, (0.0, 1.0) where nothing was tried.

    hits: also a sum of scores from 0 to 1, whose variance is at most that of as many hits.
    """
    if total == 0:
        return 0.0, 1.0
    share = hits / total
    spread = _Z * sqrt(share * (1 - share) / total + _Z**2 / (4 * total**2))
    middle = share + _Z**2 / (2 * total)
    scale = 1 + _Z**2 / total
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns, the first to the left and the others to the right."""
    widths = [max(len(line[i]) for line in [header, *rows]) for i in range(len(header))]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(_aligned(line, widths) for line in lines)


def mebibytes(n_bytes: float | None) -> str:
    return "not available" if n_bytes is None else f"{n_bytes / 2**20:.1f} MiB"


def environment() -> dict[str, Any]:
    """What the figures depend on besides their settings."""
    return {
        "headkv_local": version("headkv-local"),
        "llama_cpp_python": llama_cpp.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": cpu_name(),
        "cpus": os.cpu_count(),
        "gpus": [gpu.description for gpu in gpus()],
    }


def document(bench: str, setup: Setup, settings: Mapping[str, Any], **found: Any) -> dict[str, Any]:
    """What --json writes of a bench."""
    return {
        "bench": bench,
        "environment": environment(),
        "setup": asdict(setup),
        "settings": dict(settings),
        **found,
    }


def is_ours(found: bytes) -> bool:
    """Whether it is what document() makes, or the demo."""
    try:
        data = json.loads(found)
    except (ValueError, RecursionError):
        return False
    if not isinstance(data, dict) or data.get("bench") not in _KINDS:
        return False
    about = data.get("environment")
    return isinstance(about, dict) and "headkv_local" in about and isinstance(data.get("settings"), dict)


def check_target(target: str | None, may_replace: Callable[[bytes], bool] = is_ours) -> None:
    """Raises OSError before the measuring if the file could not be written after it, ArgumentError if another
    one would be lost. may_replace: of the bytes of a file that there is.
    """
    if target is not None and target != "-":
        path = Path(target)
        if path.is_symlink() and not path.exists():  # it stays, and what it leads to is made later
            path = path.resolve()
        if path.is_file() and path.stat().st_size > 0 and not may_replace(path.read_bytes()):
            raise ArgumentError(f"{target} is another file, and would be lost: give another name")
        is_new = not path.exists()
        path.open("a", encoding="utf-8").close()
        if is_new:  # a run that fails leaves no empty file behind
            path.unlink()


def require_different(**targets: str | Path | None) -> None:
    """Raises ArgumentError where two options name one file, which would lose what comes first."""
    named = [(name, path) for name, path in targets.items() if path is not None and str(path) != "-"]
    for (name, path), (other, theirs) in combinations(named, 2):
        if Path(path).resolve() == Path(theirs).resolve():
            raise ArgumentError(f"--{name} and --{other} both name {path}: give two files")


def write(text: str, data: dict[str, Any], target: str | None) -> None:
    """Print the table on stdout and write data to the file target.

    With the target "-" the JSON alone goes to stdout, and the table to stderr.
    """
    if target == "-":
        show(text, target)
        save(data, target)
    else:  # the file is there, whatever becomes of the output
        save(data, target)
        show(text, target)


def show(text: str, target: str | None) -> None:
    """Where the JSON is wanted too, nobody has to read the output to its end."""
    if target == "-":
        with suppress(OSError):
            print(text, file=sys.stderr, flush=True)
        return
    try:
        print(text, flush=True)
    except OSError as error:
        if target is None or not is_nobody_there(error):
            raise
        say_no_more()


def save(data: dict[str, Any] | None, target: str | None) -> None:
    """data: None where there is nothing."""
    if data is None or target is None:
        return
    if target == "-":  # which need not be able to encode every letter
        sys.stdout.write(json.dumps(data, indent=1) + "\n")
        return
    encoded = json.dumps(data, indent=1, ensure_ascii=False) + "\n"
    with writing(target) as path:
        path.write_text(encoded, encoding="utf-8")


@contextmanager
def saving(made: Callable[[], dict[str, Any] | None], target: str | None) -> Iterator[None]:
    """What is made at the end goes to the target, also where an interrupt or an error is the end.

    made: None where nothing was measured.
    """
    try:
        yield
    except BaseException:
        with suppress(OSError):  # why it ended is said then
            save(made(), target)
        raise
    save(made(), target)


@contextmanager
def writing(target: str) -> Iterator[Path]:
    """Where to write it: beside the file, whose place it then takes as a whole.

    Links, as /dev/stdout, and what is no file, as a pipe, are written as they lie; so is a file whose folder
    takes no other one. Raises OSError that names the target.
    """
    path = Path(target)
    as_it_lies = path.is_symlink() or (path.exists() and not path.is_file())
    if not as_it_lies and os.access(path.parent, os.W_OK):
        with replacing(path) as temporary:
            yield temporary
        return
    try:
        yield path
    except OSError as error:
        raise OSError(f"{target} cannot be written: {error.strerror or error}") from error


def _aligned(line: Sequence[str], widths: Sequence[int]) -> str:
    cells = [line[0].ljust(widths[0])]
    cells += [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
    return "  ".join(cells).rstrip()
