"""The command line of headkv-chat: options, their checks and their defaults."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from .._defaults import DEFAULT_BUDGET, given
from .._limits import INT32_MAX, MAX_THREADS

if TYPE_CHECKING:
    from headkv_local import Retention

MAX_TOKENS = 1024
MAX_CTX_BYTES = 2 * 1024**3

_DESCRIPTION = """\
Chat with a GGUF model. Once a long prompt is read, every KV head keeps only its budget of entries and
the rest of the KV cache is freed; later turns go on from what was kept.
"""

_EPILOG = """\
Without -p and without piped input an interactive chat is started; /help lists its commands. Piped input is
a document where -p asks the question, and the question where it does not. The answer goes to standard
output, everything else to standard error. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
"""

_ENTRIES = re.compile(r"-?[0-9]{1,18}")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line asks for; `budget` None: the full cache, `ctx` None: chosen from the model."""

    model: str | None = None
    prompt: str | None = None
    files: tuple[str, ...] = ()
    system: str | None = None
    budget: int | str | None = DEFAULT_BUDGET
    scores: str | None = None  # None: those that come with the model
    beta: float | None = None  # None, here and below: what the scores recommend
    window: int | None = None
    kernel: int | None = None
    sinks: int | None = None
    ctx: int | None = None
    threads: int | None = None
    gpu_layers: int | None = None  # None: all where there is a GPU
    max_tokens: int = MAX_TOKENS
    temp: float = 0.0
    seed: int | None = None
    json: bool = False
    stream: bool = True
    color: Literal["auto", "always", "never"] = "auto"
    history: str | None = None
    verbose: bool = False

    def retention(self, budget: int | str | None) -> Retention | None:
        """What `budget` keeps with the other settings as they are; None for the full cache.

        Raises ArgumentError.
        """
        from headkv_local import (
            Retention,
        )  # not at the top: it imports numpy, and --help need not wait for it

        if budget is None:
            return None
        return Retention(budget=budget, scores=self.scores, **given(self))


def parse_budget(text: str) -> int | str | None:
    """Entries per KV head (int), None for "full", and whatever else as it is: Retention judges it."""
    text = text.strip()
    if text.lower() == "full":
        return None
    return int(text) if _ENTRIES.fullmatch(text) else text


def budget_text(budget: int | str | None) -> str:
    """The way a budget is typed."""
    return "full" if budget is None else str(budget)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="headkv-chat", description=_DESCRIPTION, epilog=_EPILOG, allow_abbrev=False
    )
    parser.add_argument(
        "model", metavar="MODEL", nargs="?", help="GGUF file (default: the installed default model)"
    )
    parser.add_argument("-p", "--prompt", type=_text, help="ask this one question and leave")
    parser.add_argument(
        "-f",
        "--file",
        dest="files",
        metavar="FILE",
        action="append",
        default=[],
        help="put this UTF-8 document before the question; repeatable, - is standard input",
    )
    parser.add_argument("--system", metavar="TEXT", type=_text, help="system message")
    parser.add_argument(
        "--budget",
        metavar="N",
        type=parse_budget,
        default=DEFAULT_BUDGET,
        help="what to keep of a prompt: entries per KV head (128), a share of the prompt (5%%), "
        "memory for all of it (64MiB), or full for everything (default: %(default)s)",
    )
    parser.add_argument(
        "--ctx",
        metavar="N",
        type=_integer(1, INT32_MAX),
        help="context size in tokens (default: what the model was trained for, "
        f"but no more than {MAX_CTX_BYTES // 1024**3} GiB of full cache)",
    )
    parser.add_argument(
        "--threads",
        metavar="N",
        type=_integer(1, MAX_THREADS),
        help="CPU threads (default: one per physical core)",
    )
    parser.add_argument(
        "--gpu-layers",
        metavar="N",
        type=_integer(-1, INT32_MAX),
        help="layers on a GPU, each with its share of the cache; -1: all (default: all, if there is a GPU)",
    )
    parser.add_argument(
        "--max-tokens",
        metavar="N",
        type=_integer(1),
        default=MAX_TOKENS,
        help="longest answer, in tokens (default: %(default)s)",
    )
    parser.add_argument(
        "--temp",
        metavar="T",
        type=_real(0.0),
        default=0.0,
        help="sampling temperature; 0 always takes the likeliest token (default: %(default)s)",
    )
    parser.add_argument(
        "--seed",
        metavar="N",
        type=_integer(0, 2**32 - 1),
        help="random seed where T > 0 (default: a new one each time)",
    )
    parser.add_argument(
        "--json", action="store_true", help="print each answer as one JSON object with usage and stats"
    )
    parser.add_argument(
        "--no-stream", dest="stream", action="store_false", help="print the answer when it is complete"
    )
    parser.add_argument(
        "--color",
        choices=["auto", "always", "never"],
        default="auto",
        help="colours on standard error; auto: on a terminal unless NO_COLOR is set (default: %(default)s)",
    )
    parser.add_argument(
        "--history", metavar="FILE", help="keep the typed lines in this file (default: only in memory)"
    )
    parser.add_argument("--verbose", action="store_true", help="log to standard error")
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and leave")

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
        help="above 1; the higher, the smaller the pool that head scores share out",
    )
    advanced.add_argument(
        "--window",
        metavar="N",
        type=int,
        help="observation window: last prompt tokens whose attention selects",
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
        help="first prompt tokens that are always kept",
    )
    return parser


def parse_options(argv: list[str] | None, parser: argparse.ArgumentParser) -> Options:
    """Options from `argv` (None: the process's own). Exits as argparse does: 0 after --help, 2 on misuse."""
    space = vars(parser.parse_args(argv))
    space.pop("version", None)
    space["files"] = tuple(space["files"])
    if space["files"].count("-") > 1:
        parser.error("standard input can be read once: give '-f -' only once")
    return Options(**space)


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


def _real(low: float) -> Callable[[str], float]:
    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or value < low:
            raise argparse.ArgumentTypeError(f"'{text}' is not a number from {low:g} up")
        return value

    return convert
