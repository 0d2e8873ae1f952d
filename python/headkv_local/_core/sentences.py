"""Where the sentences of a prompt end: in selection, attention to one does not count for the next."""

from __future__ import annotations

import re
from typing import Final

import numpy as np
import numpy.typing as npt

from .pieces import Pieces


def _any_of(characters: str) -> bytes:
    return b"(?:" + b"|".join(re.escape(c.encode()) for c in characters) + b")"


# a full stop or the end of a line, but not where small letters go on: "e.g. this", a line that was wrapped
_STOP: Final = _any_of(".!?…") + _any_of("\"'*_)]»”’") + rb"*(?=\s+[^\sa-z])"  # noqa: RUF001
_CJK_STOP: Final = _any_of("。！？") + _any_of("」』”’）") + b"*"  # noqa: RUF001
_END: Final = re.compile(_STOP + rb"|\n(?![a-z])|" + _CJK_STOP)


def sentence_ends(prompt: Pieces) -> npt.NDArray[np.uint8]:
    """1 for the last token of every sentence and of every line, else 0: (n_tokens,)."""
    ends = np.zeros(prompt.n_tokens, dtype=np.uint8)
    ends[prompt.token_at([match.end() for match in _END.finditer(prompt.text)])] = 1
    return ends
