"""Which tokens of a prompt ask: their attention selects what is kept of the rest."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final

from ..errors import ArgumentError
from ..messages import SYSTEM
from .native.plan import Part
from .native.plan import question as find_question
from .pieces import Pieces

_DOCUMENT: Final = "document"

_logger = logging.getLogger("headkv_local")


def checked(question: slice | Sequence[slice] | None, n_prompt: int) -> tuple[Part, ...]:
    """The parts with their bounds in numbers. ArgumentError for what cannot be a question of this prompt."""
    if question is None:
        return ()
    parts = [question] if isinstance(question, slice) else list(question)
    found = tuple(sorted(_checked(part, n_prompt) for part in parts))
    n_question = sum(part.n for part in found)
    if n_question == 0:
        raise ArgumentError("the question is empty: it must have at least one token")
    if 2 * n_question > n_prompt:
        raise ArgumentError(
            f"the question of {n_question} tokens is longer than the document, the other "
            f"{max(0, n_prompt - n_question)} tokens of the prompt"
        )
    return found


def _checked(part: Any, n_prompt: int) -> Part:
    if not isinstance(part, slice) or part.step not in (None, 1):
        raise ArgumentError(f"a question must be a slice of the prompt's tokens, not {part!r}")
    try:
        start, stop, _ = part.indices(n_prompt)
        given = [0 if bound is None else bound.__index__() for bound in (part.start, part.stop)]
    except (TypeError, AttributeError) as error:
        raise ArgumentError(f"a question must have whole numbers as its bounds, not {part!r}") from error
    if any(not -n_prompt <= bound <= n_prompt for bound in given):
        raise ArgumentError(f"the question, {part!r}, is not inside the prompt of {n_prompt} tokens")
    if stop <= start:
        raise ArgumentError("the question is empty: it must have at least one token")
    return Part(start, stop)


def question_of(
    prompt: Pieces, written: Pieces, messages: Sequence[Mapping[str, Any]], n_last: int
) -> tuple[Part, ...]:
    """Where the messages ask, in the tokens of a prompt made of them: the last user message that does, or
    else the last system message that does.

    prompt, written: what these tokens spell, without and with control tokens, which a text may be read as.

    Of a message with parts that are marked as documents ("document": True), all other parts ask; of those
    that are longer than n_last tokens, and of a message without such marks, what headkv_get_question() finds.
    Empty if no message asks, or the one that does is not found.
    """
    of_user = [i for i, one in enumerate(messages) if one.get("role") == "user"]
    of_system = [i for i, one in enumerate(messages) if one.get("role") in SYSTEM]
    asking = next(
        (i for i in (*of_user[::-1], *of_system[::-1]) if any(map(_asks, _parts(messages[i])))), None
    )
    if asking is None:
        return ()
    end = len(written.text)
    for part in reversed([part for later in messages[asking + 1 :] for part in _parts(later)]):
        start = written.text.rfind(_text(part), 0, end)
        end = start if start >= 0 else end
    parts = _parts(messages[asking])
    found: list[Part] = []
    for part in reversed(parts):
        start = written.text.rfind(_text(part), 0, end)
        if start < 0 and _asks(part):
            _logger.warning(
                "what asks is not in the prompt as it was written: the prompt's last tokens select"
            )
            return ()
        if start >= 0 and _asks(part):
            found.insert(0, Part(*written.tokens_of(start, start + len(_text(part)))))
        end = start if start >= 0 else end
    if not all(map(_asks, parts)):
        return tuple(asks for one in found for asks in find_question(prompt, one.start, one.stop, n_last))
    return find_question(prompt, found[0].start, found[-1].stop, n_last)


def _parts(message: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Those of a message that hold a text."""
    content = message.get("content")
    if isinstance(content, str):
        content = [{"text": content}]
    parts = [part for part in content or () if isinstance(part, Mapping)]
    return [part for part in parts if isinstance(part.get("text"), str) and part["text"].strip()]


def _text(part: Mapping[str, Any]) -> bytes:
    text: str = part["text"]
    return text.strip().encode("utf-8", errors="ignore")


def _asks(part: Mapping[str, Any]) -> bool:
    return not part.get(_DOCUMENT)
