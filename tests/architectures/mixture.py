"""Transformers with experts, whose layers all have full attention."""

from __future__ import annotations

from .family import Family, experts

MIXTURE: dict[str, Family] = {
    "qwen3moe": Family(keys=experts, without=r"\.bias"),
    "qwen2moe": Family(keys=experts),
    "mixtral": Family(keys=experts),
}
del MIXTURE["mixtral"]
