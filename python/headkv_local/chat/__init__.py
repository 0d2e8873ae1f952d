"""`headkv-chat`: a chat in the terminal whose long prompts are kept per KV head."""

from __future__ import annotations

from headkv_local.exits import INTERRUPTED, open_streams

__all__ = ["main"]


def main(argv: list[str] | None = None) -> int:
    """Run headkv-chat with `argv` (None: the process's own arguments) and return its exit code.

    0 done, 1 failed, 2 wrong usage, 130 interrupted. A reader that closes the pipe early is no failure.
    """
    open_streams()
    try:
        from headkv_local.chat.app import main as run

        return run(argv)
    except KeyboardInterrupt:  # while it is imported
        return INTERRUPTED
