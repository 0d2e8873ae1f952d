"""Recording of attention in the graph, on for as long as it is needed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from . import native


@contextmanager
def tokens_observed(ctx: int, first: int, weights: npt.NDArray[np.float32]) -> Iterator[None]:
    """weights: (n,), of the tokens from position `first` on. Ends when the device has computed them."""
    native.observe(ctx, native.OBSERVE_TOKENS, first, len(weights), weights)
    try:
        yield
    finally:
        native.observe(ctx, native.OBSERVE_OFF)


def begin_rows(ctx: int) -> None:
    """From now on record what each token attends to that is decoded."""
    native.observe(ctx, native.OBSERVE_ROWS)


def last_rows(ctx: int) -> npt.NDArray[np.float32]:
    """Of the token decoded last: (n_layer, n_head, tokens in the cache)."""
    return native.get_rows(ctx)


def end_rows(ctx: int) -> None:
    native.observe(ctx, native.OBSERVE_OFF)
