"""The types of K and V rows that a flash-attention cache takes, and ggml's numbers for them."""

from __future__ import annotations

KV_TYPES = {
    "f32": 0,
    "f16": 1,
    "bf16": 30,
    "q8_0": 8,
    "q5_0": 6,
    "q5_1": 7,
    "q4_0": 2,
    "q4_1": 3,
    "iq4_nl": 20,
}
