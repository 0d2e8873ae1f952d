"""What a later turn loses: the likelihood of a text that goes on after a prompt that was compacted.

    python docs/results/next_turn.py MODEL [--prompt N] [--turn N] [--budgets LIST] [--scores FILE]

The prompt and what follows are one text of prose (`pydoc_data.topics`); nothing asks, so the last tokens
select.
Mean negative log-likelihood (NLL) of the turn's tokens but the first, in nats per token.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import Any

from headkv_local import Llama, Retention
from headkv_local.bench import haystack, report
from headkv_local.bench.quality import nll


def policies(budgets: list[str], scores: str | None) -> Iterator[tuple[str, Retention | None]]:
    yield "full", None
    for budget in budgets:
        kept = int(budget) if budget.isdigit() else budget
        yield f"uniform {budget}", Retention(budget=kept, scores="uniform")
        if scores is not None:
            yield f"scores {budget}", Retention(budget=kept, scores=scores)


def measure(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    n_all = options.prompt + options.turn
    with Llama(options.model, n_ctx=n_all + 8, flash_attn=True, swa_full=False) as llm:
        text = "\n\n".join(haystack.paragraphs())
        tokens = llm.tokenize(text.encode(), add_bos=True)[:n_all]
        if len(tokens) < n_all:
            raise SystemExit(f"the text has only {len(tokens)} tokens")
        prompt, turn = tokens[: options.prompt], tokens[options.prompt :]
        for name, retention in policies(options.budgets.split(","), options.scores):
            llm.reset()
            llm.retention = retention
            llm.prefill(prompt)
            stats = llm.cache_stats()
            found = nll(llm, turn[:1], turn[1:])
            yield {
                "policy": name,
                "kept_bytes": stats.kept_bytes,
                "kept_share": stats.kept_share,
                "nll": found,
            }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", metavar="MODEL", help="GGUF file")
    parser.add_argument("--prompt", type=int, default=3000, help="tokens (default: %(default)s)")
    parser.add_argument("--turn", type=int, default=1200, help="tokens after it (default: %(default)s)")
    parser.add_argument("--budgets", default="128,5%,10%,20%,30%", help="(default: %(default)s)")
    parser.add_argument("--scores", metavar="FILE", help="head scores, beside equal budgets")
    parser.add_argument("--json", metavar="FILE", help="where make.py reads the figures")
    options = parser.parse_args(arguments)

    results = []
    for result in measure(options):
        results.append(result)
        print(result, file=sys.stderr, flush=True)
    data = {"bench": "next-turn", "environment": report.environment(), "results": results}
    report.save(data, options.json)


if __name__ == "__main__":
    main()
