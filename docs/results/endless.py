"""An answer without an end: its speed, and what the cache holds, thousand tokens by thousand.

    python docs/results/endless.py [MODEL] [--tokens N] [--prompt N] [--archive memory|none]

Drawn at temperature 0.9 after a prompt of prose; where the model ends its answer, it goes on all the same.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from time import perf_counter
from typing import Any

from headkv_local import Llama, Retention
from headkv_local.bench import haystack, report
from headkv_local.models import default_model_path

_EACH = 1000


def measure(options: argparse.Namespace, archive: str | None) -> Iterator[dict[str, Any]]:
    n_ctx = options.prompt + options.tokens + _EACH
    with Llama(options.model, n_ctx=n_ctx, retention=Retention(archive=archive)) as llm:
        text = "\n\n".join(haystack.paragraphs())
        prompt = llm.tokenize(text.encode(), add_bos=True)[: options.prompt]
        started = perf_counter()
        for n, _ in enumerate(llm.generate(prompt, temp=0.9), start=1):
            if n == 1:
                started = perf_counter()  # the prompt is no part of it
            if n % _EACH == 0:
                now, stats = perf_counter(), llm.cache_stats()
                yield {
                    "archive": archive or "none",
                    "tokens": n,
                    "tokens_per_second": _EACH / (now - started),
                    "resident_bytes": stats.resident_bytes,
                    "archive_bytes": stats.archive_bytes,
                }
                started = perf_counter()
            if n == options.tokens:
                return


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", default=str(default_model_path()), help="GGUF file")
    parser.add_argument("--tokens", type=int, default=20_000, help="to generate (default: %(default)s)")
    parser.add_argument("--prompt", type=int, default=1000, help="tokens before (default: %(default)s)")
    parser.add_argument("--archive", default="none,memory", help="(default: %(default)s)")
    parser.add_argument("--json", metavar="FILE", help="where make.py reads the figures")
    options = parser.parse_args(arguments)

    results = []
    for archive in options.archive.split(","):
        for result in measure(options, None if archive == "none" else archive):
            results.append(result)
            print(result, file=sys.stderr, flush=True)
    report.save({"bench": "endless", "environment": report.environment(), "results": results}, options.json)


if __name__ == "__main__":
    main()
