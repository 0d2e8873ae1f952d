"""Budgets, and whose head scores they are made of, as the native library has it."""

from __future__ import annotations

from .native.plan import Keep, check, get_caps, match_scores

__all__ = ["Keep", "check", "get_caps", "match_scores"]
