"""`headkv score`: its options. What measures is imported when it runs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from ..bench.options import Help, add_gpu_layers, filled, positive, positives, threads
from ..errors import ArgumentError
from ..settings import ADVANCED, DEFAULTS, UINT32_MAX, given
from .dataset import KINDS

_LIST = "N[,N...]"
_METHODS = (*KINDS, "ablation")
_METHOD = (
    "by attention: retrieval with a reasoning step (r2) or without (r), in-context learning (icl), "
    "truthfulness (truth); ablation: by what the loss of answers changes"
)
_KIND = "of examples, for ablation (default: r,r2, or all that --examples holds)"
_POINTS = "for ablation: percent of the prompt, beyond the window, that one head keeps (default: 0,3,10,30)"
_BASE = (
    "for ablation: percent of it that the others keep meanwhile, of several the mean loss counts "
    "(default: 5)"
)
_BETA = "recommended in the file (default: chosen on examples that are held out)"
_RECOMMENDED = "measured with where that matters, and recommended in the file (default: Retention's)"


def add_parser(commands: Any) -> None:
    score = commands.add_parser(
        "score",
        help="measure how much each attention head of a model matters",
        description="Measure how much each attention head of a model matters, and write a sidecar with it.",
        formatter_class=Help,
    )
    add = score.add_argument
    model = score.add_mutually_exclusive_group(required=True).add_argument
    model(
        "model",
        metavar="MODEL",
        nargs="?",
        default=argparse.SUPPRESS,  # else it takes the place of the option's
        help="GGUF file of a model that answers questions",
    )
    model("-m", "--model", metavar="MODEL", help="the same, as an option")
    add("-o", "--output", metavar="OUT", type=Path, required=True, help="GGUF file to write the scores to")
    add("--method", choices=_METHODS, default="r2", help=_METHOD)
    add("--kind", dest="kinds", type=_kinds, metavar="K[,K...]", help=_KIND)
    add("--points", type=_points, metavar="P[,P...]", help=_POINTS)
    add("--base", dest="bases", type=_bases, metavar="P[,P...]", help=_BASE)
    add("--teacher-forced", action="store_true", help="feed the right answer; every sample counts")
    add("--plain", action="store_true", help="ask without a chat template, for base models")
    add("--samples", type=positive, default=40, metavar="N", help="prompts in all")
    add(
        "--lengths",
        type=positives,
        default=(700, 1400),
        metavar=_LIST,
        help="prompt lengths, in tokens (default: 700,1400)",
    )
    add("--seed", type=_seed, default=0, metavar="N", help="chooses haystacks, depths and the order")
    add(
        "--examples",
        type=filled,
        metavar="FILE",
        help="JSON Lines with examples of yours (default: the project's)",
    )
    add("--threads", type=threads, metavar="N", help="CPU threads (default: one per physical core)")
    add_gpu_layers(score)
    for name in DEFAULTS:
        of_text, meaning = ADVANCED[name]
        add(
            f"--{name}",
            type=of_text,
            metavar="X" if name == "beta" else "N",
            help=f"{meaning}; {_BETA if name == 'beta' else _RECOMMENDED}",
        )
    add("--force", action="store_true", help="replace OUT, and the progress of another run")
    score.set_defaults(run=_score)


def _score(options: argparse.Namespace) -> None:
    from ..devices import layers_to_measure
    from . import report, run

    settings = run.Options(
        model=options.model,
        output=options.output,
        method=options.method,
        **_of_ablation(options),
        teacher_forced=options.teacher_forced,
        plain=options.plain,
        n_samples=options.samples,
        lengths=options.lengths,
        seed=options.seed,
        examples=options.examples,
        n_threads=options.threads,
        n_gpu_layers=layers_to_measure(options.gpu_layers),
        force=options.force,
        advice=given(options),
    )
    with _Bar() as bar:
        result = run.run(settings, bar.tell, bar.show)
    print(f"{report.text(result)}\nwritten to {options.output}")


def _of_ablation(options: argparse.Namespace) -> dict[str, Any]:
    """The options that go with that method alone, where they were given."""
    values = {name: getattr(options, name) for name in ("kinds", "points", "bases")}
    found = {name: value for name, value in values.items() if value is not None}
    if found and options.method != "ablation":
        raise ArgumentError("--kind, --points and --base go with --method ablation")
    if options.teacher_forced and options.method == "ablation":
        raise ArgumentError(
            "--teacher-forced goes with the other methods: ablation feeds the right answer anyway"
        )
    return found


class _Bar:
    """tqdm's bar on stderr where that is a terminal; one for each stage of a run."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._stage = ""

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self, stage: str, done: int, total: int, unit: str) -> None:
        from tqdm import tqdm

        if stage != self._stage:
            self.__exit__()
            if 0 < done < total:
                self.tell(f"going on after {unit} {done} of {total} of {stage!r}")
            self._bar = tqdm(total=total, initial=done, desc=stage, unit=unit, disable=None)
            self._stage = stage
        self._bar.update(done - self._bar.n)

    def tell(self, text: str) -> None:
        from tqdm import tqdm

        tqdm.write(f"headkv score: {text}", file=sys.stderr)


def _kinds(text: str) -> tuple[str, ...]:
    kinds = tuple(text.split(","))
    if not set(kinds) <= set(KINDS) or len(set(kinds)) < len(kinds):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of {', '.join(KINDS)}")
    return kinds


def _points(text: str) -> tuple[float, ...]:
    from ..curves import MOST_POINTS  # imports NumPy

    points, most = _percents(text), MOST_POINTS - 1  # the last one may be added
    if points[0] != 0 or list(points) != sorted(set(points)) or not 2 <= len(points) <= most:
        raise argparse.ArgumentTypeError(f"{text!r} must ascend from 0, in 2 to {most} steps")
    return points


def _bases(text: str) -> tuple[float, ...]:
    bases = _percents(text)
    if min(bases) == 0 or len(set(bases)) < len(bases):
        raise argparse.ArgumentTypeError(f"{text!r} must be different percentages above 0")
    return bases


def _percents(text: str) -> tuple[float, ...]:
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or not all(0 <= percent <= 100 for percent in found):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of percentages from 0 to 100")
    return found


def _seed(text: str) -> int:
    """A GGUF key of 32 bits holds it."""
    if not text.isdecimal() or int(text) > UINT32_MAX:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer from 0 to {UINT32_MAX}")
    return int(text)
