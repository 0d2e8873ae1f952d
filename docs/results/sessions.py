"""A session against the prefill that it saves: seconds until the first token, and bytes.

python docs/results/sessions.py [MODEL] [--prompt N]
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

from headkv_local import Llama, Retention
from headkv_local.bench import haystack, report
from headkv_local.models import default_model_path


def measure(options: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    for archive in ("memory", str(folder / "archive")):
        name = "memory" if archive == "memory" else "file"
        with Llama(options.model, n_ctx=options.prompt + 256, retention=Retention(archive=archive)) as llm:
            text = "\n\n".join(haystack.paragraphs())
            prompt = llm.tokenize(text.encode(), add_bos=True)[: options.prompt]
            started = perf_counter()
            first = next(llm.generate(prompt, temp=0))
            prefill, stats = perf_counter() - started, llm.cache_stats()
            for light in (False, True):
                path = folder / f"{name}-{light}"
                started = perf_counter()
                llm.save_session(path, light=light)
                yield {
                    "archive": name,
                    "kind": "light" if light else "whole",
                    "prefill_seconds": prefill,
                    "save_seconds": perf_counter() - started,
                    "file_bytes": os.path.getsize(path),
                    "kept_bytes": stats.kept_bytes,
                }
        for kind in ("whole", "light"):
            started = perf_counter()
            with Llama.open_session(folder / f"{name}-{kind == 'light'}") as llm:
                again = next(llm.generate(prompt, temp=0))
                yield {"archive": name, "kind": kind, "open_seconds": perf_counter() - started}
            if again != first:
                raise SystemExit("the session goes on with another token")


def merged(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One for each kind of archive and session."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for one in results:
        found.setdefault((one["archive"], one["kind"]), {}).update(one)
    return list(found.values())


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", default=str(default_model_path()), help="GGUF file")
    parser.add_argument("--prompt", type=int, default=6000, help="tokens (default: %(default)s)")
    parser.add_argument("--json", metavar="FILE", help="where make.py reads the figures")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        results = merged(list(measure(options, Path(folder))))
    report.save({"bench": "sessions", "environment": report.environment(), "results": results}, options.json)


if __name__ == "__main__":
    main()
