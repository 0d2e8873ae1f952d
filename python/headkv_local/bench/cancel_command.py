"""`headkv bench cancel`: its options, its table and its JSON. What measures is imported late."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from .options import LIST, Help, add_common, archive_names, order_names, positive, positives, setup_of, tell

if TYPE_CHECKING:
    from .cancel import Figures, Settings
    from .contexts import Setup


def add_parser(kinds: Any) -> None:
    parser = kinds.add_parser(
        "cancel",
        help="how long a call goes on after cancel(), while it reads and while it generates",
        formatter_class=Help,
    )
    add_common(parser)
    add = parser.add_argument
    add("--prompt-tokens", type=positives, default="2000", metavar=LIST, help="prompt lengths")
    add("--budget", default="128", metavar="B", help="entries per KV head, '5%%' of the prompt or '64MiB'")
    add(
        "--order",
        type=order_names,
        default="tokens,layers",
        metavar="ORDER[,...]",
        help="as --order of speed",
    )
    add(
        "--archive",
        type=archive_names,
        default="none,memory",
        metavar="WHERE[,...]",
        help="none, memory, file",
    )
    add("--cancels", type=positive, default=200, metavar="N", help="cancels of each kind of work")
    add("--answer-tokens", type=positive, default=64, metavar="N", help="length of an answer")
    add("--seed", type=int, default=0, help="chooses the moments")
    parser.set_defaults(run=_cancel)


def _cancel(options: argparse.Namespace) -> None:
    from . import cancel, random_model, report
    from .policies import checked_budget

    report.check_target(options.json)
    settings = cancel.Settings(
        orders=options.order,
        archives=options.archive,
        prompt_tokens=options.prompt_tokens,
        budget=checked_budget(options.budget),
        cancels=options.cancels,
        answer_tokens=options.answer_tokens,
        seed=options.seed,
    )
    setup = setup_of(options)
    results: list[cancel.Figures] = []

    def made() -> dict[str, Any] | None:
        return _document(setup, settings, results) if results else None

    with random_model.opened(setup.model, None) as path, report.saving(made, options.json):
        for found in cancel.run(replace(setup, model=path), settings, tell):
            results += found  # a run that is killed later leaves what it has found so far
            if options.json != "-":
                report.save(made(), options.json)
            report.show(_table(setup, settings, found) + "\n", options.json)


def _table(setup: Setup, settings: Settings, results: Sequence[Figures]) -> str:
    """All work with one prompt."""
    from headkv_local.machine import cpu_name

    from . import report

    title = (
        f"prompt {results[0].n_prompt} tokens, budget {settings.budget}, threads "
        f"{setup.n_threads or 'default'}, {settings.cancels} cancels each, {cpu_name()}"
    )
    rows = [
        (f"{one.doing}, {one.way.label}", *map(_milliseconds, (one.step, *one.summary.values())))
        for one in results
    ]
    header = ("what is cancelled", "a batch or token", "median", "p99", "max")
    return f"{title}\n\n{report.table(header, rows)}"


def _document(setup: Setup, settings: Settings, results: Sequence[Figures]) -> dict[str, Any]:
    """What --json writes."""
    from . import report

    return report.document("cancel", setup, asdict(settings), results=[one.as_dict() for one in results])


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms"
