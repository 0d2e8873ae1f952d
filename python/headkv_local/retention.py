"""Retention: what a KV head keeps of a prompt."""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from ._core.plans import Keep, check, get_caps
from .budgets import ModelShape
from .checks import beta_of, budget_of, caps_of, int_of, observe_of, path_of, require_wide, scores_of
from .curves import Curves
from .errors import ArgumentError
from .scores import HeadScores
from .settings import (
    ALL,
    DEFAULT_BUDGET,
    DEFAULT_DRAFT,
    DEFAULT_FOLD,
    DEFAULT_OBSERVE,
    DEFAULTS,
    Policy,
)

_ALL_OF_PROMPT = 0  # the `observe` of struct headkv_retention that is "all"
_WINDOW_OF_ALL = 1  # heads that look at little of a prompt leave the rest to others then


@dataclass(frozen=True, kw_only=True, eq=False)
class Retention:
    """How much every KV head keeps of a prompt, and what selects it.

    The tokens that ask select: the question, where Llama knows it, else the last tokens of the prompt, and a
    draft of the answer (Lookahead Q-Cache, arXiv 2505.20334). Their attention to each position is averaged
    (power mean, exponent 4) over the tokens and the query heads of a GQA group, and max-pooled within each
    sentence. The result is multiplied by the votes of all heads; a head
    weighs as much as its cap exceeds the smallest one, and with equal caps there is no vote. Each KV head
    keeps its best entries, the window, and the first `sinks` positions; all of them count in the budget. From
    HeadKV-R2, arXiv 2410.19258, section 3.3; docs/method.md names the differences.

    budget: mean entries per KV head (int, at least `window`), "5%" of the prompt (at least 32 entries),
        or "64MiB" for the whole model (also KiB, GiB): kept K and V rows, and what layers with a sliding
        window or a recurrent state hold in any case. 128 if neither it nor caps is given.
    caps: entries to keep, int array (n_layer, n_head_kv), each at least `window`, and 0 for KV heads that a
        layer does not have; instead of a budget.
    scores: None for the head scores that come with the model, beside it or in it, and equal budgets
        where there are none; "uniform" for equal budgets (SnapKV per KV head); the path of a GGUF file
        with scores; HeadScores; or a raw array, finite and not negative, (n_layer, n_head) or
        (n_layer, n_head_kv), the former where both are the same: the more, the larger a head's share
        (`headkv_local.budgets` has the formula); or Curves, which a file may hold beside its scores and
        which then count (docs/method.md).
    beta: more than 1. Higher beta: flatter budgets.
    window: in tokens, at least 1. Every head keeps that many last tokens of the prompt, and up to as many
        before them while all of these are at most half of what it keeps.
    kernel: width of the max-pool, in positions, odd; it never reaches beyond the sentence.
    sinks: first positions that are always kept, where a head keeps more than the window.
    observe: last tokens of the prompt that select where the question is not known, at least 1. They are
        not kept for that. "all": the whole prompt is read once more behind itself, and what it looks at then
        is kept, for questions that are still to come (KVzip, arXiv 2505.23416). Heads share the budget by
        that, and not by scores, and neither the question nor a draft selects. It costs as much as the
        prompt once more, and chooses once, so it goes with no archive, or with reselect=False.
    draft: at most so many of the answer's first tokens, each the likeliest one after what would be kept
        without them, select first of all, and nothing stays of them; they end with the answer, or with the
        sentence that ends behind a third of them. As many for each of several questions, as their marks tell,
        up to four. 0: the question selects alone.
    fold: so many tokens after a prompt, at least 64, become a part of it, once not all fit into the budget
        (those of the last turn are not counted, and become a part of it with the answer); as many as the
        window, if that is more:
        each head chooses again among what it has kept and them, so that an endless answer runs in bounded
        memory. What a head lets go is in the archive still, if there is one. None: never.
    archive: "memory", or the path of a file: keep all K and V rows of prompts there, beside what each head
        keeps for decoding. Prompts are then read layer by layer, so that the full cache of one layer, on a
        GPU of two, has to fit, not of all; each turn is read against all rows; and going back to an earlier
        token reads nothing before it again but the tokens that ask. The file is made, and goes with the
        Llama. None: what a head does not keep is gone.
    reselect: choose what is kept anew at every turn, from all of the prompt. None: where there is an archive.
    order: in which a prompt is read: "tokens", all layers batch by batch as llama.cpp does it, or "layers",
        all its tokens layer by layer; without an archive the rows are in memory meanwhile. None: "layers"
        with an archive, if the model's graph can be cut, else "tokens".
    panel: tokens that are read at once in the order of layers, whose hidden states are in memory. None: as
        many as 256 MiB hold.

    beta, window, kernel and sinks that are not given are those that the scores' file recommends, else
    1.3, 8, 29 and 4 (docs/experiments.md has why); with observe="all" the window is 1. having() gives
    the same with other settings; dataclasses.replace() hands all of them on as given.

    Paths are made absolute. Raises ArgumentError for a value that can never work. What depends on the
    model's shape or on the prompt's length is checked by caps_for().
    """

    budget: int | str | None = DEFAULT_BUDGET
    caps: npt.ArrayLike | None = None
    scores: npt.ArrayLike | str | os.PathLike[str] | HeadScores | Curves | None = None
    # numbers from here on, once __post_init__ has put the defaults in
    beta: float = None  # type: ignore[assignment]
    window: int = None  # type: ignore[assignment]
    kernel: int = None  # type: ignore[assignment]
    sinks: int = None  # type: ignore[assignment]
    observe: int | Literal["all"] = DEFAULT_OBSERVE
    draft: int = DEFAULT_DRAFT
    fold: int | None = DEFAULT_FOLD
    archive: str | os.PathLike[str] | None = None
    reselect: bool | None = None
    order: Literal["tokens", "layers"] | None = None
    panel: int | None = None

    def __post_init__(self) -> None:
        self._set("budget", budget_of(self.budget))
        self._set("observe", observe_of(self.observe))
        self._set("_given", frozenset(name for name in DEFAULTS if getattr(self, name) is not None))
        for name in DEFAULTS.keys() - self._given:
            self._set(name, _WINDOW_OF_ALL if (name, self.observe) == ("window", ALL) else DEFAULTS[name])
        self._set("window", int_of("window", self.window, 1))
        self._set("sinks", int_of("sinks", self.sinks, 0))
        self._set("draft", int_of("draft", self.draft, 0))
        self._set("kernel", int_of("kernel", self.kernel, 1))
        self._set("beta", beta_of(self.beta))
        if isinstance(self.scores, str | os.PathLike):
            self._set("scores", "uniform" if self._is_uniform else path_of(self.scores))
        elif not isinstance(self.scores, HeadScores | Curves | None):
            self._set("scores", scores_of(self.scores))
        self._check_archive()
        check(self.native())
        if self.caps is None:
            return
        if self.budget != DEFAULT_BUDGET:
            raise ArgumentError("caps and budget exclude each other: give one of them")
        if self.policy_of_scores == "scores":
            raise ArgumentError("caps and scores exclude each other: give one of them")
        self._set("caps", caps_of(self.caps, self.window))

    def _check_archive(self) -> None:
        if self.fold is not None:
            self._set("fold", int_of("fold", self.fold, 64))
        if self.archive is not None:
            if not isinstance(self.archive, str | os.PathLike) or not os.fspath(self.archive):
                raise ArgumentError(f'archive must be "memory", a path or None, not {self.archive!r}')
            self._set("archive", "memory" if self.archive == "memory" else path_of(self.archive))
        if not isinstance(self.reselect, bool | None):
            raise ArgumentError(f"reselect must be True, False or None, not {self.reselect!r}")
        if self.reselect and self.archive is None:
            raise ArgumentError(
                'entries can be chosen anew from an archive only: give archive="memory" or a path'
            )
        if self.observe == ALL and self.policy_of_scores == "scores":
            raise ArgumentError(
                'observe="all" has heads share the budget by what the prompt looks at: leave out the scores'
            )
        if self.observe == ALL and self.archive is not None and self.reselect is not False:
            raise ArgumentError(
                'observe="all" chooses once, for all questions, and an archive is there to choose anew: '
                "leave out one of them"
            )
        if self.order not in (None, "tokens", "layers"):
            raise ArgumentError(f'order must be "tokens", "layers" or None, not {self.order!r}')
        if self.panel is not None:
            self._set("panel", int_of("panel", self.panel, 1))

    @property
    def by_layers(self) -> bool:
        """Whether prompts are read layer by layer, if the model's graph can be cut."""
        return self.order == "layers" or (self.order is None and self.archive is not None)

    @property
    def archives(self) -> bool:
        """Whether all rows of a prompt are kept, if only until it has been read."""
        return self.archive is not None or self.by_layers

    @property
    def reselects(self) -> bool:
        """Whether what is kept is chosen anew at every turn."""
        return self.archive is not None if self.reselect is None else self.reselect

    def having(self, **changes: Any) -> Retention:
        """The same but for these settings. What was left to the head scores still is."""
        left = DEFAULTS.keys() - self._given
        kept = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in left}
        return Retention(**(kept | changes))

    def without_archive(self) -> Retention:
        """The same, but that what a head does not keep is gone."""
        return self.having(archive=None, reselect=None)

    _given: ClassVar[frozenset[str]] = frozenset()  # of an instance: settings that were not left to us

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Retention) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    @property
    def policy(self) -> Policy:
        """How the budgets of the heads are made."""
        if self.caps is not None:
            return "caps"
        return "observed" if self.observe == ALL else self.policy_of_scores

    @property
    def policy_of_scores(self) -> Literal["uniform", "scores"]:
        return "uniform" if self.scores is None or self._is_uniform else "scores"

    @property
    def _is_uniform(self) -> bool:
        return isinstance(self.scores, str) and self.scores == "uniform"

    @property
    def wants_scores(self) -> bool:
        """Whether with_scores() is to be called before caps_for(): the scores are still in a file."""
        return self.caps is None and not self._is_uniform and not isinstance(self.scores, np.ndarray | Curves)

    def with_scores(self, scores: HeadScores) -> Retention:
        """This retention with these scores, and with what they recommend where nothing was given."""
        settings = {name: getattr(self, name) for name in (*self._given, *_OTHERS)}
        advice = {name: getattr(scores, name) for name in DEFAULTS.keys() - self._given}
        found = scores.curves or np.asarray(scores.scores)
        return Retention(budget=self.budget, scores=found, **settings, **advice)

    def caps_for(self, shape: ModelShape, n_prompt: int) -> npt.NDArray[np.int32]:
        """Entries to keep per KV head of a prompt of n_prompt tokens, int32 (n_layer, n_head_kv).

        Every cap lies between the window and n_prompt. Where a prompt is not longer than the window, or
        fits into the budget, all caps are n_prompt: it is kept whole. Otherwise the caps add up to the
        budget exactly, unless they were given; of curves they take its bytes, or up to one row fewer where
        the rows of layers differ in size.

        Raises ArgumentError if caps or scores have another shape than the model, or if a budget in bytes
        is less than the window.
        """
        n_prompt = int_of("n_prompt", n_prompt, 0)
        if self.policy == "caps":
            caps = np.asarray(self.caps)
            if caps.shape != (shape.n_layer, shape.n_head_kv):
                raise ArgumentError(
                    f"caps must have the shape {(shape.n_layer, shape.n_head_kv)} (layers, KV heads) for "
                    f"this model, not {caps.shape}"
                )
            require_wide(caps[shape.heads], self.window)
            return shape.by_head(np.minimum(caps[shape.heads], n_prompt).astype(np.int32))
        if self.policy == "scores" and self.wants_scores:
            raise ArgumentError("the head scores are not loaded yet: with_scores() puts them in")
        return get_caps(self.native(), shape, n_prompt)

    def native(self) -> Keep:
        """As the native library takes it; of given caps with the budget that does not count."""
        budget: Any = self.budget if self.caps is None else max(self.window, DEFAULT_BUDGET)
        scores: Any = self.scores if isinstance(self.scores, np.ndarray | Curves) else None
        observe = _ALL_OF_PROMPT if isinstance(self.observe, str) else self.observe
        numbers = self.window, self.kernel, self.sinks, observe, self.draft
        return Keep(budget, self.beta, *numbers, scores)

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)  # a frozen dataclass can be normalised in no other way

    def _key(self) -> tuple[Hashable, ...]:
        scores: Any = self.scores
        advice: tuple[Any, ...] = ()
        if isinstance(scores, HeadScores):
            advice = tuple(getattr(scores, name) for name in DEFAULTS)
            scores = scores.curves or scores.scores
        if isinstance(scores, Curves):
            scores = np.append(scores.losses.ravel(), scores.shares)
        frozen: Iterator[Any] = (
            (np.shape(a), np.asarray(a).tobytes()) if isinstance(a, np.ndarray) else a
            for a in (self.caps, scores)
        )
        return (
            self.policy,
            None if self.policy == "caps" else self.budget,
            *frozen,
            advice,
            self._given if self.wants_scores else (),  # else nobody recommends anything
            *(str(getattr(self, name)) for name in (*DEFAULTS, *_OTHERS) if name != "reselect"),
            self.reselects,
        )


_OTHERS = tuple(
    field.name for field in fields(Retention) if field.name not in (*DEFAULTS, "budget", "caps", "scores")
)
"""Settings that no file of head scores recommends."""
