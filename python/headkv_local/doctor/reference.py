"""A llama model in plain matrix products: what the library's logits are compared with.

Nothing of the library is used: weights are unpacked by the package gguf, and multiplied by numpy in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from gguf import GGUFReader
from gguf.quants import dequantize

Array = npt.NDArray[np.float32]


class Reference:
    """A GGUF file of architecture llama, with tied embeddings or without."""

    def __init__(self, path: Path) -> None:
        reader = GGUFReader(path)
        self._fields = reader.fields
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        self.weight_types = sorted({tensor.tensor_type.name for tensor in reader.tensors})

    def logits(self, tokens: Sequence[int]) -> Array:
        """(len(tokens), n_vocab): after each token, of those before it and itself."""
        embeddings = self._weight("token_embd")
        x = embeddings[np.asarray(tokens)]
        for layer in range(int(self._number("block_count"))):
            x = x + self._attention(f"blk.{layer}.", self._normed(x, f"blk.{layer}.attn_norm"))
            x = x + self._feed_forward(f"blk.{layer}.", self._normed(x, f"blk.{layer}.ffn_norm"))
        output = self._weight("output") if "output.weight" in self._tensors else embeddings
        return np.asarray(self._normed(x, "output_norm") @ output.T)

    def _attention(self, block: str, x: Array) -> Array:
        n = len(x)
        heads = int(self._number("attention.head_count"))
        kv_heads = int(self._number("attention.head_count_kv"))
        q, k, v = (
            (x @ self._weight(f"{block}attn_{name}").T).reshape(n, count, -1).transpose(1, 0, 2)
            for name, count in (("q", heads), ("k", kv_heads), ("v", kv_heads))
        )
        q, k = self._rotated(q), self._rotated(k)
        k, v = (rows.repeat(heads // kv_heads, axis=0) for rows in (k, v))
        scores = q @ k.transpose(0, 2, 1) / np.sqrt(np.float32(q.shape[-1]))
        scores = np.where(np.tri(n, dtype=bool), scores, -np.inf)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        found = (weights / weights.sum(axis=-1, keepdims=True)) @ v
        return np.asarray(found.transpose(1, 0, 2).reshape(n, -1) @ self._weight(f"{block}attn_output").T)

    def _feed_forward(self, block: str, x: Array) -> Array:
        gate, up = (x @ self._weight(f"{block}ffn_{name}").T for name in ("gate", "up"))
        return np.asarray(gate / (1 + np.exp(-gate)) * up @ self._weight(f"{block}ffn_down").T)

    def _rotated(self, x: Array) -> Array:
        """x: (heads, tokens, size); pairs of neighbours are turned by their position."""
        n, size = x.shape[1:]
        speeds = self._number("rope.freq_base") ** (-np.arange(0, size, 2) / size)
        angles = np.arange(n)[:, None] * speeds
        turned = (x[..., 0::2] + 1j * x[..., 1::2]) * np.exp(1j * angles)
        return np.stack([turned.real, turned.imag], axis=-1).reshape(x.shape).astype(np.float32)

    def _normed(self, x: Array, name: str) -> Array:
        epsilon = self._number("attention.layer_norm_rms_epsilon")
        scale = np.sqrt((x**2).mean(axis=-1, keepdims=True) + np.float32(epsilon))
        return np.asarray(x / scale * self._weight(name))

    def _weight(self, name: str) -> Array:
        tensor = self._tensors[f"{name}.weight"]
        return np.asarray(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)

    def _number(self, key: str) -> float:
        return float(self._fields[f"llama.{key}"].contents())
