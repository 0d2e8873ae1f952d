"""The prompts of a results file made again, for another program that answers them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from headkv_local import ArgumentError, HeadKVError, Llama
from headkv_local.models import model_id

from .command import prepared
from .names import BABILONG, LENGTHS, RULER
from .prompts import Fitting, Prompt, made
from .results import PromptKey, Results


def model_of(first: Mapping[str, Any], given: str | None = None) -> Path:
    """The model of a results file. first: its first line. given: where the model has moved.

    Raises ArgumentError for another model, also for another quantization of this one; ScoresError for none.
    """
    path = given or first["settings"]["model"]
    found, wanted = model_id(path), first["header"]["model_id"]
    if found != wanted:
        raise ArgumentError(f"{path} is not the model of these results: they name {wanted}, this is {found}")
    return Path(path)


def prompts_of(
    llm: Llama, settings: Mapping[str, Any], results: Results
) -> tuple[list[Prompt], list[PromptKey]]:
    """Those of all outcomes, and what cannot be made again, token for token.

    settings: of the run that began the file. Later ones may have asked other tasks, lengths and numbers,
    which the outcomes say; what they asked of other data, or cut to another context, cannot be made again.
    """
    asked = results.prompts
    n_samples: dict[tuple[str, str], int] = {}
    for task, length, number in asked:
        n_samples[task, length] = max(n_samples.get((task, length), 0), 1 + number)
    items = [one for (task, length), n in n_samples.items() for one in _items(llm, settings, task, length, n)]
    found = [made(llm, one, settings["plain"]) for one in items if one.item.key in asked]
    found = [prompt for prompt in found if prompt.digest == asked[prompt.item.key]]
    there = {prompt.item.key for prompt in found}
    return found, [key for key in asked if key not in there]


def _items(llm: Llama, settings: Mapping[str, Any], task: str, length: str, n_samples: int) -> list[Fitting]:
    of_suites: dict[str, Callable[[str], int]] = {RULER: int, BABILONG: LENGTHS.__getitem__}
    tokens = of_suites.get(settings["suite"])
    lengths = None if tokens is None else [tokens(length)]
    said = {**settings, "tasks": [task], "lengths": lengths, "samples": n_samples}
    limit = settings["limit"] if settings["truncate_middle"] else sys.maxsize
    try:
        return list(prepared(str(llm.model_path), said, limit).fitting)
    except HeadKVError:  # of data that are not there
        return []
