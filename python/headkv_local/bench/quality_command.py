"""`headkv bench quality`: its options. What measures is imported late."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._defaults import given
from .options import LIST, Help, add_common, positive, positives, setup_of, tell

if TYPE_CHECKING:
    from headkv_local import HeadScores


def add_parser(kinds: Any) -> None:
    parser = kinds.add_parser(
        "quality",
        help="right answers and likelihoods: full cache, recent window, uniform budgets, head scores",
        formatter_class=Help,
    )
    add_common(parser)
    add = parser.add_argument
    add("--seed", type=int, default=0, help="chooses haystacks and questions")
    add("--max-tokens", type=positive, default=24, metavar="N", help="length of an answer")
    recommended = "(default: what the scores recommend, else Retention's)"
    add("--window", type=int, help=f"observation window, in tokens {recommended}")
    add("--kernel", type=int, help=f"width of the max-pool {recommended}")
    add("--sinks", type=int, help=f"first positions always kept {recommended}")
    add("--plain", action="store_true", help="ask without a chat template, for base models")
    add("--tasks", type=_tasks, default="needle,keys,hops,prose", metavar="NAME[,...]", help="what is asked")
    add("--lengths", type=positives, default=(1000, 2000, 4000), metavar=LIST, help="prompt lengths")
    add("--budgets", default="32,64,128,256", metavar=LIST, help="as --budget of speed")
    add("--samples", type=positive, default=4, metavar="N", help="prompts per task and length")
    add("--scores", metavar="FILE[,...]", help="head scores to compare (default: those found for the model)")
    add("--beta", type=float, help="of the budgets by scores (default: what the scores recommend)")
    add("--png", metavar="OUT", help="write a plot there (needs matplotlib)")
    parser.set_defaults(run=_quality)


def _quality(options: argparse.Namespace) -> None:
    from . import policies, quality, quality_report, report

    setup = setup_of(options)
    scores = _scores(options.scores, setup.model)
    report.check_target(options.json)
    if options.png is not None:
        from . import plot

        plot.check(options.png)
    settings = quality.Settings(
        tasks=options.tasks,
        lengths=options.lengths,
        n_samples=options.samples,
        seed=options.seed,
        max_tokens=options.max_tokens,
        plain=options.plain,
    )
    tried = policies.all_of(policies.parse_budgets(options.budgets), scores, given(options))
    outcomes: list[quality.Outcome] = []
    try:
        for outcome in quality.run(setup, settings, tried, tell):
            outcomes.append(outcome)
    finally:  # what was measured before an interrupt is worth its table
        if outcomes:
            lines = quality_report.summary(outcomes)
            sources = {name: dict(one.source) for name, one in scores.items()}
            inputs = {"settings": given(options), "scores": sources}
            data = quality_report.document(setup, settings, inputs, outcomes)
            report.write(quality_report.table(lines), data, options.json)
            if options.png is not None:
                plot.write_png(lines, options.png)


def _scores(files: str | None, model: str) -> dict[str, HeadScores]:
    """By name: the method, with the file's stem where two have the same."""
    from headkv_local import ArgumentError, HeadScores
    from headkv_local._gguf import model_shape

    if files is None:
        found = HeadScores.find(model)
        return {} if found is None else {found[0].method: found[0]}
    named: dict[str, HeadScores] = {}
    shape = model_shape(model)
    for path in files.split(","):
        scores = HeadScores.from_gguf(path)
        scores.check_model(*shape, model)  # not when all other policies have been measured
        name = scores.method if scores.method not in named else f"{scores.method}:{Path(path).stem}"
        if name in named:
            raise ArgumentError(f"{path} is named twice")
        named[name] = scores
    return named


def _tasks(text: str) -> tuple[str, ...]:
    from .questions import TASKS

    names = tuple(text.split(","))
    for name in names:
        if name not in TASKS:
            raise argparse.ArgumentTypeError(f"{name!r} is no task: {', '.join(TASKS)}")
    return tuple(dict.fromkeys(names))
