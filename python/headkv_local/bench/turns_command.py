"""`headkv bench turns`: its options. What measures is imported late."""

from __future__ import annotations

import argparse
from typing import Any

from .options import LIST, Help, add_common, haystacks, positive, positives, setup_of, tell, ways


def add_parser(kinds: Any) -> None:
    parser = kinds.add_parser(
        "turns",
        help="several questions about a document in every order: full cache, chosen once, anew, asked fresh",
        formatter_class=Help,
    )
    add_common(parser)
    add = parser.add_argument
    names = "NAME[,...]"
    add("--tokens", type=positives, default="1000", metavar=LIST, help="lengths of documents")
    add("--ways", type=ways, default="full,once,anew,fresh", metavar=names, help="which of these to try")
    add("--budget", default="64,128", metavar="B[,B...]", help="as --budget of speed")
    add(
        "--samples",
        type=positive,
        default=24,
        metavar="N",
        help="questions at each turn, a multiple of 4; with 24 all orders come equally often",
    )
    add(
        "--wordings",
        default="test",
        metavar=names,
        help="how it is asked: test, development, plain, or names of wordings; of these all that put one "
        "question behind the document",
    )
    add("--haystacks", type=haystacks, default="prose", metavar=names, help="prose, code, table, chat")
    add("--seed", type=int, default=0, help="chooses haystacks, questions and orders")
    add("--max-tokens", type=positive, default=32, metavar="N", help="length of an answer")
    parser.set_defaults(run=_turns)


def _turns(options: argparse.Namespace) -> None:
    from . import policies, report, turns, turns_report, wordings

    settings = turns.Settings(
        lengths=options.tokens,
        budgets=tuple(policies.parse_budgets(options.budget)),
        wordings=turns.usable(wordings.chosen(options.wordings)),
        n_samples=options.samples,
        seed=options.seed,
        max_tokens=options.max_tokens,
        haystacks=options.haystacks,
        ways=options.ways,
    )
    setup = setup_of(options)
    report.check_target(options.json)
    outcomes: list[turns.Outcome] = []
    try:
        for of_document in turns.run(setup, settings, tell):
            outcomes += of_document
    finally:  # the documents before an interrupt are worth their table
        if outcomes:
            data = turns_report.document(setup, settings, outcomes)
            text = f"{turns_report.heading(setup.model, settings)}\n\n{turns_report.table(data['summary'])}"
            report.write(text, data, options.json)
