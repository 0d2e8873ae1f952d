"""Scores by attention: samples through the model, and plain retrieval where reasoning is too hard for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil

import numpy as np

from ..llama import Llama
from . import samples
from .attention import RIGHT_ABOVE, token_f1
from .dataset import Dataset, Example, Kind
from .measure import observe
from .options import Bar, Options, Tell
from .progress import NothingFoundError, Progress, Tally
from .prompt import Prompter, ask

_LEAST_SAMPLES, _LEAST_SHARE = 8, 0.2  # that must be answered correctly
_CURE = "try --teacher-forced, or shorter --lengths; no scores were written"

Measured = Callable[[Dataset], list[Example]]
"""The examples that are not held out."""


@dataclass(frozen=True)
class Measuring:
    """forced: the right answer is fed to the model."""

    llm: Llama
    options: Options
    lengths: tuple[int, ...]
    progress: Progress
    bar: Bar
    measured: Measured
    forced: bool

    def tally(self, stage: str, data: Dataset) -> Tally:
        """All samples of one stage that are not in its tally yet, or until too many were wrong."""
        llm, options = self.llm, self.options
        prompter = Prompter(llm, options.plain)
        plans = samples.plan(self.measured(data), options.n_samples, self.lengths, options.seed)
        tally = self.progress.tally(stage)
        self.bar(stage, tally.done, len(plans), "sample")
        for plan in plans[tally.done :]:
            if self.too_few(tally.n_counted + len(plans) - tally.done):
                break
            asked = ask(plan, prompter)
            observed = observe(llm, asked.prompt, asked.answer if self.forced else None)
            right = self.forced or token_f1(observed.text, plan.example.answer) > RIGHT_ABOVE
            tally.add(plan.half, observed.score if right else None)
            self.progress.save()
            self.bar(stage, tally.done, len(plans), "sample")
        return tally

    def too_few(self, n_right: int) -> bool:
        n = self.options.n_samples
        return n_right < max(min(_LEAST_SAMPLES, n), ceil(_LEAST_SHARE * n))


def first_that_works(
    measuring: Measuring, method: Kind, data: Dataset, instead: Dataset | None, tell: Tell
) -> tuple[Kind, Dataset, Tally]:
    """The method asked for; plain retrieval where the model does not answer the reasoning questions.

    instead: the examples of that; None where nothing takes the method's place.
    """
    tally = measuring.tally(method, data)
    if measuring.too_few(tally.n_counted):
        said = f"only {tally.n_counted} of {tally.done} samples of the method {method!r} were answered right"
        if instead is None:
            raise NothingFoundError(f"{said}: {_CURE}")
        tell(f"{said}, too few for scores: measuring plain retrieval (the method 'r') instead")
        if instead.whose != data.whose:
            tell("the examples given hold none of the kind 'r': this project's own are used")
        method, data = "r", instead
        tally = measuring.tally(method, data)
        if measuring.too_few(tally.n_counted):
            raise NothingFoundError(
                f"{said}, and {tally.n_counted} of {tally.done} of the method 'r': {_CURE}"
            )
    require_attention(tally)
    return method, data, tally


def require_attention(tally: Tally) -> None:
    if not np.isfinite(tally.totals).all():
        raise NothingFoundError("the model's attention is not finite: no scores were written")
    if tally.mean.max() == 0:
        raise NothingFoundError("no head ever attended to a needle: no scores were written")
