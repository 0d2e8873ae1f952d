"""The command `headkv doctor`."""

from __future__ import annotations

import argparse
import shutil
import sys
import textwrap
from typing import Any

_DESCRIPTION = """\
Decode a few tokens of the default model in a process of its own, compare the result with plain matrix
products, and print what a bug report needs. Exit code 1 if the library crashes or computes something else.
"""


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "doctor",
        help="check the installed library, and print what a bug report needs",
        description=_DESCRIPTION,
    )
    parser.add_argument("--check", action="store_true", help="print the result of the check alone")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from .build import Build
    from .check import check

    build = Build.installed()
    verdict = check(build)
    if options.check:
        stream = sys.stderr if verdict.ok is False else sys.stdout
        print(f"headkv doctor: {verdict.text}", file=stream)
        return int(verdict.ok is False)
    from .facts import facts

    width = max(20, shutil.get_terminal_size().columns - 1)
    for name, value in [*facts(build, verdict.about), ("check", verdict.text)]:
        lines = textwrap.wrap(
            f"{name}: {value}",
            width,
            subsequent_indent="    ",
            break_on_hyphens=False,
            break_long_words=False,
        )
        print("\n".join(lines))
    return int(verdict.ok is False)
