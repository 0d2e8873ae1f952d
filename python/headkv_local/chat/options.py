"""What the command line of headkv-chat asks for. Nothing here imports a library, so --help stays quick."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from ..settings import DEFAULT_BUDGET, given

if TYPE_CHECKING:
    from headkv_local import Retention

MAX_TOKENS = 1024
MAX_CTX_BYTES = 2 * 1024**3

AUTO, MEMORY, OFF = "auto", "memory", "off"  # of --archive; else it is the path of a file

_ENTRIES = re.compile(r"-?[0-9]{1,18}")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line asks for.

    budget: None for the full cache. ctx: None to choose one from the model, 0 for what it was trained for,
    AUTO for as much of that as memory has room for.
    max_tokens: -1 for no limit but the context. temp to repeat_penalty: None for what the model recommends.
    given: names of the fields that were asked for, here or when the session was made.
    """

    model: str | None = None
    prompt: str | None = None
    files: tuple[str, ...] = ()
    system: str | None = None
    budget: int | str | None = DEFAULT_BUDGET
    scores: Any = None  # as Retention takes them; None: those that come with the model
    beta: float | None = None  # None, here and below: what the scores recommend
    window: int | None = None
    kernel: int | None = None
    sinks: int | None = None
    archive: str = AUTO
    ctx: int | str | None = None
    threads: int | None = None
    gpu_layers: int | None = None  # None: all where there is a GPU
    max_tokens: int = MAX_TOKENS
    temp: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    seed: int | None = None
    json: bool = False
    stream: bool = True
    color: Literal["auto", "always", "never"] = "auto"
    history: str | None = None
    session: str | None = None
    verbose: bool = False
    given: frozenset[str] = field(default=frozenset(), compare=False)

    def completed(self, settings: Mapping[str, Any]) -> Options:
        """With these settings, of a session, where the command line leaves them open."""
        open_ones = {name: value for name, value in settings.items() if name not in self.given}
        return replace(self, **open_ones, given=self.given | open_ones.keys())

    def retention(self, budget: int | str | None, archive: str | None = None) -> Retention | None:
        """What `budget` keeps with the other settings as they are; None for the full cache.

        archive: as Retention takes it. Raises ArgumentError.
        """
        from headkv_local import Retention  # imports numpy

        if budget is None:
            return None
        return Retention(budget=budget, scores=self.scores, archive=archive, **given(self))


def parse_budget(text: str) -> int | str | None:
    """Entries per KV head (int), None for "full", and whatever else as it is: Retention judges it."""
    text = text.strip()
    if text.lower() == "full":
        return None
    return int(text) if _ENTRIES.fullmatch(text) else text


def budget_text(budget: int | str | None) -> str:
    """The way a budget is typed."""
    return "full" if budget is None else str(budget)


def expand(path: str) -> str:
    """`path` with a ~ that the shell has left, unless there is a file of just that name."""
    return path if os.path.lexists(path) else os.path.expanduser(path)
