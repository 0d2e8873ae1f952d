"""Curves: what the loss of an answer is with more and with fewer entries of one KV head.

docs/gguf-metadata.md has the keys that hold them in a file of head scores. The native library reads them, and
makes budgets of curves (docs/method.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .checks import floats
from .errors import ArgumentError

MOST_POINTS = 64

_SHARES, _LOSSES = "headkv.curve.shares", "headkv.curve.losses"


@dataclass(frozen=True, eq=False)
class Curves:
    """Loss by budget, of each KV head alone while the others keep what they keep.

    shares: float32 (n_points,), ascending, from 0 to 1: of the prompt beyond the window, how much the head
        keeps. 0 is the window alone, 1 the whole prompt.
    losses: float32 (n_layer, n_head_kv, n_points), finite: negative log-likelihood of the right answer, in
        nats per token. Only differences within a row count. Rows of KV heads that a layer does not have are
        ignored.

    Raises ArgumentError for anything else.
    """

    shares: npt.NDArray[np.floating]
    losses: npt.NDArray[np.floating]

    def __post_init__(self) -> None:
        shares, losses = floats("shares", self.shares), floats("losses", self.losses)
        if shares.ndim != 1 or not 2 <= shares.size <= MOST_POINTS:
            raise ArgumentError(
                f"the shares of curves must be 2 to {MOST_POINTS} numbers, not an array of {shares.shape}"
            )
        if shares[0] != 0 or shares[-1] != 1 or not (np.diff(shares) > 0).all():
            raise ArgumentError(f"the shares of curves must ascend from 0 to 1, not {shares.tolist()}")
        if losses.ndim != 3 or losses.size == 0 or losses.shape[2] != shares.size:
            raise ArgumentError(
                f"losses must have the shape (n_layer, n_head_kv, {shares.size}), not {losses.shape}"
            )
        if not np.isfinite(losses).all():
            raise ArgumentError("losses must be finite")
        for name, array in (("shares", shares), ("losses", losses)):
            array.setflags(write=False)
            object.__setattr__(self, name, array)

    def metadata(self) -> dict[str, npt.NDArray[np.floating]]:
        """Keys and values for a file."""
        return {_SHARES: self.shares, _LOSSES: self.losses.ravel()}

    def to_json(self) -> dict[str, Any]:
        return {"shares": self.shares.tolist(), "losses": self.losses.tolist()}

    def of_rows(self, rows: list[int]) -> Curves:
        """Those of some of the layers, by their number here."""
        return Curves(self.shares, self.losses[rows])
