"""The command line of headkv-chat: options and their checks."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any

from ..settings import DEFAULT_BUDGET, INT32_MAX, MAX_THREADS
from .options import AUTO, MAX_CTX_BYTES, MAX_TOKENS, MEMORY, OFF, Options, expand, parse_budget
from .sampling import Sampling

_DESCRIPTION = """\
Chat with a GGUF model. Once a long prompt is read, every KV head keeps only its budget of rows. All rows
stay in an archive, and each turn chooses anew from them what to keep.
"""

_EPILOG = """\
Without -p and without piped input an interactive chat is started; /help lists its commands. Piped input is
a document where -p asks the question, and the question where it does not. The answer goes to standard
output, everything else to standard error. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
"""


def build_parser() -> argparse.ArgumentParser:
    # Options has the defaults, and is told what was given
    unset = argparse.SUPPRESS
    parser = _Parser("headkv-chat", None, _DESCRIPTION, _EPILOG, argument_default=unset, allow_abbrev=False)
    parser.add_argument(
        "model", metavar="MODEL", nargs="?", help="GGUF file (default: the installed default model)"
    )
    parser.add_argument("-m", "--model", dest="named_model", metavar="MODEL", help="the same, as an option")
    parser.add_argument("-p", "--prompt", type=_text, help="ask this one question and leave")
    parser.add_argument(
        "-f",
        "--file",
        dest="files",
        metavar="FILE",
        action="append",
        help="put this text before the question; repeatable, - is standard input",
    )
    parser.add_argument(
        "-sys", "--system", "--system-prompt", metavar="TEXT", type=_text, help="system message"
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
        type=_archive,
        help="where all rows of the prompts stay, so that each turn chooses anew what to keep: memory, the "
        "path of a file, or off; auto: memory where there is room, else a file in the cache folder "
        f"(default: {AUTO})",
    )
    parser.add_argument(
        "--session",
        metavar="FILE",
        type=_session,
        help="go on with the chat in this file, if there is one, and save it there at the end; what is not "
        "given here (model, budget, system message, sampling, ...) is as it was",
    )
    parser.add_argument(
        "-c",
        "--ctx",
        "--ctx-size",
        metavar="N",
        type=lambda text: AUTO if text == AUTO else _integer(0, INT32_MAX)(text),
        help="context size in tokens, 0: what the model was trained for, "
        f"{AUTO}: as much of that as memory has room for (default: what it was trained for, "
        f"but no more than {MAX_CTX_BYTES // 1024**3} GiB of full cache)",
    )
    parser.add_argument(
        "-t",
        "--threads",
        metavar="N",
        type=_integer(1, MAX_THREADS),
        help="CPU threads (default: one per physical core)",
    )
    parser.add_argument(
        "-ngl",
        "--gpu-layers",
        metavar="N",
        type=_integer(-1, INT32_MAX),
        help="layers on a GPU, each with its share of the cache; -1: all (default: all, if there is a GPU)",
    )
    parser.add_argument(
        "-n",
        "--max-tokens",
        "--predict",
        metavar="N",
        type=_tokens,
        help=f"longest answer, in tokens; -1: up to the end of the context (default: {MAX_TOKENS})",
    )
    _add_sampling(parser)
    parser.add_argument(
        "--json", action="store_true", help="print each answer as one JSON object with usage and stats"
    )
    parser.add_argument(
        "--no-stream", dest="stream", action="store_false", help="print the answer when it is complete"
    )
    parser.add_argument(
        "--color",
        choices=["auto", "always", "never"],
        help="colours on standard error; auto: on a terminal unless NO_COLOR is set (default: auto)",
    )
    parser.add_argument(
        "--history", metavar="FILE", help="keep the typed lines in this file (default: only in memory)"
    )
    parser.add_argument("--verbose", action="store_true", help="log to standard error")
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and leave")

    _add_retention(parser)
    return parser


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "sampling",
        "What is not given here is as the model file recommends (general.sampling.*). At --temp 0 an answer "
        "is the likeliest token every time, and none of the other settings counts unless it is given.",
    )
    recommended = "default: the model's, else"
    usual = Sampling()
    group.add_argument(
        "--temp",
        metavar="T",
        type=_real(0.0),
        help=f"temperature; 0 always takes the likeliest token ({recommended} {usual.temp:g})",
    )
    group.add_argument(
        "--top-k",
        metavar="N",
        type=_integer(0, INT32_MAX),
        help=f"draw from the N likeliest tokens, 0: from all ({recommended} {usual.top_k})",
    )
    group.add_argument(
        "--top-p",
        metavar="P",
        type=_real(0.0, 1.0),
        help=f"draw from the likeliest tokens that make up this probability ({recommended} {usual.top_p:g})",
    )
    group.add_argument(
        "--min-p",
        metavar="P",
        type=_real(0.0, 1.0),
        help=f"leave out tokens below this share of the likeliest one ({recommended} {usual.min_p:g})",
    )
    group.add_argument(
        "--repeat-penalty",
        metavar="X",
        type=_real(0.01),
        help=f"makes the latest tokens less likely ({recommended} {usual.repeat_penalty:g}; at --temp 0: 1)",
    )
    group.add_argument(
        "-s",
        "--seed",
        metavar="N",
        type=_integer(0, 2**32 - 1),
        help="random seed; with the same one the same question gets the same answer (default: a new one)",
    )


def _add_retention(parser: argparse.ArgumentParser) -> None:
    advanced = parser.add_argument_group(
        "retention, advanced", "What is not given here is as the head scores' file recommends."
    )
    advanced.add_argument(
        "--scores",
        metavar="FILE",
        help="GGUF file with head scores, or 'uniform' (default: those that come with the model)",
    )
    advanced.add_argument(
        "--beta",
        metavar="X",
        type=float,
        help="above 1; how far budgets follow the head scores: the higher, the flatter the budgets",
    )
    advanced.add_argument(
        "--window",
        metavar="N",
        type=int,
        help="last prompt tokens that every KV head keeps",
    )
    advanced.add_argument(
        "--kernel",
        metavar="N",
        type=int,
        help="odd width of the max-pool over the positions of a sentence",
    )
    advanced.add_argument(
        "--sinks",
        metavar="N",
        type=int,
        help="how many of the first tokens are always kept",
    )


def parse_options(argv: list[str] | None, parser: argparse.ArgumentParser) -> Options:
    """Options from `argv` (None: the process's own). Exits as argparse does: 0 after --help, 2 on misuse."""
    space = vars(parser.parse_args(argv))
    space.pop("version", None)
    named, model = space.pop("named_model", None), space.pop("model", None)
    if named is not None and model is not None:
        parser.error(f"two models are given, '{model}' and '{named}'; a document is given with -f")
    for path in (path for path in (model, named) if path is not None):
        space["model"] = expand(path)
    space["files"] = tuple(space.get("files", ()))
    if space["files"].count("-") > 1:
        parser.error("standard input can be read once: give '-f -' only once")
    return Options(**space, given=frozenset(space))


class _Parser(argparse.ArgumentParser):
    """A second name without an option is most often a document."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        known, extra = self.parse_known_args(args, namespace)
        if extra:
            names = [name for name in extra if not name.startswith("-")]
            hint = f"; a document is given with -f: -f '{names[0]}'" if names == extra else ""
            self.error(f"unrecognized arguments: {' '.join(extra)}{hint}")
        return known


class _Version(argparse.Action):
    """As argparse's own version action, but the package's version is looked up only when asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from headkv_local import __version__

        print(f"headkv-chat {__version__}")
        parser.exit()


def _text(text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError("the text is not valid UTF-8") from None
    if not text.strip():
        raise argparse.ArgumentTypeError("the text is empty")
    return text


def _archive(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("it is auto, memory, off, or the path of a file")
    return text if text in (AUTO, MEMORY, OFF) else expand(text)


def _session(text: str) -> str:
    if text in ("", "-"):
        raise argparse.ArgumentTypeError("it is the path of a file")
    return expand(text)


def _integer(low: int, high: int | None = None) -> Callable[[str], int]:
    wanted = f"a whole number from {low}" + (" up" if high is None else f" to {high}")

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if value < low or (high is not None and value > high):
            raise argparse.ArgumentTypeError(f"'{text}' is not {wanted}")
        return value

    return convert


def _tokens(text: str) -> int:
    try:
        return _integer(-1)(text) or _integer(1)(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from 1 up, or -1") from None


def _real(low: float, high: float = math.inf) -> Callable[[str], float]:
    wanted = f"a number from {low:g} " + ("up" if high == math.inf else f"to {high:g}")

    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or not low <= value <= high:
            raise argparse.ArgumentTypeError(f"'{text}' is not {wanted}")
        return value

    return convert
