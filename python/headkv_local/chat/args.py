"""The command line of headkv-chat: options and their checks."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from ..settings import ADVANCED, DEFAULT_BUDGET, INT32_MAX, MAX_CTX_BYTES, MAX_THREADS, parse_budget
from . import values
from .options import AUTO, MAX_TOKENS, expand
from .render import strip_control
from .sampling import Sampling
from .signatures import hint

_DESCRIPTION = """\
Chat with a GGUF model. Once a long prompt is read, every KV head keeps only its budget of rows. All rows
stay in an archive, and each turn chooses anew from them what to keep.
"""

_EPILOG = """\
Without -p and without piped input an interactive chat is started; /help lists its commands. Piped input is
a document where -p asks the question, and the question where it does not. The answer goes to standard
output, everything else to standard error. An option can also be set in the environment
(HEADKV_CHAT_TEMP=0) or in a file (--config). Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
"""


def build_parser() -> argparse.ArgumentParser:
    # Options has the defaults, and is told what was given
    unset = argparse.SUPPRESS
    parser = _Parser("headkv-chat", None, _DESCRIPTION, _EPILOG, argument_default=unset, allow_abbrev=False)
    parser.add_argument(
        "model",
        metavar="MODEL",
        nargs="?",
        type=expand,
        help="GGUF file (default: the installed default model)",
    )
    parser.add_argument(
        "-m", "--model", dest="named_model", metavar="MODEL", type=expand, help="the same, as an option"
    )
    parser.add_argument("-p", "--prompt", type=values.text, help="ask this one question and leave")
    parser.add_argument(
        "-f",
        "--file",
        dest="files",
        metavar="FILE",
        action="append",
        help="put this text, or those of a folder, before the question; repeatable, - is standard input",
    )
    parser.add_argument(
        "-sys", "--system", "--system-prompt", metavar="TEXT", type=values.text, help="system message"
    )
    parser.add_argument(
        "--budget",
        metavar="N",
        type=parse_budget,
        help="what to keep of a prompt: rows per KV head (128), a share of the prompt (5%%), "
        "memory for all of it (64MiB), or full for everything "
        f"(default: {DEFAULT_BUDGET})",
    )
    parser.add_argument(
        "--archive",
        metavar="WHERE",
        type=values.archive,
        help="where all rows of the prompts stay, so that each turn chooses anew what to keep: memory, the "
        "path of a file, or off; auto: memory where there is room, else a file in the cache folder "
        f"(default: {AUTO})",
    )
    parser.add_argument(
        "--session",
        metavar="FILE",
        type=values.path,
        help="go on with the chat in this file, if there is one, and save it there at the end; what is not "
        "given here (model, budget, system message, sampling, ...) is as it was",
    )
    parser.add_argument(
        "-c",
        "--ctx",
        "--ctx-size",
        metavar="N",
        type=values.context,
        help="context size in tokens, rounded up to a multiple of 256; 0: what the model was trained for, "
        f"{AUTO}: as much of that as memory has room for (default: what it was trained for, "
        f"but no more than {MAX_CTX_BYTES // 1024**3} GiB of full cache, nor half of the memory beside the "
        "weights)",
    )
    parser.add_argument(
        "-t",
        "--threads",
        metavar="N",
        type=values.integer(1, MAX_THREADS),
        help="CPU threads (default: one per physical core)",
    )
    parser.add_argument(
        "-ngl",
        "--gpu-layers",
        metavar="N",
        type=values.integer(-1, INT32_MAX),
        help="layers on a GPU, each with its share of the cache; -1: all (default: all, if there is a GPU)",
    )
    parser.add_argument(
        "-n",
        "--max-tokens",
        "--predict",
        metavar="N",
        type=values.tokens,
        help=f"longest answer, in tokens; -1: up to the end of the context (default: {MAX_TOKENS})",
    )
    _add_sampling(parser)
    parser.add_argument(
        "--json", action=Switch, help="print each answer as one JSON object with usage and stats"
    )
    parser.add_argument(
        "--stream",
        action=Switch,
        help="print the answer as it comes, or when it is complete (default: as it comes)",
    )
    parser.add_argument(
        "--markdown",
        choices=["auto", "off"],
        help="auto: show headings, lists, bold text, ... as such where the answer goes to a terminal; off: "
        "as they are written (default: auto)",
    )
    parser.add_argument(
        "--thinking",
        choices=["auto", "show", "hide"],
        help="blocks in which a model thinks before it answers; auto: hidden on a terminal, where /thinking "
        "shows them, else a part of the answer (default: auto)",
    )
    parser.add_argument(
        "--color",
        choices=["auto", "always", "never"],
        help="colours on standard error; auto: on a terminal unless NO_COLOR is set (default: auto)",
    )
    parser.add_argument(
        "--history", metavar="FILE", help="keep the typed lines in this file (default: only in memory)"
    )
    parser.add_argument("--verbose", action=Switch, help="log to standard error")
    parser.add_argument(
        "--config",
        metavar="FILE",
        type=values.path,
        help="TOML file with settings, each under the name of its option (default: chat.toml in the "
        "configuration folder, if there is one)",
    )
    parser.add_argument(
        "--show-config",
        action="store_true",
        help="print all settings as such a file, each with where it comes from, and leave",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and leave")

    _add_form(parser)
    _add_retention(parser)
    return parser


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "sampling",
        "What is not given here is as the model file recommends (general.sampling.*). At --temp 0 an answer "
        "is the likeliest token every time, and of the other settings only a given --repeat-penalty counts.",
    )
    recommended = "default: the model's, else"
    usual = Sampling()
    group.add_argument(
        "--temp",
        metavar="T",
        type=values.real(0.0),
        help=f"temperature; 0 always takes the likeliest token ({recommended} {usual.temp:g})",
    )
    group.add_argument(
        "--top-k",
        metavar="N",
        type=values.integer(0, INT32_MAX),
        help=f"draw from the N likeliest tokens, 0: from all ({recommended} {usual.top_k})",
    )
    group.add_argument(
        "--top-p",
        metavar="P",
        type=values.real(0.0, 1.0),
        help=f"draw from the likeliest tokens that make up this probability ({recommended} {usual.top_p:g})",
    )
    group.add_argument(
        "--min-p",
        metavar="P",
        type=values.real(0.0, 1.0),
        help=f"leave out tokens below this share of the likeliest one ({recommended} {usual.min_p:g})",
    )
    group.add_argument(
        "--repeat-penalty",
        metavar="X",
        type=values.real(0.01),
        help=f"makes the latest tokens less likely ({recommended} {usual.repeat_penalty:g}; at --temp 0: 1)",
    )
    group.add_argument(
        "-s",
        "--seed",
        metavar="N",
        type=values.seed,
        help="random seed; with the same one the same question gets the same answer; -1: a new one "
        "(default: a new one)",
    )


def _add_form(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("form of the answer").add_mutually_exclusive_group()
    group.add_argument(
        "-j",
        "--json-schema",
        metavar="SCHEMA",
        type=values.text,
        help="answer with JSON that this schema describes: a file, or the schema itself",
    )
    group.add_argument(
        "--grammar",
        metavar="GBNF",
        type=values.text,
        help="answer with what this grammar of llama.cpp describes: a file, or the grammar itself",
    )


def _add_retention(parser: argparse.ArgumentParser) -> None:
    advanced = parser.add_argument_group(
        "retention, advanced",
        "What is not given here, and has no default, is as the head scores' file recommends.",
    )
    advanced.add_argument(
        "--scores",
        metavar="FILE",
        type=values.path,
        help="GGUF file with head scores, or 'uniform' (default: those that come with the model)",
    )
    for name, setting in ADVANCED.items():
        metavar = "X" if setting.of_text is float else "N"
        advanced.add_argument(f"--{name}", metavar=metavar, type=setting.of_text, help=setting.meaning)


class _Parser(argparse.ArgumentParser):
    """A second name without an option is most often a document."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        known, extra = self.parse_known_args(args, namespace)
        if extra:
            names = [name for name in extra if not name.startswith("-")]
            meant = f"; {hint(names[0])}" if names == extra else ""
            self.error(f"unrecognized arguments: {' '.join(extra)}{meant}")
        return known

    def _print_message(self, message: str, file: Any = None) -> None:
        """argparse leaves it at nothing where standard output cannot be written.

        An error names what was given, such as a file that the shell has found, and must not steer a terminal.
        """
        if file is None or file is not sys.stdout:
            super()._print_message(strip_control(message or ""), file)
        else:
            file.write(message)


class Switch(argparse.Action):
    """Two options, --NAME and --no-NAME."""

    def __init__(self, option_strings: Sequence[str], dest: str, **kwargs: Any) -> None:
        names = [name for yes in option_strings for name in (yes, yes.replace("--", "--no-", 1))]
        super().__init__(names, dest, nargs=0, **kwargs)

    def __call__(
        self,
        _: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option: str | None = None,
    ) -> None:
        setattr(namespace, self.dest, not str(option).startswith("--no-"))


class _Version(argparse.Action):
    """As argparse's own version action, but the package's version is looked up only when asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from headkv_local import __version__

        parser._print_message(f"headkv-chat {__version__}\n", sys.stdout)
        parser.exit()
