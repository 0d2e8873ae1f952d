"""`headkv bench quality --suite`: its options. What measures is imported late."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import ArgumentError
from ...settings import DEFAULTS, given
from ..options import filled, names_of, positive, positives, setup_of, tell
from .names import ANEW, BABILONG, BEFORE, CHOSEN, LENGTHS, LONGBENCH, LOOGLE, RULER, TASKS, WITH
from .together import check

if TYPE_CHECKING:
    from headkv_local import HeadScores, Llama

    from .item import Item
    from .prompts import Fitting
    from .results import Outcome

BUDGETS = "2%,5%,10%"


def add_options(add: Callable[..., Any]) -> None:
    add(
        "--suite", choices=tuple(TASKS), help="ask the questions of a public suite; what follows goes with it"
    )
    add(
        "--data",
        type=filled,
        metavar="DIR",
        help="where the suite's files are; ruler needs some for qa_1 and qa_2",
    )
    add(
        "--results",
        type=filled,
        metavar="FILE",
        help="each answer is added to this file of JSON lines, and a run that was ended goes on from it "
        "(default: with --json OUT.json OUT.jsonl)",
    )
    add(
        "--context",
        type=positive,
        metavar="N",
        help="leave out what takes more tokens with its answer (default: what the model was trained for)",
    )
    add(
        "--truncate-middle",
        action="store_true",
        help="cut out the middle of what does not fit, as LongBench does, and say so",
    )
    add(
        "--chosen",
        type=lambda text: names_of(text, "time of choosing", CHOSEN),
        metavar="WHEN[,...]",
        help=f"when what is kept of a document is chosen: {WITH} the question; {BEFORE} it is known; "
        f"before it and {ANEW} when it comes, from an archive (default: {WITH})",
    )


def lengths(text: str) -> tuple[int, ...]:
    """For argparse: numbers of tokens, "4k" is 4096."""
    for part in text.split(","):
        if part.endswith("k") and part not in LENGTHS:
            raise argparse.ArgumentTypeError(
                f"{part!r} is none of {', '.join(LENGTHS)}: write its tokens out"
            )
    return positives(text, LENGTHS)


def run(options: argparse.Namespace, scores: Callable[[str | None, str], dict[str, HeadScores]]) -> None:
    """scores: finds head scores, of files or for a model."""
    from headkv_local import __version__
    from headkv_local.build import build_id
    from headkv_local.models import model_id

    from .. import policies, report
    from . import report as suite_report
    from . import results as results_file
    from . import run as running

    check(options)
    setup = setup_of(options)
    named = scores(options.scores, setup.model)
    results_path = _results_path(options)
    report.require_different(json=options.json, results=results_path, png=options.png)
    report.check_target(options.json)
    if options.png is not None:
        from .. import plot

        plot.check(options.png)
    budgets = policies.parse_budgets(BUDGETS if options.budgets is None else options.budgets)
    tried = policies.all_of(budgets, named, given(options), options.policies or policies.USUAL)
    ways = running.ways_of(tried, options.chosen or (WITH,))
    if not ways:
        raise ArgumentError("reread chooses once, for all questions, and never anew: --chosen with or before")
    limit = _limit(options, setup.model)
    said = settings(options)
    header = {
        "suite": options.suite,
        "version": __version__,
        "build": build_id(),
        "model_id": model_id(setup.model),
        **{name: getattr(setup, name) for name in ("type_k", "type_v", "n_gpu_layers")},
        "n_threads": setup.threads,
        **{name: said[name] for name in ("plain", "seed", "max_tokens")},
        **{name: getattr(options, name) for name in DEFAULTS},
    }
    sorted_items = prepared(setup.model, said, limit)
    left_out = suite_report.left_out(sorted_items, limit)
    results = results_file.Results(results_path, header, {"model": setup.model, "limit": limit, **said})
    budgets = results.budgets((*policies.EVERY, *named))
    held = policies.all_of(budgets, named, given(options), policies.EVERY)
    labels = [way.label for way in ways]
    outcomes: list[Outcome] = []

    def conclude() -> None:
        outcomes.extend(results.others(outcomes))
        if outcomes:
            data = _document(setup, {**header, **said, "limit": limit}, named, left_out, outcomes, labels)
            sentences = suite_report.left_out_sentences(left_out, _can_cut(options))
            text = "\n".join([suite_report.table(data["summary"]), *sentences])
            report.write(text, data, options.json)
            if options.png is not None:
                from .plot import write_png

                write_png(data["summary"], options.png)

    try:
        for outcome in running.run(
            setup, sorted_items.fitting, ways, results, options.plain, tell, running.ways_of(held, CHOSEN)
        ):
            outcomes.append(outcome)
    except BaseException:
        with suppress(OSError):  # what was measured is worth its table, and why it ended is said then
            conclude()
        raise
    conclude()
    if not outcomes:
        _refuse_empty(left_out, options)


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """What prompts are made of, so that another program can make them again."""
    return {
        "suite": options.suite,
        "data": options.data,
        "tasks": options.tasks,
        "lengths": options.lengths,
        "samples": options.samples,
        "seed": options.seed,
        "plain": options.plain,
        "max_tokens": options.max_tokens,
        "truncate_middle": options.truncate_middle,
    }


def prepared(model: str, said: dict[str, Any], limit: int) -> Any:
    """prompts.Sorted: the items of settings() that fit into `limit` tokens, and the others."""
    from dataclasses import replace

    from headkv_local import Llama

    from . import metrics, prompts

    beyond: list[prompts.Fitting] = []
    if said["suite"] == RULER:
        said, beyond = _within(said, limit)
    with Llama(model, vocab_only=True, n_ctx=64) as llm:
        items = _first(_items(said, llm), said["samples"])
        metrics.require(items)
        if said["max_tokens"]:
            items = [replace(item, max_tokens=said["max_tokens"]) for item in items]
        found = prompts.fitted(llm, items, limit, said["plain"], said["truncate_middle"])
    found.too_long.extend(beyond)
    return found


def _within(said: dict[str, Any], limit: int) -> tuple[dict[str, Any], list[Fitting]]:
    """The lengths of ruler that may fit, and samples of the others, whose prompts would take long to make.

    One that is a little longer than the limit may fit, as no prompt is longer than it has to be.
    """
    from . import ruler
    from .prompts import Fitting
    from .ruler_sample import LEAST_SHARE

    asked = said["lengths"] or ruler.LENGTHS
    beyond = [length for length in asked if LEAST_SHARE * length > limit]
    n, data = said["samples"] or ruler.N_SAMPLES, Path(said["data"]) if said["data"] else None
    items = ruler.unmade(said["tasks"], beyond, n, data)
    within = tuple(length for length in asked if length not in beyond)
    return {**said, "lengths": within}, [Fitting(item, int(item.length), 0) for item in items]


def _items(said: dict[str, Any], llm: Llama) -> list[Item]:
    from . import babilong, longbench, loogle, ruler

    suite, tasks, data = said["suite"], said["tasks"], Path(said["data"] or "")
    if suite == BABILONG:
        return babilong.items(data, tasks, said["lengths"])
    if suite == LONGBENCH:
        return longbench.items(data, tasks)
    if suite == LOOGLE:
        return loogle.items(data, tasks)
    from ..prompts import chat_tokens, length_of, plain_tokens

    n_template = len((plain_tokens if said["plain"] else chat_tokens)(llm, ""))
    return ruler.items(
        tasks,
        said["lengths"],
        said["samples"] or ruler.N_SAMPLES,
        said["seed"],
        lambda text: length_of(llm, text),
        n_template,
        data if said["data"] else None,
        said["max_tokens"],
    )


def _first(items: Sequence[Item], n: int | None) -> list[Item]:
    """Of each task and length the first n, in the order of the items."""
    return [item for item in items if n is None or item.number < n]


def _can_cut(options: argparse.Namespace) -> bool:
    """Whether --truncate-middle would change what does not fit."""
    return not options.truncate_middle and options.suite != RULER


def _limit(options: argparse.Namespace, model: str) -> int:
    from headkv_local.models import trained_context

    trained: int = trained_context(model)
    if options.context and trained and options.context > trained:
        raise ArgumentError(
            f"the model was trained for {trained} tokens, --context {options.context} is more"
        )
    if not (options.context or trained):
        raise ArgumentError(
            "the model's file does not say how many tokens it was trained for: give --context"
        )
    return int(options.context or trained)


def _results_path(options: argparse.Namespace) -> Path | None:
    if options.results is not None:
        return Path(options.results)
    if options.json in (None, "-"):
        return None
    path = Path(options.json).with_suffix(".jsonl")
    return path if path != Path(options.json) else path.with_suffix(".results.jsonl")


def _document(
    setup: Any,
    said: dict[str, Any],
    named: dict[str, HeadScores],
    left_out: dict[str, Any],
    outcomes: Sequence[Outcome],
    labels: Sequence[str],
) -> dict[str, Any]:
    """What --json writes."""
    from dataclasses import asdict

    from .. import report
    from . import longbench
    from .report import summary

    return report.document(
        "suite",
        setup,
        said,
        official_prompts=said["suite"] == LONGBENCH and longbench.has_official_prompts(Path(said["data"])),
        scores={name: dict(one.source) for name, one in named.items()},
        left_out=left_out,
        summary=summary(outcomes, labels),
        outcomes=[asdict(outcome) for outcome in outcomes],
    )


def _refuse_empty(left_out: dict[str, dict[str, Any]], options: argparse.Namespace) -> None:
    from .report import left_out_sentences

    sentences = left_out_sentences(left_out, _can_cut(options))
    raise ArgumentError("; ".join(["nothing is left to ask", *sentences]))
