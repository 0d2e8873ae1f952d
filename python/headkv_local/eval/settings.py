"""What stands in --model_args, checked: each value is a sentence if it cannot be."""

from __future__ import annotations

import os
from argparse import ArgumentTypeError
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from headkv_local import ArgumentError, Retention
from headkv_local.settings import ADVANCED, KV_TYPES, OFF, fold_of, observe_of

from ..bench.suites.names import ANEW, BEFORE, CHOSEN, WITH

_IGNORED = ("batch_size", "max_batch_size", "device")  # lm_eval gives them to every model
NO_MATTER = (*_IGNORED, "threads", "gpu_layers")
"""Arguments that leave answers as they are, but for the order of sums."""


@dataclass(frozen=True)
class Settings:
    """model: None is the default model. retention: None keeps everything. chosen, split: see parse()."""

    model: str | None
    retention: Retention | None
    chosen: str
    split: str | None
    truncate: bool
    max_gen_toks: int
    options: dict[str, Any]
    """Arguments of Llama."""


def parse(given: dict[str, Any]) -> Settings:
    """The settings of a model.

    model: a GGUF file. budget, scores, beta, window, kernel, sinks, observe, draft, fold: as in Retention;
    fold=off is None; without a budget everything is kept. split: a text that ends the document of a prompt
    where it stands last, so that what follows it asks, itself included. chosen: "with" the question in the
    prompt; "before" it is known; "anew" from an archive when it comes. The last two need a split. truncate:
    "middle" cuts what is too long.
    n_ctx, threads, gpu_layers, type_k, type_v: of the context. max_gen_toks: where a task says none.

    Raises ArgumentError.
    """
    left = {name: value for name, value in given.items() if name not in _IGNORED}
    if given.get("batch_size") not in (None, 1, "1"):
        raise ArgumentError(f"batch_size must be 1, not {given['batch_size']!r}: there is one sequence")

    def take(name: str, default: Any = None) -> Any:
        return left.pop(name, default)

    of_retention = {name: take(name) for name in ADVANCED if name in left}
    for name, read in (("fold", fold_of), ("observe", observe_of)):
        if name in of_retention:
            of_retention[name] = _number_or_word(name, of_retention[name], read)
    budget, scores, chosen, split = take("budget"), take("scores"), take("chosen", WITH), take("split")
    if budget is None and (of_retention or scores is not None or chosen != WITH):
        raise ArgumentError("without a budget everything is kept: give budget=5%, or leave out the others")
    if chosen not in CHOSEN:
        raise ArgumentError(f"chosen must be {WITH}, {BEFORE} or {ANEW}, not {chosen!r}")
    if chosen != WITH and not split:
        raise ArgumentError(f"chosen={chosen} needs split=TEXT: where a prompt's document ends")
    model, truncate = take("model"), take("truncate")
    if not isinstance(model, str | os.PathLike | None):
        raise ArgumentError(f"model must be the path of a file, not {model!r}: give ./{model}")
    if truncate not in (None, "middle"):
        raise ArgumentError(f"truncate must be middle, not {truncate!r}")
    settings = Settings(
        model=None if model is None else os.fspath(model),
        retention=None if budget is None else _retention(budget, scores, chosen, of_retention),
        chosen=chosen,
        split=None if split is None else str(split),
        truncate=truncate is not None,
        max_gen_toks=_number("max_gen_toks", take("max_gen_toks", 256)),
        options=_options(take),
    )
    if left:
        raise ArgumentError(f"{next(iter(left))!r} is no argument of headkv; those there are: {_KNOWN}")
    return settings


_KNOWN = (
    f"model, budget, scores, {', '.join(ADVANCED)}, chosen, split, truncate, n_ctx, threads, gpu_layers, "
    "type_k, type_v, max_gen_toks"
)


def _retention(budget: Any, scores: Any, chosen: str, others: dict[str, Any]) -> Retention:
    if chosen == BEFORE:
        others = {"fold": None, **others}  # a long question would choose again
    return Retention(budget=budget, scores=scores, archive="memory" if chosen == ANEW else None, **others)


def _options(take: Any) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for name in ("type_k", "type_v"):
        kind = take(name, "f16")
        if not isinstance(kind, str) or kind not in KV_TYPES:
            raise ArgumentError(f"{name} must be one of {', '.join(KV_TYPES)}, not {kind!r}")
        options[name] = KV_TYPES[kind]
    if (threads := take("threads")) is not None:
        options["n_threads"] = options["n_threads_batch"] = _number("threads", threads)
    if (layers := take("gpu_layers")) is not None:
        options["n_gpu_layers"] = layers if layers == -1 else _number("gpu_layers", layers, 0)
    if (n_ctx := take("n_ctx")) is not None:
        options["n_ctx"] = _number("n_ctx", n_ctx)
    return options


def _number_or_word(name: str, value: Any, read: Callable[[object], int | str]) -> int | str | None:
    try:
        found = read(value)
    except ArgumentTypeError as error:
        raise ArgumentError(f"{name}: {error}") from None
    return None if found == OFF else found


def _number(name: str, value: Any, least: int = 1) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ArgumentError(f"{name} must be a whole number of at least {least}, not {value!r}")
    return value
