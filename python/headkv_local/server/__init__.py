"""headkv-server: an OpenAI-compatible server that keeps conversations apart (extra `server`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..exits import INTERRUPTED, open_streams

if TYPE_CHECKING:
    from .app import create_app

__all__ = ["create_app", "main"]


def main(argv: list[str] | None = None) -> int:
    """Run the command; 0 done, 1 failed, 2 wrong usage, 130 interrupted.

    SIGTERM ends the process once conversations are saved.
    """
    open_streams()
    try:
        from .command import main as run

        return run(argv)
    except KeyboardInterrupt:
        return INTERRUPTED


def __getattr__(name: str) -> Any:
    if name == "create_app":
        from .app import create_app

        return create_app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
