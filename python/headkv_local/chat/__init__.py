"""`headkv-chat`: a chat in the terminal whose long prompts are kept per KV head."""

from __future__ import annotations

from headkv_local.chat.app import main

__all__ = ["main"]
