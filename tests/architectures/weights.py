"""Noise for each tensor, by what it is used for."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Weights = npt.NDArray[np.float32]
Rule = tuple[str, float, float]
"""A pattern of names, a mean, and a standard deviation; a standard deviation below 0 is a gain."""

RULES: tuple[Rule, ...] = (
    # vectors and scalars
    (r"rope_freqs|rope_factors", 1.0, 0.0),
    (r"attn_sinks", 3.0, 1.0),
    (r"ssm_a", -1.0, 0.3),
    (r"ssm_dt\.bias", -5.0, 0.5),
    (r"(ssm_d|layer_output_scale\.weight|altup_correct_scale\.weight|\.scale)$", 1.0, 0.1),
    (r"norm[^.]*(\.weight)?$", 1.0, 0.1),
    (r"attn_[qk]\.bias|attn_qkv\.bias", 0.0, 0.3),
    (r"bias$", 0.0, 0.1),
    # matrices: the gain of what they are applied to
    (r"^output\.weight", 0.0, -4.0),
    (r"attn_(q|k|qkv|q_b)\.weight", 0.0, -1.5),
    (r"attn_output\.weight", 0.0, -2.0),
    (r"", 0.0, -1.0),
)


def values_of(name: str, shape: Sequence[int], seed: int, rules: Sequence[Rule] = ()) -> Weights:
    """float32 of that shape, the same for the same name, shape and seed. rules: asked before RULES."""
    _, mean, deviation = next(rule for rule in (*rules, *RULES) if re.search(rule[0], name))
    noise = np.random.default_rng([seed, zlib.crc32(name.encode())]).standard_normal(shape, dtype=np.float32)
    if deviation < 0:
        deviation = -deviation / np.sqrt(shape[-1])
    return (np.float32(mean) + np.float32(deviation) * noise).astype(np.float32)
