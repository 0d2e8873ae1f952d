"""What cannot fit into a context is refused before a template writes it, or the tokenizer reads all of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from .. import CancelToken
from ..errors import Cancelled, ContextFullError
from ..tokens import count_tokens

_DENSE: Final = 16  # characters for each token of the context: so many are tokenized without a question


def require_few(messages: Sequence[Any], n_ctx: int) -> None:
    """Raises ContextFullError for more messages than the context has tokens: each takes one at least."""
    if len(messages) >= n_ctx:
        raise ContextFullError(
            f"This model's maximum context length is {n_ctx} tokens, of which {len(messages)} messages leave "
            "none. Please reduce the number of messages."
        )


def require_room(tokenize: Callable[[bytes], Sequence[int]], text: str, n_ctx: int) -> None:
    """Raises ContextFullError for a text that is certainly too long, Cancelled once nobody waits for it.

    It is counted in stretches, which makes some tokens more: beyond twice the context it cannot fit.
    """
    _require_wanted()
    if len(text) <= _DENSE * n_ctx:
        return

    def tokens(part: bytes) -> Sequence[int]:
        _require_wanted()
        return tokenize(part)

    counted, _ = count_tokens(tokens, text, 2 * n_ctx)
    if counted > 2 * n_ctx:
        raise ContextFullError(
            f"This model's maximum context length is {n_ctx} tokens, however you requested about {counted}. "
            "Please reduce the length of the prompt."
        )


def texts_of(messages: Sequence[Any]) -> str:
    """All that is said in them."""
    contents = [message.get("content") for message in messages]
    parts = (part for content in contents if isinstance(content, list) for part in content)
    texts = (part.get("text") for part in parts)
    return "\n".join(text for text in (*contents, *texts) if isinstance(text, str))


def _require_wanted() -> None:
    if any(token.cancelled for token in CancelToken.entered()):
        raise Cancelled("cancelled")
