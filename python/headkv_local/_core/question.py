"""Which tokens of a prompt ask: their attention selects what is kept of the rest."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError
from ..messages import SYSTEM
from .native.plan import Part
from .native.plan import question as find_question
from .pieces import Pieces

_DOCUMENT: Final = "document"

_N_TOLD: Final = 4  # times n_last tokens of a part that ask beside marked documents, whatever they say
_LIKELY: Final = 0.5**4  # of headkv_get_question(), where neither end of a message has a question mark

_N_RULES: Final = 2  # of a system message before what may be a document

_BLANKS: Final = np.array([i for i in range(128) if chr(i).isspace()], dtype=np.uint8)
_WIDE: Final = re.compile(b"|".join(chr(i).encode() for i in range(128, 0x3001) if chr(i).isspace()))
"""Of Unicode's, as messages may begin and end with, which templates trim."""

_logger = logging.getLogger("headkv_local")


def checked(question: slice | Sequence[slice] | None, n_prompt: int) -> tuple[Part, ...]:
    """The parts with their bounds in numbers. ArgumentError for what cannot be a question of this prompt."""
    if question is None:
        return ()
    parts = list(question) if isinstance(question, Iterable) else [question]
    found = _disjoint(sorted(_checked(part, n_prompt) for part in parts))
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
    """Where the messages ask, in the tokens of a prompt made of them: the user messages after the last
    answer, or else the last ones that ask, or else the last system message.

    prompt, written: what these tokens spell, without and with control tokens, which a text may be read as.

    Of messages with parts that are marked as documents ("document": True), all other parts ask; of those
    that are longer than four times n_last tokens, and of messages without such marks, what
    headkv_get_question() finds. Without such marks a longer one may be a document as a whole: what was asked
    before it, and the system message, ask too. Empty if no message asks, or the one that does is not found.
    """
    of_users = [turn for turn in _turns(messages)[::-1] if _may_ask(messages, turn)]
    of_system = [[i] for i, one in enumerate(messages) if one.get("role") in SYSTEM]
    of_system = [turn for turn in of_system[::-1] if _may_ask(messages, turn)]
    if not of_users and not of_system:
        return ()
    texts, asking = _Texts(written), (of_users or of_system)[0]
    found = texts.parts(messages, asking)
    if not found:
        _logger.warning("what asks is not in the prompt as it was written: the prompt's last tokens select")
        return ()
    if not all(_asks(part) for i in asking for part in _parts(messages[i])):
        asks = [each for one in found for each in _of_part(prompt, one, n_last)]
    elif _n(found) <= n_last:
        asks = list(_found(prompt, found, n_last))
    else:
        asks = _of_long(prompt, found, n_last)
        before = [texts.parts(messages, turn) for turn in of_users[1:2]]
        asks += [Part(one[0].start, one[-1].stop) for one in before if one and _n(one) <= n_last]
        rules = [texts.parts(messages, turn) for turn in of_system[:1] if turn is not asking]
        asks += [each for one in rules if one for each in _of_rules(prompt, one, n_last)]
    return _disjoint(sorted(asks))


def _disjoint(parts: Sequence[Part]) -> tuple[Part, ...]:
    """A token that two of them share is of the one that weighs more, else of the first."""
    found: list[Part] = []
    for part in parts:
        if found and found[-1].weight < part.weight and found[-1].start < part.start < found[-1].stop:
            found[-1] = found[-1]._replace(stop=part.start)
        start = max(part.start, found[-1].stop if found else 0)
        if start < part.stop:
            found.append(part._replace(start=start))
    return tuple(found)


def _turns(messages: Sequence[Mapping[str, Any]]) -> list[list[int]]:
    """Numbers of user messages, those that no answer stands between together."""
    turns: list[list[int]] = [[]]
    for i, one in enumerate(messages):
        if one.get("role") == "user":
            turns[-1].append(i)
        elif one.get("role") == "assistant" and turns[-1]:
            turns.append([])
    return turns


def _may_ask(messages: Sequence[Mapping[str, Any]], turn: Sequence[int]) -> bool:
    return any(_asks(part) for i in turn for part in _parts(messages[i]))


def _n(parts: Sequence[Part]) -> int:
    """Tokens from the first one's start to the last one's end."""
    return parts[-1].stop - parts[0].start


def _of_part(prompt: Pieces, part: Part, n_last: int) -> Sequence[Part]:
    """Of one beside documents that the caller has marked."""
    if part.n <= _N_TOLD * n_last:
        return [Part(part.start, part.stop)]
    return find_question(prompt, part.start, part.stop, n_last)


def _of_rules(prompt: Pieces, parts: Sequence[Part], n_last: int) -> list[Part]:
    if _n(parts) <= _N_RULES * n_last:
        return [Part(parts[0].start, parts[-1].stop)]
    return _told(prompt, parts, n_last)


def _of_long(prompt: Pieces, parts: Sequence[Part], n_last: int) -> list[Part]:
    """Of messages without marks: their short parts beside longer ones ask, and what is found in these, with
    less weight where it is no more than their last n_last tokens. Else what is found in the whole of them."""
    short = [part for part in parts if part.n <= n_last]
    if len(short) < len(parts) and 0 < sum(part.n for part in short) <= n_last:
        found = [each for part in parts if part.n > n_last for each in _found(prompt, [part], n_last)]
        found = [each._replace(weight=_LIKELY) if each.n == n_last else each for each in found]
        return [*(Part(part.start, part.stop) for part in short), *found]
    return list(_found(prompt, parts, n_last))


def _told(prompt: Pieces, parts: Sequence[Part], n_last: int) -> list[Part]:
    """What looks like a question, at the ends of what may be a document."""
    return [each for each in _found(prompt, parts, n_last) if each.weight == 1.0 and each.n != n_last]


def _found(prompt: Pieces, parts: Sequence[Part], n_last: int) -> tuple[Part, ...]:
    return find_question(_Bordered(prompt, parts[1:]), parts[0].start, parts[-1].stop, n_last)


class _Texts:
    """Where messages are in a prompt, whatever blanks a tokenizer or a template has added or left out."""

    def __init__(self, written: Pieces) -> None:
        self._written = written
        self._places = _no_blanks(written.text)
        """Of the bytes that are no blanks."""
        self._text = np.frombuffer(written.text, dtype=np.uint8)[self._places].tobytes()

    def parts(self, messages: Sequence[Mapping[str, Any]], turn: Sequence[int]) -> list[Part]:
        """The tokens of each part that asks of the messages of these numbers; none if one is not found."""
        end = len(self._text)
        for later in reversed(messages[turn[-1] + 1 :]):
            _, end = self._places_of(_parts(later), end)
        found: list[Part] = []
        for i in reversed(turn):
            parts = _parts(messages[i])
            places, end = self._places_of(parts, end)
            for part, (start, stop) in reversed(list(zip(parts, places, strict=True))):
                if start == stop and _asks(part):
                    return []
                if start < stop and _asks(part):
                    place = int(self._places[start]), int(self._places[stop - 1]) + 1
                    found.insert(0, Part(*self._written.tokens_of(*place)))
        return found

    def _places_of(self, parts: Sequence[Mapping[str, Any]], end: int) -> tuple[list[tuple[int, int]], int]:
        """Where the parts of a message begin and end, the last ones before `end`, and where the first one
        begins. Equal for one that is not found."""
        texts = [_bare(part["text"]) for part in parts]
        whole = self._before(b"".join(texts), end)
        if whole is not None:  # with nothing between them: a part's first word may go on from the one before
            bounds = [whole + sum(map(len, texts[:i])) for i in range(len(texts) + 1)]
            return list(pairwise(bounds)), whole
        found: list[tuple[int, int]] = []
        for text in reversed(texts):
            start = self._before(text, end)
            found.insert(0, (end, end) if start is None else (start, start + len(text)))
            end = found[0][0]
        return found, end

    def _before(self, text: bytes, end: int) -> int | None:
        """Where it begins, the last time before `end`; in a word of the template only if nowhere else."""
        if not text:  # of what UTF-8 cannot say
            return None
        last = start = self._text.rfind(text, 0, end)
        while start >= 0 and self._is_in_word(start, start + len(text)):
            start = self._text.rfind(text, 0, start + len(text) - 1)
        start = last if start < 0 else start
        return start if start >= 0 else None

    def _is_in_word(self, start: int, stop: int) -> bool:
        """Whether a word goes on before or after these bytes."""
        first, last = int(self._places[start]), int(self._places[stop - 1])
        text = self._written.text
        before, after = text[max(first - 1, 0) : first + 1], text[last : last + 2]
        return any(len(both) == 2 and both.isalnum() for both in (before, after))


def _bare(text: str) -> bytes:
    """Without blanks."""
    return _WIDE.sub(b"", text.encode("utf-8", errors="ignore")).translate(None, _BLANKS.tobytes())


def _no_blanks(text: bytes) -> npt.NDArray[np.intp]:
    """Where the bytes of a text are that are no blanks."""
    is_text = ~np.isin(np.frombuffer(text, dtype=np.uint8), _BLANKS)
    for blank in _WIDE.finditer(text):
        is_text[slice(*blank.span())] = False
    return np.flatnonzero(is_text)


class _Bordered:
    """The text of a prompt, with a blank line before each of some parts, as templates may join them."""

    def __init__(self, prompt: Pieces, parts: Sequence[Part]) -> None:
        starts = [part.start for part in parts if part.start > 0]
        places = [int(prompt.ends[start - 1]) for start in starts]
        pieces = [prompt.text[a:b] for a, b in zip([0, *places], [*places, None], strict=True)]
        self.text = b"\n\n".join(pieces)
        self.ends = prompt.ends + 2 * np.searchsorted(starts, np.arange(prompt.n_tokens) + 1, "right")


def _parts(message: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Those of a message that hold a text."""
    content = message.get("content")
    if isinstance(content, str):
        content = [{"text": content}]
    parts = [part for part in content or () if isinstance(part, Mapping)]
    return [part for part in parts if isinstance(part.get("text"), str) and part["text"].strip()]


def _asks(part: Mapping[str, Any]) -> bool:
    return not part.get(_DOCUMENT)
