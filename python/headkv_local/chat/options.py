"""What the command line of headkv-chat asks for. Nothing here imports a library, so --help stays quick."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from ..settings import (
    ADVANCED,
    DEFAULT_BUDGET,
    DEFAULT_DRAFT,
    DEFAULT_FOLD,
    DEFAULT_OBSERVE,
    FULL,
    given,
)

if TYPE_CHECKING:
    from headkv_local import Retention

MAX_TOKENS = 1024

FLAG = "the command line"  # a source
RETENTION = ("budget", *ADVANCED)  # what can be changed of it while a chat runs
FORMS = frozenset(("json_schema", "grammar"))  # of an answer; one at a time
AUTO, MEMORY = "auto", "memory"  # of --archive, which may be OFF too; else it is the path of a file


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line asks for.

    budget: None for the full cache. ctx: None to choose one from the model, 0 for what it was trained for,
    AUTO for as much of that as memory has room for.
    max_tokens: -1 for no limit but the context. temp to repeat_penalty: None for what the model recommends.
    fold: OFF for never.
    json_schema, grammar: the text, or the path of a file.
    sources: where each field that was asked for was: FLAG, the name of an environment variable, the path of
    the configuration file, the session. config: that file, None where there is none.
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
    observe: int | str = DEFAULT_OBSERVE
    draft: int = DEFAULT_DRAFT
    fold: int | str = DEFAULT_FOLD
    reselect: bool | None = None  # this, order and panel: as a session of Python has them
    order: Literal["tokens", "layers"] | None = None
    panel: int | None = None
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
    json_schema: str | None = None
    grammar: str | None = None
    json: bool = False
    stream: bool = True
    markdown: Literal["auto", "off"] = "auto"
    thinking: Literal["auto", "show", "hide"] = "auto"
    color: Literal["auto", "always", "never"] = "auto"
    history: str | None = None
    session: str | None = None
    verbose: bool = False
    config: str | None = None
    show_config: bool = False
    sources: Mapping[str, str] = field(default_factory=dict, compare=False)

    def completed(self, settings: Mapping[str, Any], source: str) -> Options:
        """With these settings, of a session, where the command line leaves them open."""
        open_ones = {name: value for name, value in settings.items() if self.sources.get(name) != FLAG}
        return self.having(open_ones, source)

    def having(self, settings: Mapping[str, Any], source: str) -> Options:
        """With these settings, from there. A form of the answer takes the place of the other one."""
        forms = FORMS & settings.keys()
        base = self.without(*FORMS - forms) if forms else self
        return replace(base, **settings, sources={**base.sources, **dict.fromkeys(settings, source)})

    def without(self, *names: str) -> Options:
        """With these fields as if nobody had asked for them."""
        sources = {name: source for name, source in self.sources.items() if name not in names}
        return replace(self, **{name: getattr(Options(), name) for name in names}, sources=sources)

    def keeping_as(self, other: Options) -> Options:
        """With what `other` says of the retention."""
        sources = {name: source for name, source in self.sources.items() if name not in RETENTION}
        sources |= {name: source for name, source in other.sources.items() if name in RETENTION}
        return replace(self, **{name: getattr(other, name) for name in RETENTION}, sources=sources)

    def retention(self, archive: str | None = None) -> Retention | None:
        """What is kept of prompts; None for the full cache.

        archive: as Retention takes it. Raises ArgumentError.
        """
        from headkv_local import Retention  # imports numpy

        if self.budget is None:
            return None
        return Retention(
            budget=self.budget,
            scores=self.scores,
            archive=archive,
            reselect=None if archive is None else self.reselect,
            order=self.order,
            panel=self.panel,
            **given(self),
        )


def budget_text(budget: int | str | None) -> str:
    """The way a budget is typed."""
    return FULL if budget is None else str(budget)


def expand(path: str) -> str:
    """`path` with a ~ that the shell has left, unless there is a file of just that name."""
    return path if os.path.lexists(path) else os.path.expanduser(path)
