"""What llama.cpp takes; it ends the process for other numbers, or crashes, instead of refusing them."""

from __future__ import annotations

from typing import Final

MAX_THREADS: Final = 512
INT32_MAX: Final = 2**31 - 1

KV_TYPES: Final = {
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
"""The types of K and V rows that a flash-attention cache takes, and ggml's numbers for them."""
