"""Defaults, and what llama.cpp takes. Nothing is imported here: --help waits for no library."""

from __future__ import annotations

import re
from argparse import ArgumentTypeError
from collections.abc import Callable
from typing import Any, Final, Literal, NamedTuple

DEFAULT_BUDGET: Final = 128
"""Mean entries per KV head."""

DEFAULT_OBSERVE: Final = 128
"""Last tokens of a prompt that select, where it is not known which ask."""

DEFAULT_DRAFT: Final = 24
"""Most tokens of the answer that are tried before the prompt is compacted."""

DEFAULT_FOLD: Final = 1024
"""Tokens after a compacted prompt at which they become a part of it."""

DEFAULTS: Final[dict[str, Any]] = {"beta": 1.3, "window": 8, "kernel": 29, "sinks": 4}
"""The settings that a file of head scores can recommend: fields of Retention and of HeadScores, keys in the
file, options of the commands."""

OFF: Final = "off"
"""The fold that never comes, the archive that is none."""

ALL: Final = "all"
"""The `observe` that reads the whole prompt once more, so that it selects for any question."""

Policy = Literal["uniform", "scores", "caps", "observed"]
"""How the budgets of the heads are made: equal, by head scores, as given, or by what each head looks at."""


class Setting(NamedTuple):
    """of_text: raises ValueError or ArgumentTypeError. meaning: as --help says it, without a full stop."""

    of_text: Callable[[str], Any]
    meaning: str

    @property
    def sentence(self) -> str:
        return f"{self.meaning[0].upper()}{self.meaning[1:]}."


def fold_of(given: object) -> int | str:
    """Tokens, or OFF, for which YAML reads False. Raises ArgumentTypeError."""
    text = OFF if given is False else str(given)
    try:
        return OFF if text == OFF else int(text)
    except ValueError:
        raise ArgumentTypeError(f"'{text}' is neither a number of tokens nor {OFF}") from None


def observe_of(given: object) -> int | str:
    """Tokens, or ALL. Raises ArgumentTypeError."""
    text = str(given)
    try:
        return ALL if text == ALL else int(text)
    except ValueError:
        raise ArgumentTypeError(f"'{text}' is neither a number of tokens nor {ALL}") from None


ADVANCED: Final = {
    "beta": Setting(
        float, "above 1; how far budgets follow the head scores: the higher, the flatter the budgets"
    ),
    "window": Setting(int, "last tokens of a prompt that every KV head keeps"),
    "kernel": Setting(int, "odd width of the max-pool over the positions of a sentence"),
    "sinks": Setting(int, "first tokens that every KV head keeps which keeps more than the window"),
    "observe": Setting(
        observe_of,
        "last tokens of a prompt that choose what is kept, where it is not known which ask "
        f"(default: {DEFAULT_OBSERVE}); {ALL}: the whole prompt, read once more, for "
        "questions that are still to come",
    ),
    "draft": Setting(
        int,
        "most tokens of the answer that are tried before, since they know best what it looks at; 0: none "
        f"(default: {DEFAULT_DRAFT})",
    ),
    "fold": Setting(
        fold_of,
        f"tokens after a prompt at which they become a part of it, so that each head chooses again; {OFF}: "
        f"never (default: {DEFAULT_FOLD})",
    ),
}
"""What a Retention is told beside its budget, its scores and where its archive is: fields of it, options of
the tools. Those of DEFAULTS come first."""

AUTO: Final = "auto"
"""The n_ctx that stands for the largest one that memory has room for."""

MAX_CTX_BYTES: Final = 2 * 2**30
"""Of full cache, where a tool is not told how large its context is."""

MAX_THREADS: Final = 512
MAX_LAST_TOKENS: Final = 2**24
INT32_MAX: Final = 2**31 - 1
"""Beyond these llama.cpp ends the process, or crashes, instead of refusing."""

UINT32_MAX: Final = 2**32 - 1
"""The largest seed, and the largest number that a file of head scores can recommend."""

KV_TYPES: Final = {
    "f32": 0,
    "f16": 1,
    "bf16": 30,
    "q8_0": 8,
    "q5_0": 6,
    "q5_1": 7,
    "q4_0": 2,
    "q4_1": 3,
    "iq4_nl": 20,
}
"""The types of K and V rows that a flash-attention cache takes, and ggml's numbers for them."""


FULL: Final = "full"
"""The budget that keeps everything."""

_ENTRIES: Final = re.compile(r"-?[0-9]{1,18}")


def parse_budget(budget: int | str) -> int | str | None:
    """As people write it: entries per KV head, None for "full", else the text, which Retention judges."""
    if not isinstance(budget, str):
        return budget
    text = budget.strip()
    if text.lower() == FULL:
        return None
    return int(text) if _ENTRIES.fullmatch(text) else text


def given(options: object) -> dict[str, Any]:
    """Those of ADVANCED that these options, or these scores, have a value for, as Retention takes them."""
    values = {name: getattr(options, name, None) for name in ADVANCED}
    found = {name: value for name, value in values.items() if value is not None}
    return found | {"fold": None} if found.get("fold") == OFF else found
