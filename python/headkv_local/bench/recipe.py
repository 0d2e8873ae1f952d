"""What head scores say, in a few digits: answers that others were used for are not taken for these."""

from __future__ import annotations

import hashlib

from headkv_local import HeadScores
from headkv_local.settings import given


def digest_of(scores: HeadScores) -> str:
    """SHA-256, in hex, of what budgets are made of, wherever it lies: scores, curves and recommendations."""
    found = hashlib.sha256(repr((scores.layers, scores.n_head_kv, given(scores))).encode())
    found.update(scores.scores.tobytes())
    if scores.curves is not None:
        found.update(scores.curves.shares.tobytes() + scores.curves.losses.tobytes())
    return found.hexdigest()
