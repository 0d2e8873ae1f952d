"""`headkv bench quality`: its options. What measures is imported late."""

from __future__ import annotations

import argparse
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..settings import ADVANCED, DEFAULTS, given
from .options import LIST, Help, add_common, filled, haystacks, names_of, positive, setup_of, tell
from .questions import SINGLE_FACT, TASKS
from .suites import command as suites
from .suites.names import TASKS as SUITE_TASKS
from .suites.together import refuse_without_suite

if TYPE_CHECKING:
    from headkv_local import HeadScores

_LENGTHS, _BUDGETS, _SAMPLES = (1000, 2000, 4000), "32,64,128,256", 4


def add_parser(kinds: Any) -> None:
    parser = kinds.add_parser(
        "quality",
        help="right answers and likelihoods: full cache, recent window, uniform budgets, head scores",
        formatter_class=Help,
    )
    add_common(parser)
    add = parser.add_argument
    add("--seed", type=int, default=0, help="chooses haystacks and questions")
    add(
        "--max-tokens",
        type=positive,
        metavar="N",
        help="length of an answer (default: 24, with --wordings 32 for each question)",
    )
    recommended = "(default: what the scores recommend, else Retention's)"
    for name in DEFAULTS:
        setting = ADVANCED[name]
        add(f"--{name}", type=setting.of_text, help=f"{setting.meaning} {recommended}")
    add("--plain", action="store_true", help="ask without a chat template, for base models")
    names = "NAME[,...]"
    add("--tasks", type=_tasks, metavar=names, help="what is asked (default: all, with --wordings needle)")
    add(
        "--wordings",
        default="plain",
        metavar=names,
        help="how it is asked: plain, the sets development and test, or names of wordings",
    )
    add(
        "--haystacks",
        type=haystacks,
        default=("prose",),
        metavar=names,
        help="what hides facts: prose, code, table, chat (default: prose)",
    )
    add(
        "--question",
        choices=("marked", "text", "unknown"),
        default="marked",
        help="how it is known which tokens ask: the document is marked, one text, or not at all",
    )
    add(
        "--policies",
        type=_policies,
        metavar=names,
        help="which of full, recent, uniform, scores, reread to try (default: all but reread)",
    )
    add(
        "--lengths",
        type=suites.lengths,
        metavar=LIST,
        help=f"prompt lengths (default: {','.join(map(str, _LENGTHS))}; of ruler 4k, of babilong all)",
    )
    add(
        "--budgets",
        metavar=LIST,
        help=f"as --budget of speed (default: {_BUDGETS}; of a suite {suites.BUDGETS.replace('%', '%%')})",
    )
    add(
        "--samples",
        type=positive,
        metavar="N",
        help=f"prompts per task and length (default: {_SAMPLES}; of a suite all there are, of ruler 20)",
    )
    add(
        "--scores",
        type=filled,
        metavar="FILE[,...]",
        help="head scores to compare (default: those found for the model)",
    )
    add("--png", metavar="OUT", help="write a plot there (needs matplotlib)")
    suites.add_options(add)
    parser.set_defaults(run=_quality, default_of=parser.get_default)


def _quality(options: argparse.Namespace) -> None:
    if options.suite is not None:
        suites.run(options, _scores)
        return
    refuse_without_suite(options)
    from . import policies, quality, quality_report, report, wordings, wordings_report

    _require_own(options)
    asked = wordings.chosen(options.wordings)
    is_plain = asked == (wordings.PLAIN,)
    if not is_plain:
        _require_wide(options)
    setup = setup_of(options)
    scores = _scores(options.scores, setup.model)
    report.require_different(json=options.json, png=options.png)
    report.check_target(options.json)
    if options.png is not None:
        from . import plot

        plot.check(options.png)
    settings = quality.Settings(
        tasks=options.tasks or (tuple(TASKS) if is_plain else ("needle",)),
        lengths=options.lengths or _LENGTHS,
        n_samples=options.samples or _SAMPLES,
        seed=options.seed,
        max_tokens=options.max_tokens or (24 if is_plain else 32),
        plain=options.plain,
        wordings=asked,
        haystacks=options.haystacks,
        question=options.question,
    )
    budgets = policies.parse_budgets(_BUDGETS if options.budgets is None else options.budgets)
    tried = policies.all_of(budgets, scores, given(options), options.policies or policies.USUAL)
    outcomes: list[quality.Outcome] = []
    try:
        for outcome in quality.run(setup, settings, tried, tell):
            outcomes.append(outcome)
    finally:  # what was measured before an interrupt is worth its table
        if outcomes:
            sources = {name: dict(one.source) for name, one in scores.items()}
            inputs = {"settings": given(options), "scores": sources}
            data = quality_report.document(setup, settings, inputs, outcomes)
            if is_plain:
                text = quality_report.table(data["summary"])
            else:
                heading = wordings_report.heading(setup.model, settings)
                text = f"{heading}\n\n{wordings_report.table(outcomes)}"
            report.write(text, data, options.json)
            if options.png is not None:
                plot.write_png(data["summary"], options.png)


def _scores(files: str | None, model: str) -> dict[str, HeadScores]:
    """By name: the method, where another row has that with the file's stem, or with its whole path."""
    from headkv_local import ArgumentError, HeadScores
    from headkv_local.models import retained_shape

    from ..scoresfile.show import printable
    from .policies import EVERY

    if files is None:
        found = HeadScores.find(model)
        every = [] if found is None else [(found[1], found[0])]
    else:
        shape = retained_shape(model)
        every = [(Path(path), HeadScores.from_gguf(path)) for path in files.split(",")]
        for _, scores in every:
            scores.for_model(shape, model)  # refused now, not when all other policies have been measured
    named: dict[str, HeadScores] = {}
    for path, scores in every:
        method = scores.method
        if path.resolve() in (other.resolve() for other, _ in every if other is not path):
            raise ArgumentError(f"{path} is named twice")
        names = [printable(name) for name in (method, f"{method}:{path.stem}", f"{method}:{path}")]
        named[next(one for one in names if one not in named and one not in EVERY)] = scores
    return named


def _require_wide(options: argparse.Namespace) -> None:
    """Raises ArgumentError for options that only go with the wording plain."""
    from headkv_local import ArgumentError

    composed = [task for task in options.tasks or () if task not in SINGLE_FACT]
    if composed:
        raise ArgumentError(
            f"the answers of {composed[0]} do not stand in one place: only --wordings plain asks for them"
        )
    if options.plain:
        raise ArgumentError("wordings are chat messages: --plain, which has none, goes with --wordings plain")
    if options.png is not None:
        raise ArgumentError("--png plots likelihoods, which only --wordings plain measures")


def _require_own(options: argparse.Namespace) -> None:
    """Raises ArgumentError for a task of a suite."""
    from headkv_local import ArgumentError

    for task in options.tasks or ():
        if task not in TASKS:
            raise ArgumentError(f"{task} is a task of a suite: --suite NAME goes with it")


def _tasks(text: str) -> tuple[str, ...]:
    """Which of them go together is known later."""
    return names_of(text, "task", tuple(dict.fromkeys((*TASKS, *chain(*SUITE_TASKS.values())))))


def _policies(text: str) -> tuple[str, ...]:
    return names_of(text, "policy", ("full", "recent", "uniform", "scores", "reread"))
