"""What is known of the prompt that a context holds, and of the one that comes next."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from ..stats import PromptRecord
from ..tokens import n_same
from .turns import Turn

_logger = logging.getLogger("headkv_local")

_Ids = npt.NDArray[np.intc]


class PromptTracker:
    """Of one context. It knows tokens only, and evaluates nothing."""

    def __init__(self) -> None:
        self.record = PromptRecord()
        self.reread: str | None = None
        """See Llama.reread_reason."""
        self.reading = False
        self._unread: Turn | None = None  # a generation, from its start until it evaluates its prompt

    def announce(self, turn: Turn) -> None:
        """The tokens that are evaluated next are the prompt of a turn."""
        self._unread = turn

    def announced(self) -> Turn | None:
        """Whose prompt is evaluated now; once."""
        turn, self._unread = self._unread, None
        return turn

    def withdraw(self, turn: Turn) -> bool:
        """It has ended, maybe late: another one was announced. Whether its prompt was never evaluated."""
        unread = self._unread is turn
        if unread:
            self._unread = None
        return unread

    @contextmanager
    def being_read(self) -> Iterator[None]:
        self.reading = True
        try:
            yield
        finally:
            self.reading = False

    def compare(self, compacted: _Ids, tokens: Sequence[int], rewritten: bool) -> None:
        """Note why a prompt has to be read whole, if it does not go on from the compacted one.

        rewritten: whether the chat template has written its messages in another way before.
        """
        self.reread = None
        n = len(compacted)
        same = n_same(compacted, tokens)
        if same == n:
            return
        self._read_whole(
            f"the prompt goes on otherwise than the compacted one from token {same} of {n} on"
            + (
                ": the model's chat template writes messages in another way when others follow"
                if rewritten
                else ""
            )
        )

    def cannot_go_back(self, n_tokens: int) -> None:
        """Note that a prompt has to be read whole although it goes on from the compacted one."""
        self._read_whole(
            f"layers with a sliding window or a recurrent state cannot go back to token {n_tokens}, where "
            "the prompt goes on otherwise"
        )

    def has_no_logits(self) -> None:
        """Note that the compacted prompt has to be read whole once more, to go on from its end."""
        self._read_whole("there are no logits of the compacted prompt's end, and no archive has the rest")

    def asks_else(self) -> None:
        """Note that a prompt has to be read whole although it is the compacted one."""
        self._read_whole(
            "other parts of it ask than those that chose what was kept, and no archive has the rest"
        )

    def wants_logits(self) -> None:
        """Note that a prompt has to be read whole for the logits of all its tokens."""
        self._read_whole(
            "the logits of all its tokens are asked for, and the saved state or session had none of some"
        )

    def _read_whole(self, reason: str) -> None:
        self.reread = reason
        _logger.info("the prompt is read whole: %s", reason)
