"""A retention as it is for one model: its layers, and the head scores that come with it."""

from __future__ import annotations

import logging
import os
from typing import Final

from ..budgets import ModelShape
from ..errors import ArgumentError, ScoresError
from ..retention import Retention
from ..scores import HeadScores
from ..settings import ALL
from . import native

_logger = logging.getLogger("headkv_local")

_GIVEN: Final = "given"


def shape_of(ctx: int) -> ModelShape:
    """The layers that retain. UnsupportedError for a context that can never be compacted."""
    native.supported(ctx)
    now = native.get_numbers(ctx)
    bounded = sum(native.get_device_bytes(ctx)) - now.bytes_cells - now.bytes_kept - now.bytes_record
    return native.model_shape(ctx)._replace(bounded_bytes=bounded)


def settle(retention: Retention, shape: ModelShape, model_path: str) -> tuple[Retention, str | None]:
    """The retention with its scores loaded, and where they were found."""
    if not retention.wants_scores or retention.observe == ALL:
        return retention, _GIVEN if retention.policy == "scores" else None
    if isinstance(retention.scores, HeadScores):
        scores, where = retention.scores, _GIVEN
    elif isinstance(retention.scores, str | os.PathLike):
        scores, where = HeadScores.from_gguf(retention.scores), os.fspath(retention.scores)
    else:
        found = HeadScores.find(model_path)
        if found is None:
            _logger.info("the model comes without head scores: every KV head gets the same budget")
            return retention, None
        scores, where = found[0], str(found[1])
    try:
        settled = retention.with_scores(scores.for_model(shape, model_path))
    except (ArgumentError, ScoresError) as error:  # a budget below the window that the file recommends
        raise type(error)(f"{error} (head scores: {where})") from error
    _logger.info("budgets follow the head scores of %s", where)
    return settled, where


def require_fitting(settled: Retention, shape: ModelShape, n_ctx: int) -> None:
    """Raise ArgumentError for what fits no prompt of this model in a context of n_ctx tokens."""
    if settled.window > n_ctx:
        raise ArgumentError(f"window must be from 1 to {n_ctx}, not {settled.window}")
    settled.caps_for(shape, settled.window + 1)
