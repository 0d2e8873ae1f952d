"""What the errors of llama.cpp and of Python mean for a caller, who can act on them."""

from __future__ import annotations

import re
from typing import Final

from ..errors import (
    ArgumentError,
    BatchError,
    Cancelled,
    ContextFullError,
    DecodeMemoryError,
    HeadKVError,
    InternalError,
    OutOfMemoryError,
)
from . import native

_DECODE_FAILED: Final = re.compile(r"llama_decode returned (-?\d+)")
_TOO_LONG: Final = re.compile(r"Requested tokens \((\d+)\) exceed context window of (\d+)")


def unknown_token(token: int, n_vocab: int) -> ArgumentError:
    """llama.cpp would end the process."""
    return ArgumentError(f"token {token} is none of the model's: they go from 0 to {n_vocab - 1}")


def decode_error(error: BaseException, lines: list[str]) -> BaseException:
    """What a failed llama_decode means, see llama.h; any other exception as it is.

    lines: llama.cpp's errors meanwhile.
    """
    failed = _DECODE_FAILED.search(str(error)) if type(error) is RuntimeError else None
    if failed is None:
        return error
    code, reason = int(failed[1]), "; ".join(lines)
    if code == 2:
        return Cancelled("cancelled")
    said = native.last_error()
    if said and said in reason:  # our cache logs it; a call before may have left another one
        reason = said
    text = f"llama_decode returned {code}: {reason or 'llama.cpp gave no reason'}"
    if code == -1:
        return BatchError(text)
    if code == -2 or "memory" in reason:
        return DecodeMemoryError(text)
    if code == 1:
        return ContextFullError(text)
    return InternalError(text)


def completion_error(error: ValueError) -> ValueError:
    """What llama_cpp raises for a prompt that is longer than the context, as ours; any other as it is."""
    found = None if isinstance(error, HeadKVError) else _TOO_LONG.search(str(error))
    if found is None:
        return error
    return ContextFullError(
        f"{found[0]}: the prompt of {found[1]} tokens and an answer do not fit into the context of {found[2]}"
    )


def advised(error: MemoryError) -> OutOfMemoryError:
    """The same error with what to change; an OutOfMemoryError in place of Python's own."""
    found = error if isinstance(error, OutOfMemoryError) else OutOfMemoryError(*error.args)
    if found.setting is None:
        found.setting = "n_ctx"
        found.args = (f"{str(error) or 'Python has no memory'}: make n_ctx smaller",)
    return found
