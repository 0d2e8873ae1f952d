"""The option table of docs/chat.md, made from the parser so that the two cannot differ.

python -m headkv_local.chat.manual docs/chat.md
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from headkv_local.chat.args import build_parser
from headkv_local.chat.commands import COMMANDS

_BEGIN, _END = "<!-- {} begin: made by headkv_local.chat.manual -->", "<!-- {} end -->"


def options_table() -> str:
    """Markdown table of every argument of headkv-chat."""
    parser = build_parser()
    # argparse has no public list of its actions; its own formatter goes through this one.
    rows = [(_names(action), _help(parser, action)) for action in parser._actions]
    return _table(("argument", "meaning"), rows)


def commands_table() -> str:
    """Markdown table of the slash commands."""
    rows = [(f"`{f'/{name} {entry.argument}'.rstrip()}`", entry.help) for name, entry in COMMANDS.items()]
    return _table(("command", "what it does"), rows)


def fill_in(text: str) -> str:
    """`text` with both tables between their markers brought up to date. Raises ValueError without markers."""
    for name, table in (("options", options_table()), ("commands", commands_table())):
        begin, end = _BEGIN.format(name), _END.format(name)
        head, found, rest = text.partition(begin)
        _, closed, tail = rest.partition(end)
        if not found or not closed:
            raise ValueError(f"the markers of the {name} table are missing")
        text = f"{head}{begin}\n\n{table}\n{end}{tail}"
    return text


def _names(action: argparse.Action) -> str:
    if not action.option_strings:
        return f"`{action.metavar}`"
    value = ""
    if action.nargs != 0:
        choices = "|".join(str(choice) for choice in action.choices) if action.choices else ""
        value = f" {action.metavar or choices or action.dest.upper()}"
    return ", ".join(f"`{name}{value}`" for name in action.option_strings).replace("|", "\\|")


def _help(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    return (action.help or "") % {"default": action.default, "prog": parser.prog}


def _table(head: tuple[str, str], rows: list[tuple[str, str]]) -> str:
    return "".join(f"| {left} | {right} |\n" for left, right in [head, ("---", "---"), *rows])


if __name__ == "__main__":
    page = Path(sys.argv[1])
    page.write_text(fill_in(page.read_text(encoding="utf-8")), encoding="utf-8")
