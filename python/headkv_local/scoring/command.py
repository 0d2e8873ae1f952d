"""`headkv score`: its options. What measures is imported when it runs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from ..bench.options import Help, layers, positive, threads
from ..settings import given

_LIST = "N[,N...]"
_RECOMMENDED = "recommended in the file, for whoever uses the scores (default: Retention's)"


def add_parser(commands: Any) -> None:
    score = commands.add_parser(
        "score",
        help="measure how much each attention head of a model matters",
        description="Measure how much each attention head of a model matters, and write a sidecar with it.",
        formatter_class=Help,
    )
    add = score.add_argument
    add("model", metavar="MODEL", help="GGUF file of a model that answers questions")
    add("-o", "--output", metavar="OUT", type=Path, required=True, help="GGUF file to write the scores to")
    add("--method", choices=("r2", "r"), default="r2", help="retrieval with a reasoning step, or without")
    add("--teacher-forced", action="store_true", help="feed the right answer; every sample counts")
    add("--plain", action="store_true", help="ask without a chat template, for base models")
    add("--samples", type=positive, default=40, metavar="N", help="prompts in all")
    add("--lengths", type=_lengths, default=(700, 1400), metavar=_LIST, help="prompt lengths, in tokens")
    add("--seed", type=_seed, default=0, metavar="N", help="chooses haystacks, depths and the order")
    add("--examples", metavar="FILE", help="JSON Lines with examples of yours (default: the project's)")
    add("--threads", type=threads, metavar="N", help="CPU threads (default: one per core that may be used)")
    add("--gpu-layers", type=layers, metavar="N", help="layers on a GPU, -1 for all (default: all)")
    add("--beta", type=float, metavar="X", help=_RECOMMENDED)
    add("--window", type=int, metavar="N", help=_RECOMMENDED)
    add("--kernel", type=int, metavar="N", help=_RECOMMENDED)
    add("--sinks", type=int, metavar="N", help=_RECOMMENDED)
    add("--force", action="store_true", help="replace OUT, and the progress of another run")
    score.set_defaults(run=_score)


def _score(options: argparse.Namespace) -> None:
    from ..devices import all_layers, require_gpu
    from . import report, run

    require_gpu(options.gpu_layers or 0)
    settings = run.Options(
        model=options.model,
        output=options.output,
        method=options.method,
        teacher_forced=options.teacher_forced,
        plain=options.plain,
        n_samples=options.samples,
        lengths=options.lengths,
        seed=options.seed,
        examples=options.examples,
        n_threads=options.threads,
        n_gpu_layers=all_layers(options.gpu_layers),
        force=options.force,
        advice=given(options),
    )
    with _Bar() as bar:
        result = run.run(settings, bar.tell, bar.show)
    print(f"{report.text(result)}\nwritten to {options.output}")


class _Bar:
    """tqdm's bar on stderr where that is a terminal; one for each method that is measured."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._method = ""

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self, method: str, done: int, total: int) -> None:
        from tqdm import tqdm

        if method != self._method:
            self.__exit__()
            if done > 0:
                self.tell(f"going on after sample {done} of {total} of the method {method!r}")
            self._bar = tqdm(total=total, initial=done, desc=method, unit="sample", disable=None)
            self._method = method
        self._bar.update(done - self._bar.n)

    def tell(self, text: str) -> None:
        from tqdm import tqdm

        tqdm.write(f"headkv score: {text}", file=sys.stderr)


def _lengths(text: str) -> tuple[int, ...]:
    return tuple(positive(part) for part in text.split(","))


def _seed(text: str) -> int:
    """A GGUF key of 32 bits holds it."""
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer from 0 to {2**32 - 1}")
    return int(text)
