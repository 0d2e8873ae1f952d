"""Scoring a model from beginning to end: settings, samples, the fallback, and the HeadScores they come to."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__, files
from ..bench import haystack
from ..bench.contexts import n_ctx_for
from ..budgets import ModelShape
from ..errors import ArgumentError
from ..llama import Llama
from ..models import model_id
from ..retention import Retention
from ..scores import HeadScores
from ..settings import DEFAULTS
from . import dataset, samples
from .attention import RIGHT_ABOVE, token_f1
from .dataset import Dataset, Kind
from .measure import ANSWER_TOKENS, observe
from .progress import Progress, Tally
from .prompt import Prompter

_LEAST_SAMPLES, _LEAST_SHARE = 8, 0.2  # that must be answered correctly
_ROOM = ANSWER_TOKENS + 64  # of the context, for the answer and for prompts that are a little too long
_CURE = "try --teacher-forced, or shorter --lengths; no scores were written"
_LICENCE = "CC0-1.0"

Tell = Callable[[str], None]
Bar = Callable[[str, int, int], None]
"""Called with method, samples done, samples in all."""


@dataclass(frozen=True)
class Options:
    """n_threads: None is one per core that may be used. examples: None stands for the project's own.

    advice: beta, window, kernel and sinks to recommend with the scores; Retention's where it has none.
    """

    model: str
    output: Path
    method: Kind = "r2"
    teacher_forced: bool = False
    plain: bool = False
    n_samples: int = 40
    lengths: tuple[int, ...] = (700, 1400)
    seed: int = 0
    examples: str | None = None
    n_threads: int | None = None
    n_gpu_layers: int = 0
    force: bool = False
    advice: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    scores: HeadScores
    tally: Tally


def run(options: Options, tell: Tell = lambda _: None, bar: Bar = lambda *_: None) -> Result:
    """Measure head scores and write them to options.output. Progress is kept; the next run goes on from it.

    Raises ArgumentError for an output that exists, bad examples or advice, a model without chat template,
    lengths that the model was not trained for (where others are left, those are skipped, and told), and
    where too few samples are answered correctly; ModelError and UnsupportedError for the model itself.
    """
    files.target(options.output, force=options.force, model=options.model)
    Retention(budget="100%", **options.advice)  # refuses what can never work
    data = dataset.load(options.method, options.examples)
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
        settings = _settings(options, data, lengths)
        progress = Progress(options.output, settings, (shape.n_layer, shape.n_head), force=options.force)
        measuring = _Measuring(llm, options, lengths, progress, bar)
        try:
            method, data, tally = _first_that_works(measuring, data, tell)
        except ArgumentError:
            progress.remove()  # the same settings would end here again
            raise
        scores = _head_scores(options, settings, data, method, tally, shape)
    scores.to_sidecar(options.output, force=options.force)
    progress.remove()
    return Result(scores, tally)


@dataclass(frozen=True)
class _Measuring:
    llm: Llama
    options: Options
    lengths: tuple[int, ...]
    progress: Progress
    bar: Bar

    def tally(self, method: Kind, data: Dataset) -> Tally:
        """All samples of one method that are not in its tally yet, or until too many were wrong."""
        llm, options = self.llm, self.options
        prompter = Prompter(llm, options.plain)
        template = len(prompter.tokenize(prompter.text("")))
        plans = samples.plan(data.examples, options.n_samples, self.lengths, options.seed)
        tally = self.progress.tally(method)
        self.bar(method, tally.done, len(plans))
        for plan in plans[tally.done :]:
            if self.too_few(tally.n_counted + len(plans) - tally.done):
                break
            example = plan.example
            content = samples.content(plan, plan.length - template, prompter.count)
            prompt = prompter.prompt(content, [example.facts[i] for i in example.needle])
            forced = prompter.answer(example.answer) if options.teacher_forced else None
            observed = observe(llm, prompt, forced)
            right = forced is not None or token_f1(observed.text, example.answer) > RIGHT_ABOVE
            tally.add(plan.half, observed.score if right else None)
            self.progress.save()
            self.bar(method, tally.done, len(plans))
        return tally

    def too_few(self, n_right: int) -> bool:
        n = self.options.n_samples
        return n_right < max(min(_LEAST_SAMPLES, n), ceil(_LEAST_SHARE * n))


def _first_that_works(measuring: _Measuring, data: Dataset, tell: Tell) -> tuple[Kind, Dataset, Tally]:
    """The method asked for; plain retrieval where the model does not answer the other one's questions."""
    method = measuring.options.method
    tally = measuring.tally(method, data)
    if measuring.too_few(tally.n_counted):
        said = f"only {tally.n_counted} of {tally.done} samples of the method {method!r} were answered right"
        if method == "r":
            raise ArgumentError(f"{said}: {_CURE}")
        tell(f"{said}, too few for scores: measuring plain retrieval (the method 'r') instead")
        method, data = "r", _plain(measuring.options, tell)
        tally = measuring.tally(method, data)
        if measuring.too_few(tally.n_counted):
            raise ArgumentError(f"{said}, and {tally.n_counted} of {tally.done} of the method 'r': {_CURE}")
    if tally.mean.max() == 0:
        raise ArgumentError("no head ever attended to a needle: no scores were written")
    return method, data, tally


def _usable_lengths(options: Options, tell: Tell) -> tuple[int, ...]:
    """Looks at the model's metadata alone, which is there long before its weights are."""
    with Llama(options.model, vocab_only=True, n_ctx=64) as llm:
        Prompter(llm, options.plain)  # refuses a model without chat template
        metadata = llm.metadata
    trained = int(metadata.get(f"{metadata.get('general.architecture')}.context_length", 0))
    usable = tuple(length for length in options.lengths if length + _ROOM <= trained)
    for length in options.lengths:
        if length not in usable:
            tell(f"prompts of {length} tokens are skipped: with an answer, they do not fit into {trained}")
    if not usable:
        raise ArgumentError(f"no length is left: with its answer, none fits into {trained} tokens")
    return usable


def _settings(options: Options, data: Dataset, lengths: tuple[int, ...]) -> dict[str, Any]:
    text = "\n".join(haystack.paragraphs())
    return {
        "version": __version__,
        "model": Path(options.model).name,
        "model_id": model_id(options.model),
        "method": options.method,
        "teacher_forced": options.teacher_forced,
        "plain": options.plain,
        "samples": options.n_samples,
        "lengths": list(lengths),
        "seed": options.seed,
        "examples": data.digest,
        "haystack": hashlib.sha256(text.encode()).hexdigest(),
    }


def _plain(options: Options, tell: Tell) -> Dataset:
    """The user's plain examples, or the project's where the user has only others."""
    try:
        return dataset.load("r", options.examples)
    except ArgumentError:
        tell("the examples given hold none of the kind 'r': this project's own are used")
        return dataset.load("r")


def _head_scores(
    options: Options, settings: dict[str, Any], data: Dataset, method: str, tally: Tally, shape: ModelShape
) -> HeadScores:
    own = "headkv-local's" if options.examples is None else "the user's"
    python = platform.python_version()
    return HeadScores(
        scores=tally.mean.astype(np.float32),
        layers=tuple(layer.il for layer in shape.layers),
        n_head_kv=shape.n_head_kv,
        method=f"{method}-teacher-forced" if options.teacher_forced else method,
        source={
            "model": settings["model"],
            "model_id": settings["model_id"],
            "data": f"{own} {data.name} in pydoc_data.topics of Python {python}",
            "samples": tally.n_counted,
            "samples_tried": tally.done,
            "seed": options.seed,
            "lengths": ",".join(map(str, settings["lengths"])),
            "date": datetime.now(timezone.utc).date().isoformat(),
            "licence": _LICENCE,
            "tool": f"headkv-local {__version__}",
        },
        **{**DEFAULTS, **options.advice},
    )
