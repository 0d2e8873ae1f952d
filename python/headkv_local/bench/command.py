"""`headkv bench`: its kinds, and the options of `speed`. What measures is imported when it runs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from . import cancel_command, quality_command, turns_command
from .options import LIST, Help, add_common, archive_names, order_names, positive, positives, setup_of, tell

_DEFAULT = "speed"


def with_default(arguments: list[str]) -> list[str]:
    """`headkv bench` alone, or with options only, means `headkv bench speed`."""
    if arguments[:1] != ["bench"]:
        return arguments
    first = arguments[1] if len(arguments) > 1 else "-"
    names_kind = not first.startswith("-") or first in ("-h", "--help")
    return arguments if names_kind else ["bench", _DEFAULT, *arguments[1:]]


def add_parser(commands: Any) -> None:
    bench = commands.add_parser("bench", help="measure speed, memory and the quality of answers")
    kinds = bench.add_subparsers(dest="kind", required=True, metavar="KIND")
    speed = kinds.add_parser(
        "speed",
        help="stock and compacted cache side by side (the default)",
        formatter_class=Help,
    )
    add_common(speed)
    add = speed.add_argument
    add("--prompt-tokens", type=positives, default="6000", metavar=LIST, help="prompt lengths")
    add(
        "--budget",
        default="128",
        metavar="B[,B...]",
        help="entries per KV head, '5%%' of the prompt or '64MiB'",
    )
    add("--repeat", type=positive, default=3, metavar="N", help="passes, medians over all")
    add("--compactions", type=positive, default=3, metavar="N", help="compactions per pass and budget")
    add(
        "--short-depth",
        type=_depth,
        metavar="N",
        help="depth of the short stock context (default: the budget)",
    )
    add("--decode-tokens", type=positive, default=64, metavar="N", help="decode steps per pass")
    add("--stock-flash", choices=("on", "off"), default="on", help="flash attention of the stock cache")
    add("--no-rss", action="store_true", help="skip the process of its own that measures memory")
    add(
        "--keep-model", metavar="DIR", help="folder where a random model stays (default: none, it is removed)"
    )
    add(
        "--order",
        type=order_names,
        metavar="ORDER[,...]",
        help="measure instead how a prompt is read: all layers batch by batch (tokens), or layer by layer "
        "(layers)",
    )
    add(
        "--archive",
        type=archive_names,
        metavar="WHERE[,...]",
        help="with --order: none, memory, file (default: all three)",
    )
    speed.set_defaults(run=_speed, default_of=speed.get_default)
    quality_command.add_parser(kinds)
    turns_command.add_parser(kinds)
    cancel_command.add_parser(kinds)


def _speed(options: argparse.Namespace) -> None:
    from . import random_model, report, speed, speed_figures, speed_report
    from .policies import parse_budgets

    if options.order is not None:
        _orders(options)
        return
    _refuse(options, ("archive",), "goes with --order")
    report.check_target(options.json)
    settings = speed.Settings(
        prompt_tokens=options.prompt_tokens,
        budgets=tuple(parse_budgets(options.budget)),
        repeat=options.repeat,
        compactions=options.compactions,
        short_depth=options.short_depth,
        decode_tokens=options.decode_tokens,
        stock_flash=options.stock_flash == "on",
        own_process=not options.no_rss,
    )
    setup = setup_of(options)
    tell(f"model {setup.model}")
    with random_model.opened(setup.model, _keep_in(options)) as path:
        results: list[speed_figures.Speed] = []

        def made() -> dict[str, Any] | None:
            return speed_report.document(setup, settings, results) if results else None

        with report.saving(made, options.json):
            for found in speed.run(replace(setup, model=path), settings, tell):
                results += found  # a run that is killed later leaves what it has found so far
                if options.json != "-":
                    report.save(made(), options.json)
                report.show(speed_report.details(setup, settings, found) + "\n", options.json)
            if len(results) > 1:
                report.show(speed_report.side_by_side(results), options.json)


def _orders(options: argparse.Namespace) -> None:
    from . import orders, orders_report, random_model, report
    from .policies import parse_budgets

    _refuse(
        options, ("compactions", "short_depth", "decode_tokens", "stock_flash"), "does not go with --order"
    )
    report.check_target(options.json)
    settings = orders.Settings(
        orders=options.order,
        archives=options.archive or orders.ARCHIVES,
        prompt_tokens=options.prompt_tokens,
        budgets=tuple(parse_budgets(options.budget)),
        repeat=options.repeat,
        own_process=not options.no_rss,
    )
    setup = setup_of(options)
    tell(f"model {setup.model}")
    with random_model.opened(setup.model, _keep_in(options)) as path:
        results: list[list[orders.Figures]] = []

        def made() -> dict[str, Any] | None:
            return orders_report.document(setup, settings, results) if results else None

        with report.saving(made, options.json):
            for found in orders.run(replace(setup, model=path), settings, tell):
                results.append(found)  # a run that is killed later leaves what it has found so far
                if options.json != "-":
                    report.save(made(), options.json)
                report.show(orders_report.details(setup, settings, found) + "\n", options.json)


def _refuse(options: argparse.Namespace, names: Sequence[str], why: str) -> None:
    """Raises ArgumentError for an option that was given and would do nothing."""
    from headkv_local import ArgumentError

    for name in names:
        if getattr(options, name) != options.default_of(name):
            raise ArgumentError(f"--{name.replace('_', '-')} {why}")


def _keep_in(options: argparse.Namespace) -> Path | None:
    return None if options.keep_model is None else Path(options.keep_model)


def _depth(text: str) -> int:
    return 0 if text == "0" else positive(text)
