"""What budgets are of: the layers of a model that retain, and their KV heads.

HeadKV (Fu et al., ICLR 2025, section 3.2) gives each head a base budget and shares the rest out by head
score. With alpha the window, b the mean budget, L layers of H KV heads and s the KV-head
scores normalised to sum 1:

    cap[l][h] = alpha + (b - alpha) * (1 - 1/beta) + s[l][h] * (b - alpha)/beta * L*H

Here no cap exceeds the prompt: what a head cannot use is shared out among those that still have room, so
the total is b*L*H, or the whole prompt where that is less. `Retention.caps_for()` gives the caps; they are
made by the native library, for C programs too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt


class LayerShape(NamedTuple):
    """A layer that retains: one whose attention reaches to all positions."""

    il: int
    """Its index in the model."""
    n_head: int
    """Query heads."""
    n_head_kv: int
    """KV heads."""
    row_bytes: int
    """Bytes of K and V of one entry of one KV head."""


class ModelShape(NamedTuple):
    """What budgets need to know about a model: its layers that retain.

    Arrays over KV heads are (n_layer, n_head_kv). Where layers differ, n_head and n_head_kv are those of the
    layer that has most, row_bytes is the mean over all KV heads, and what an array holds of KV heads that a
    layer does not have is 0.
    """

    n_layer: int
    n_head: int
    """Query heads per layer."""
    n_head_kv: int
    """KV heads per layer."""
    row_bytes: int
    """Bytes of K and V of one entry of one KV head."""
    layers: tuple[LayerShape, ...] = ()
    """The layers, in their order; empty: all are alike, and all of the model."""
    bounded_bytes: int = 0
    """What the other layers hold in any case: those with a sliding window, and recurrent ones."""

    @classmethod
    def of(cls, layers: Sequence[LayerShape]) -> ModelShape:
        n_heads = sum(layer.n_head_kv for layer in layers)
        return cls(
            len(layers),
            max(layer.n_head for layer in layers),
            max(layer.n_head_kv for layer in layers),
            sum(layer.n_head_kv * layer.row_bytes for layer in layers) // n_heads,
            tuple(layers),
        )

    @property
    def n_heads(self) -> int:
        """KV heads in all layers."""
        return int(self.heads.sum())

    @property
    def heads(self) -> npt.NDArray[np.bool_]:
        """Which KV heads there are, bool (n_layer, n_head_kv)."""
        counts = [layer.n_head_kv for layer in self.layers] or [self.n_head_kv] * self.n_layer
        return np.arange(self.n_head_kv) < np.asarray(counts)[:, None]

    def by_head(self, flat: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """(n_heads, ...) -> (n_layer, n_head_kv, ...), 0 for KV heads that a layer does not have."""
        res = np.zeros((self.n_layer, self.n_head_kv, *flat.shape[1:]), dtype=flat.dtype)
        res[self.heads] = flat
        return res
