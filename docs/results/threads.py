"""Decoding speed by number of threads, on idle cores and on cores that other processes use as well.

    python docs/results/threads.py [--model FILE] [--tokens N] [--runs N] [--json FILE]

"open" is what Llama does where the caller leaves n_threads open: as many as there are free cores.
Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from time import perf_counter
from typing import Any

from headkv_local import Llama, default_model_path
from headkv_local.bench import report
from headkv_local.machine import default_threads

PROMPT = b"The harbour"
WARM_UP = 32  # tokens, in which the library looks at the load of the cores


@contextmanager
def busy_cores(n: int) -> Iterator[None]:
    """n processes that do nothing but compute."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(n)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def rate(llm: Llama, n_tokens: int) -> float:
    """Tokens per second of greedy decoding behind a short prompt."""
    llm.reset()
    llm.eval(llm.tokenize(PROMPT))
    for n in (WARM_UP, n_tokens):
        start = perf_counter()
        for _ in range(n):
            llm.eval([llm.sample(temp=0.0)])
    return n_tokens / (perf_counter() - start)


def measure(model: str, n_tokens: int, n_runs: int) -> list[dict[str, Any]]:
    """All settings in turn, run by run: what else happens on the machine meets each of them."""
    settings = (None, *sorted({1, default_threads()}))
    results: list[dict[str, Any]] = [{"threads": n or "open", "idle": [], "busy": []} for n in settings]
    with ExitStack() as stack:
        n_ctx = WARM_UP + n_tokens + 32
        models = [stack.enter_context(Llama(model, n_ctx=n_ctx, n_threads=n)) for n in settings]
        for name, n_others in (("idle", 0), ("busy", os.cpu_count() or 1)):
            with busy_cores(n_others):
                for _ in range(n_runs):
                    for llm, result in zip(models, results, strict=True):
                        result[name].append(rate(llm, n_tokens))
    return results


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=None, help="GGUF file (default: the default model)")
    parser.add_argument("--tokens", type=int, default=96, help="decoded per run (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=5, help="(default: %(default)s)")
    parser.add_argument("--json", metavar="FILE", help="where make.py reads the figures")
    options = parser.parse_args(arguments)

    model = options.model or str(default_model_path())
    results = measure(model, options.tokens, options.runs)
    for result in results:
        print(result, file=sys.stderr)
    data = {"bench": "threads", "environment": report.environment(), "results": results}
    report.save(data, options.json)


if __name__ == "__main__":
    main()
