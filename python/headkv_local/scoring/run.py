"""Scoring a model from beginning to end: settings, samples, the fallback, and the HeadScores they come to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np

from .. import files
from ..bench.contexts import n_ctx_for
from ..budgets import ModelShape
from ..curves import Curves
from ..errors import ArgumentError, DataError, UnsupportedError
from ..llama import Llama
from ..models import trained_context
from ..retention import Retention
from ..scores import HeadScores
from ..settings import DEFAULTS
from . import ablation, dataset, held_out, samples
from .attending import Measuring, first_that_works, require_attention
from .attention import by_kv_head
from .dataset import Dataset, Example
from .held_out import Choice
from .options import Bar, Options, Tell
from .progress import NothingFoundError, Progress, Tally
from .prompt import ANSWER_TOKENS, Prompter, ask
from .provenance import settings_of, source_of
from .shrinking import shrink

__all__ = ["Options", "Result", "run"]

_ROOM = ANSWER_TOKENS + 64  # of the context, for the answer and for prompts that are a little too long
_BASE = "base"  # the stage of attention scores, for the budgets around which an ablation moves


@dataclass(frozen=True)
class Result:
    """shape: the layers that were measured.

    choice: of beta, None where it was given or no examples are left for it.
    """

    scores: HeadScores
    shape: ModelShape
    tally: Tally
    choice: Choice | None


def run(options: Options, tell: Tell = lambda _: None, bar: Bar = lambda *_: None) -> Result:
    """Measure head scores and write them to options.output. Progress is kept; the next run goes on from it.

    Raises ArgumentError for an output that exists, bad examples or advice, too few of them for an ablation, a
    prompt that cannot be made or is not longer than the window, a model without chat template, lengths that
    the model was not trained for (where others are left, those are skipped, and told); ScoresError where too
    few samples are answered right; ModelError, UnsupportedError for the model itself.
    """
    files.target(options.output, force=options.force, model=options.model, inputs=[options.examples])
    _require_advice(options.advice)
    theirs = None if options.examples is None else dataset.theirs(options.examples)
    data, instead = _data(options, theirs), _instead(options, theirs)
    if options.is_ablation and min(options.n_samples, len(_split(options, data)[0])) < 2:
        raise ArgumentError(
            "an ablation takes at least 2 samples, of 2 examples: what is noise is seen where they differ"
        )
    lengths = _usable_lengths(options, tell)
    with Llama(
        options.model,
        n_ctx=n_ctx_for(max(lengths) + _ROOM),
        n_threads=options.n_threads,
        n_threads_batch=options.n_threads,
        n_gpu_layers=options.n_gpu_layers,
        flash_attn=True,
    ) as llm:
        shape = llm.shape
        if shape.n_head % shape.n_head_kv != 0:
            raise UnsupportedError(
                f"no file can hold head scores of this model: the {shape.n_head_kv} KV heads of one layer do "
                f"not divide the {shape.n_head} query heads of another"
            )
        settings = settings_of(options, llm, [one for one in (data, instead) if one], lengths)
        for one in (data, instead):
            if one is not None:
                _require_holds(_trial(options, settings, shape, one))
        progress = Progress(options.output, settings, _stages(options, shape), force=options.force)
        measured = _Run(llm, options, settings, lengths, progress, tell, bar)
        try:
            if instead is not None and instead.whose == data.whose:
                measured.examples(instead)  # a user's file is refused as a whole, or not at all
            if options.is_ablation:
                scores, tally = _by_ablation(measured, data)
            else:
                scores, data, tally = _by_attention(measured, data, instead)
        except NothingFoundError:
            progress.remove()  # the same settings would end here again
            raise
        except BaseException:
            if progress.is_empty:  # nothing is lost with it, and it would be in the way of other settings
                progress.remove()
            raise
        choice = None
        left = _split(options, data)[1]
        if left:
            choice = held_out.choose(llm, options, lengths, left, scores, progress, bar)
            source = {**scores.source, "beta": choice.text()}
            scores = replace(scores, beta=choice.beta, source=source)
        elif "beta" not in options.advice:
            tell(f"fewer than 4 examples: none is held out to choose beta on, it stays {scores.beta:g}")
    scores.to_sidecar(options.output, force=options.force)
    progress.remove()
    return Result(scores, shape, tally, choice)


def _require_advice(advice: Mapping[str, Any]) -> None:
    """Raises ArgumentError for what can never work, or what no file can hold."""
    Retention(budget="100%", **advice)
    _require_holds(HeadScores(scores=np.ones((1, 1), np.float32), n_head_kv=1, method="r", **advice))


def _require_holds(scores: HeadScores) -> None:
    """Raises ArgumentError for what no file can hold."""
    with TemporaryDirectory() as folder:
        scores.to_sidecar(Path(folder) / "trial")


def _data(options: Options, theirs: Dataset | None) -> Dataset:
    if options.method != "ablation":
        return theirs.of([options.method]) if theirs else dataset.own(options.method)
    if theirs is None:
        return dataset.own(*(options.kinds or ("r", "r2")))
    return theirs.of(options.kinds) if options.kinds else theirs


def _instead(options: Options, theirs: Dataset | None) -> Dataset | None:
    """Plain examples in place of reasoning that is too hard; the project's where the user has only others."""
    if options.method != "r2" or options.teacher_forced:
        return None
    try:
        return theirs.of(["r"]) if theirs else dataset.own("r")
    except DataError:
        return dataset.own("r")


def _split(options: Options, data: Dataset) -> tuple[list[Example], list[Example]]:
    """Examples to measure on, and those that are held out to choose beta on."""
    if "beta" in options.advice:
        return list(data.examples), []
    return dataset.split(data.examples, options.seed)


def _stages(options: Options, shape: ModelShape) -> dict[str, tuple[int, ...]]:
    attention = (shape.n_layer, shape.n_head)
    curves = (shape.n_layer, shape.n_head_kv, len(options.points))
    own = {_BASE: attention, ablation.STAGE: curves} if options.is_ablation else {options.method: attention}
    return {**own, "r": attention, held_out.STAGE: held_out.SHAPE}


class _Run(NamedTuple):
    """What measuring needs, whatever the method."""

    llm: Llama
    options: Options
    settings: dict[str, Any]
    lengths: tuple[int, ...]
    progress: Progress
    tell: Tell
    bar: Bar

    def measuring(self, forced: bool) -> Measuring:
        return Measuring(self.llm, self.options, self.lengths, self.progress, self.bar, self.examples, forced)

    def examples(self, data: Dataset) -> list[Example]:
        """Those to measure on. Every prompt of the run is made once: one that cannot be would end it late.

        Raises as ask() does, before anything is measured on these data, and ArgumentError for a window that
        holds the whole of a prompt.
        """
        prompter, (measured, left) = Prompter(self.llm, self.options.plain), _split(self.options, data)
        plans = samples.plan(measured, self.options.n_samples, self.lengths, self.options.seed)
        plans += held_out.planned(self.options, self.lengths, left)
        lengths = [len(ask(plan, prompter).prompt.tokens) for plan in plans]
        if max(lengths) + ANSWER_TOKENS > self.llm.n_ctx():
            raise ArgumentError(
                f"a prompt of {max(lengths)} tokens and its answer do not fit into the context"
            )
        shortest = min(lengths) - 1  # the last one is decoded
        window = ablation.settings_of(self.options)["window"]
        if window >= shortest:
            raise ArgumentError(
                f"window must be less than the shortest prompt, of {shortest} tokens, not {window}"
            )
        return measured

    def scores(self, data: Dataset, tally: Tally, scores: Any, **more: Any) -> HeadScores:
        return _scores(self.options, self.settings, self.llm.shape, data, tally, scores, **more)


def _scores(
    options: Options,
    settings: dict[str, Any],
    shape: ModelShape,
    data: Dataset,
    tally: Tally,
    scores: Any,
    *,
    method: str,
    curves: Curves | None = None,
    measured: str | None = None,
) -> HeadScores:
    """measured: of an ablation, for the file's provenance."""
    source = source_of(options, settings, shape, data, tally)
    return HeadScores(
        scores=scores.astype(np.float32),
        layers=tuple(layer.il for layer in shape.layers),
        n_head_kv=shape.n_head_kv,
        method=method,
        curves=curves,
        source=source if measured is None else {**source, "measured": measured},
        **{**DEFAULTS, **options.advice},
    )


def _trial(options: Options, settings: dict[str, Any], shape: ModelShape, data: Dataset) -> HeadScores:
    """What a run will come to, with other numbers."""
    curves = None
    if options.is_ablation:
        level = np.zeros((shape.n_heads, len(options.points)))
        curves = ablation.curves_of(level, options.points, shape)
    ones = np.ones((shape.n_layer, shape.n_head))
    return _scores(options, settings, shape, data, Tally(ones), ones, method=options.method, curves=curves)


def _by_attention(run: _Run, data: Dataset, instead: Dataset | None) -> tuple[HeadScores, Dataset, Tally]:
    options = run.options
    assert options.method != "ablation"
    measuring = run.measuring(options.teacher_forced)
    method, data, tally = first_that_works(measuring, options.method, data, instead, run.tell)
    name = f"{method}-teacher-forced" if options.teacher_forced else method
    return run.scores(data, tally, tally.mean, method=name), data, tally


def _by_ablation(run: _Run, data: Dataset) -> tuple[HeadScores, Tally]:
    llm, options = run.llm, run.options
    shape, examples = llm.shape, run.examples(data)
    attention = None
    if min(options.bases) < 100:
        base = run.measuring(forced=True).tally(_BASE, data)
        require_attention(base)
        attention = base.mean
    kept = ablation.settings_of(options)
    ablating = ablation.Ablating(llm, options, run.lengths, run.progress, run.bar, run.tell, attention, kept)
    tally = ablating.tally(examples)
    ablation.require_losses(tally)
    prior = None if attention is None else by_kv_head(attention, shape)[shape.heads]
    found = shrink(tally, shape.heads, prior)
    curves = ablation.curves_of(found.losses, options.points, shape)
    scores = run.scores(
        data,
        tally,
        ablation.scores_of(curves, shape),
        method=options.method,
        curves=curves,
        measured=",".join(f"{part:.0%}" for part in found.measured),
    )
    return scores, tally


def _usable_lengths(options: Options, tell: Tell) -> tuple[int, ...]:
    """Looks at the model's metadata alone, which is there long before its weights are."""
    with Llama(options.model, vocab_only=True, n_ctx=64) as llm:
        Prompter(llm, options.plain)  # refuses a model without chat template
    trained = trained_context(options.model)
    usable = tuple(length for length in options.lengths if length + _ROOM <= trained)
    for length in options.lengths:
        if length not in usable:
            tell(f"prompts of {length} tokens are skipped: with an answer, they do not fit into {trained}")
    if not usable:
        raise ArgumentError(f"no length is left: with its answer, none fits into {trained} tokens")
    return usable
