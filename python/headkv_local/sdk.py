"""`headkv sdk`: the folder that C and C++ programs are built with.

It holds the headers, and what CMake and pkg-config ask for; the libraries are those that this package uses.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .errors import UnsupportedError


def folder() -> Path:
    """For CMAKE_PREFIX_PATH; its lib/pkgconfig for PKG_CONFIG_PATH. Loads nothing.

    Raises UnsupportedError where the package was not installed from a wheel.
    """
    found = Path(__file__).resolve().parent / "_sdk"
    if not (found / "include" / "headkv" / "headkv.h").is_file():
        raise UnsupportedError(f"{found} is missing: install headkv-local from its wheel, or build it")
    return found


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "sdk",
        help="the folder that C and C++ programs are built with",
        description="Print the folder that C and C++ programs are built with: "
        'cmake -DCMAKE_PREFIX_PATH="$(headkv sdk)", or PKG_CONFIG_PATH="$(headkv sdk)/lib/pkgconfig".',
    )
    parser.set_defaults(run=_run)


def _run(_: argparse.Namespace) -> None:
    print(folder())
