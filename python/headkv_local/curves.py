"""Curves: what the loss of an answer is with more and with fewer entries of one KV head.

docs/gguf-metadata.md has the keys that hold them in a file of head scores.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ._core.gguf import Gguf
from .errors import ArgumentError, ScoresError

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
        with np.errstate(over="ignore"):  # too large for float32: not finite, refused below
            shares, losses = (np.array(x, dtype=np.float32, order="C") for x in (self.shares, self.losses))
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

    @classmethod
    def from_gguf(cls, path: str, n_layer: int, n_head_kv: int) -> Curves | None:
        """Those of a file that the native library has read before, None where it has none.

        Raises ScoresError, with the key, for what breaks the format.
        """
        found = Gguf(path)
        shares, losses = found.floats(_SHARES), found.floats(_LOSSES)
        if shares is None and losses is None:
            return None
        for key, values in ((_SHARES, shares), (_LOSSES, losses)):
            if values is None or values.size == 0:
                said = "is missing" if values is None else "must be an array of f32"
                raise ScoresError(f"{path}: {key} {said}")
        assert shares is not None
        assert losses is not None
        n_wanted = n_layer * n_head_kv * shares.size
        if losses.size != n_wanted:
            raise ScoresError(
                f"{path}: {_LOSSES} must have {n_wanted} values, {n_layer} layers of {n_head_kv} KV heads "
                f"with {shares.size} each, not {losses.size}"
            )
        try:
            return cls(shares, losses.reshape(n_layer, n_head_kv, -1))
        except ArgumentError as error:
            raise ScoresError(f"{path}: {error}") from error

    def metadata(self) -> dict[str, npt.NDArray[np.floating]]:
        """Keys and values for a file."""
        return {_SHARES: self.shares, _LOSSES: self.losses.ravel()}

    def of_rows(self, rows: list[int]) -> Curves:
        """Those of some of the layers, by their number here."""
        return Curves(self.shares, self.losses[rows])
