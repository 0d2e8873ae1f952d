"""Curves: the loss of right answers while one KV head alone keeps more and less than it would.

The other heads keep a base meanwhile: everything, or budgets by attention scores, as they would with a file
of these. Then heads vote on what to keep (docs/method.md) as they do in use. Equal budgets would not do as a
base: the one head that differs would be the only one with a vote.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..budgets import ModelShape
from ..curves import Curves
from ..errors import ArgumentError
from ..llama import Llama
from ..retention import Retention
from ..settings import DEFAULTS
from . import samples
from .dataset import Example
from .loss import SavedPrompt
from .options import Bar, Options, Tell
from .progress import NothingFoundError, Progress, Tally
from .prompt import Prompter, ask

STAGE = "ablation"
_SAVED_EVERY = 10.0  # seconds
_TIMED = 12  # runs, before their duration is foretold

Caps = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Ablating:
    """attention: scores of all query heads, (n_layer, n_head); None where every base is 100 percent.

    kept: window, kernel and sinks.
    """

    llm: Llama
    options: Options
    lengths: tuple[int, ...]
    progress: Progress
    bar: Bar
    tell: Tell
    attention: npt.NDArray[np.float64] | None
    kept: dict[str, Any]

    def tally(self, examples: Sequence[Example]) -> Tally:
        """All samples that are not in it yet: losses (n_layer, n_head_kv, n_points), means over bases."""
        llm, options, progress = self.llm, self.options, self.progress
        prompter = Prompter(llm, options.plain)
        plans = samples.plan(examples, options.n_samples, self.lengths, options.seed)
        tally = progress.tally(STAGE)
        n_runs = len(options.bases) * llm.shape.n_heads * len(options.points)
        timer = _Timer(self.tell, n_runs * (len(plans) - tally.done) - len(progress.within))
        self.bar(STAGE, n_runs * tally.done + len(progress.within), n_runs * len(plans), "run")
        for plan in plans[tally.done :]:
            saved = SavedPrompt(llm, ask(plan, prompter), self.kept["window"])
            losses = progress.within
            try:
                for caps in list(self._variants(saved.n_prompt))[len(losses) :]:
                    losses.append(saved.loss(Retention(caps=caps, fold=None, **self.kept)))
                    if timer.run():
                        progress.save()
                    self.bar(STAGE, n_runs * tally.done + len(losses), n_runs * len(plans), "run")
            finally:
                progress.save()
            by_base = np.array(losses).reshape(len(options.bases), -1, len(options.points))
            tally.add(plan.half, llm.shape.by_head(by_base.mean(axis=0)))
            progress.within = []
            progress.save()
        return tally

    def _variants(self, n_prompt: int) -> Iterator[Caps]:
        """Caps of every run of a sample: of each base, head and point, in this order."""
        shape = self.llm.shape
        for base in self.options.bases:
            others = self._base(base, shape, n_prompt)
            for il, head in np.argwhere(shape.heads):
                for point in self.options.points:
                    caps = others.copy()
                    caps[il, head] = self._entries(point, n_prompt)
                    yield caps

    def _base(self, percent: float, shape: ModelShape, n_prompt: int) -> Caps:
        entries = self._entries(percent, n_prompt)
        if entries == n_prompt:
            # one entry less, so that the attention of compacted caches computes this one too
            whole = np.where(shape.heads, n_prompt, 0).astype(np.int32)
            whole[tuple(np.argwhere(shape.heads)[-1])] -= 1
            return whole
        assert self.attention is not None
        base = Retention(budget=entries, scores=self.attention, beta=DEFAULTS["beta"], **self.kept)
        return base.caps_for(shape, n_prompt)

    def _entries(self, percent: float, n_prompt: int) -> int:
        window: int = self.kept["window"]
        return window + round(percent / 100 * (n_prompt - window))


def settings_of(options: Options) -> dict[str, Any]:
    """What selects, while curves are measured and betas tried."""
    return {name: options.advice.get(name, DEFAULTS[name]) for name in ("window", "kernel", "sinks")}


def curves_of(found: npt.NDArray[np.float64], points: Sequence[float], shape: ModelShape) -> Curves:
    """Beyond the last point a curve is level: nothing was measured there.

    found: losses, (n_heads, n_points). Raises ArgumentError for points that a file cannot hold.
    """
    losses, shares = shape.by_head(found), np.array(points) / 100
    if shares[-1] < 1:
        losses = np.concatenate([losses, losses[..., -1:]], axis=-1)
        shares = np.append(shares, 1.0)
    if not (np.diff(shares.astype(np.float32)) > 0).all():
        said = ",".join(map(str, points))
        raise ArgumentError(f"the points {said} are too close to each other, or to 100, for a file of scores")
    return Curves(shares, losses)


def require_losses(tally: Tally) -> None:
    if not np.isfinite(tally.totals).all():
        raise NothingFoundError("the loss of an answer is not finite: no scores were written")


def scores_of(curves: Curves, shape: ModelShape) -> npt.NDArray[np.float32]:
    """(n_layer, n_head): how much a KV head's entries lower the loss, in nats, shared out to its query heads.

    Raises NothingFoundError where no head's do.
    """
    falls = np.maximum(curves.losses[..., 0] - curves.losses[..., -1], 0)
    if falls.max() == 0:
        raise NothingFoundError(
            "no head's entries ever lowered the loss of an answer: no scores were written"
        )
    scores = np.zeros((shape.n_layer, shape.n_head), dtype=np.float32)
    for il, row in enumerate(falls):
        layer = shape.layers[il] if shape.layers else shape
        group = layer.n_head // layer.n_head_kv
        scores[il, : layer.n_head] = np.repeat(row[: layer.n_head_kv], group) / group
    return scores


class _Timer:
    """Says once how long the runs that are left will take, and when to save."""

    def __init__(self, tell: Tell, n_left: int) -> None:
        self._tell, self._n_left = tell, n_left
        self._started = self._saved = time.monotonic()
        self._done = 0

    def run(self) -> bool:
        """One more run is done. Whether it is time to save."""
        now = time.monotonic()
        self._done += 1
        if self._done == min(_TIMED, self._n_left):
            seconds = (now - self._started) / self._done * (self._n_left - self._done)
            self._tell(f"{self._n_left} runs, no prompt is read twice: about {_duration(seconds)}")
        if now - self._saved < _SAVED_EVERY:
            return False
        self._saved = now
        return True


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
