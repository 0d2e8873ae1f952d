"""Budgets as the native library makes them."""

from __future__ import annotations

from .native.plan import Keep, check, get_caps

__all__ = ["Keep", "check", "get_caps"]
