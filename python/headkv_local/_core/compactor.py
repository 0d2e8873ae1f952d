"""What has a context observe a prompt and keep a part of it, as a Retention says."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from ..budgets import ModelShape
from ..errors import StateError, UnsupportedError
from ..retention import Retention
from ..settings import ALL, DEFAULT_OBSERVE, Policy
from . import native
from .native.archive import begin_small, hold, release, restore, set_archive
from .native.reading import ORDERS, ReadInfo, Reading, read
from .settle import require_fitting, settle, shape_of

_logger = logging.getLogger("headkv_local")


@contextmanager
def small_at_first(retention: Retention | None) -> Iterator[None]:
    """Contexts made meanwhile have few cells until their first prompt, if that gets cells of its own."""
    begin_small(retention is not None and retention.archives)
    try:
        yield
    finally:
        begin_small(False)


class Held:
    """Rows in the archive that stay until this object goes, which may be in any thread."""

    def __init__(self, number: int, dropped: list[int]) -> None:
        self.number, self._dropped = number, dropped

    def __del__(self) -> None:
        self._dropped.append(self.number)

    def __reduce__(self) -> NoReturn:
        raise TypeError("rows that an archive holds are in this process alone: save_state() copies them")


class Compactor:
    """Of one context, until that is freed."""

    def __init__(self, ctx: int, model_path: str) -> None:
        self._address: int | None = ctx
        self.model_path = os.path.abspath(model_path)  # the working directory may change
        self.retention: Retention | None = None
        self.scores_from: str | None = None
        """The file whose head scores make the budgets, "given" for HeadScores."""
        self._settled = Retention()  # with its scores loaded; counts where there is a retention
        self._dropped: list[int] = []  # numbers of rows that the archive need not hold any more

    @property
    def policy(self) -> Policy:
        """How the budgets of the heads are made."""
        return self._settled.policy

    def end(self) -> None:
        """The context is freed."""
        self._address = None

    @property
    def archives(self) -> bool:
        """Whether all rows of a prompt are kept, if only until it is read: it is read whole or not at all."""
        return self.retention is not None and self.retention.archives

    def only_without_archive(self, retention: Retention | None) -> bool:
        """Whether it is the one that there is, but for the archive, which it has not."""
        kept = self.retention
        return kept is not None and retention == kept.without_archive()

    @property
    def window(self) -> int:
        """Last tokens that every head keeps."""
        return self._settled.window

    @property
    def observe(self) -> int:
        """Tokens of a long message that may ask."""
        return DEFAULT_OBSERVE if self.observes_all else int(self._settled.observe)

    @property
    def observes_all(self) -> bool:
        """Whether a prompt selects as a whole, whatever asks."""
        return self._settled.observe == ALL

    @property
    def has_archive(self) -> bool:
        return self.retention is not None and self.retention.archive is not None

    @property
    def reselects(self) -> bool:
        return self.retention is not None and self.retention.reselects

    @property
    def compact_seconds(self) -> float:
        """That the last compaction took, with choosing the entries."""
        numbers = native.get_numbers(self.ctx)
        return (numbers.t_select_us + numbers.t_compact_us) / 1e6

    @property
    def n_archived(self) -> int:
        """Tokens of the compacted prompt whose rows are all there still."""
        return native.get_numbers(self.ctx).n_archived if self.archives else 0

    @property
    def n_tokens(self) -> int:
        """That the cache holds."""
        return native.get_numbers(self.ctx).n_tokens

    @property
    def ctx(self) -> int:
        if self._address is None:
            raise StateError("this Llama has been closed")
        return self._address

    @property
    def shape(self) -> ModelShape:
        """The layers that retain. UnsupportedError for a context that can never be compacted."""
        return shape_of(self.ctx)

    @property
    def n_compacted(self) -> int:
        """Tokens of the prompt that was compacted; 0 where none was."""
        try:
            return native.get_numbers(self.ctx).n_prompt
        except UnsupportedError:
            return 0

    def mask(self) -> npt.NDArray[np.bool_]:
        """(n_layer, n_head_kv, n_prompt). StateError where nothing is compacted."""
        return native.get_mask(self.ctx)

    def retain(self, retention: Retention | None) -> None:
        """For prompts to come. Raises what settled() raises."""
        settled, scores_from = self.settled(retention)
        if retention is not None and settled is not None:
            if self.retention is None or self.retention.archive != retention.archive:
                set_archive(self.ctx, None if retention.archive is None else os.fspath(retention.archive))
            self._settled = settled
        elif self.archives:
            set_archive(self.ctx, None)
        self.retention, self.scores_from = retention, scores_from

    def settled(self, retention: Retention | None) -> tuple[Retention | None, str | None]:
        """As it is for this model, and where its head scores are from. Raises for what this model, or no
        prompt of it, can be compacted by."""
        if retention is None:
            return None, None
        shape = self.shape
        found, scores_from = settle(retention, shape, self.model_path)
        n_ctx = native.get_numbers(self.ctx).n_ctx
        require_fitting(found, shape, n_ctx)
        return found, scores_from

    def give_up_archive(self) -> None:
        """What is kept goes on without it, as the retention says from now on."""
        set_archive(self.ctx, None)
        if self.retention is not None:
            self.retention = self.retention.without_archive()
            self._settled = self._settled.without_archive()

    def caps_for(self, n_prompt: int) -> npt.NDArray[np.int32] | None:
        """(n_layer, n_head_kv); None if there is nothing to compact."""
        if self.retention is None:
            return None
        shape = self.shape
        caps = self._settled.caps_for(shape, n_prompt)
        if (caps[shape.heads] < n_prompt).any():
            return caps
        _logger.info("the prompt of %d tokens fits into the budget and is kept whole", n_prompt)
        return None

    def expect(self, n_tokens: int) -> None:
        """Make room for a prompt that is read next."""
        if self.retention is not None:
            native.reserve(self.ctx, n_tokens)

    def read(
        self,
        reading: Reading,
        caps: npt.NDArray[np.int32] | None,
        progress: Callable[[int, int, ReadInfo], None],
    ) -> ReadInfo:
        """Read a prompt, select from all of it, and compact. Its order and panel are the retention's.

        caps: None to keep all.
        """
        self.release()
        kept, n_prompt = self._settled, len(reading.tokens)
        if caps is None:
            caps = np.where(self.shape.heads, np.int32(n_prompt), np.int32(0))
        reading = reading._replace(order=ORDERS[kept.order], panel=kept.panel or 0)
        info = read(self.ctx, reading, kept.native()._replace(scores=None), caps, progress)
        if kept.order is None and kept.by_layers and info.order == ORDERS["tokens"]:
            _logger.info("the prompt was read in the order of tokens: %s", native.last_error())
        _logger.info("the prompt of %d tokens was compacted to %d rows", n_prompt, int(caps.sum()))
        return info

    def hold(self) -> Held | None:
        """What is archived of the compacted prompt, to be restored once a state of now is loaded again."""
        self.release()
        number = hold(self.ctx) if self.n_archived > 0 else 0
        return Held(number, self._dropped) if number > 0 else None

    def owns(self, held: Held) -> bool:
        """Whether they are in this archive, or were in one before it."""
        return held._dropped is self._dropped

    def restore(self, held: Held | None) -> None:
        """Of an archive that has been given up, or whose file was cut short, nothing is left to restore."""
        if held is not None and self.has_archive:
            try:
                restore(self.ctx, held.number)
            except StateError as error:
                _logger.warning("%s: what is kept goes on without them", error)

    def release(self) -> None:
        """Rows that were held for a stream that has gone."""
        while self._dropped:
            release(self.ctx, self._dropped.pop())

    def fold_caps(self, n_prompt: int, n_tokens: int, n_asked: int) -> npt.NDArray[np.int32] | None:
        """Entries per KV head once what came after a prompt becomes a part of it, (n_layer, n_head_kv). None
        if nothing is compacted and all of the n_tokens fit into the budget.

        n_asked: tokens after the prompt that came with a turn.

        It is the budget, however short the prompt was. One that is a share stays one of the prompt, or of
        what came with the turn if that is more, for an answer has no end; of as many tokens as are folded at
        once where these are fewer.
        """
        kept, shape, compacted = self._settled, self.shape, self.n_compacted > 0
        is_share = kept.policy != "caps" and "%" in str(kept.budget)
        if is_share:
            n_least = max(
                kept.fold or 0, n_asked, kept.window + 1
            )  # no longer than the window, it is kept whole
            caps = kept.caps_for(shape, n_least if compacted else max(n_prompt, n_least))
        else:
            caps = kept.caps_for(shape, n_tokens)
        if compacted and is_share:
            now = native.get_stats(self.ctx)[1]
            return max(caps, now, key=np.sum) if self.observes_all else np.maximum(caps, now)
        if compacted:
            return caps
        return None if (caps[shape.heads] >= n_tokens).all() else caps

    def begin_tail(self, first: int, n: int) -> None:
        """From now on record what n tokens from position `first` on ask for: a fold is due after them."""
        native.observe(self.ctx, native.OBSERVE_TAIL, first, n)

    def fold(self, caps: npt.NDArray[np.int32], ends: npt.NDArray[np.uint8]) -> None:
        """What came after the prompt becomes a part of it. caps: as fold_caps() has them.

        ends: uint8 (n_tokens,), 1 for the last token of a sentence.
        """
        kept = self._settled
        window = min(kept.window, len(ends))  # a prompt that is kept whole may be shorter
        plan = native.Plan(caps, window, kept.kernel, kept.sinks, ends, pooled=self.observes_all)
        native.compact(self.ctx, plan)
        _logger.info("the tail was folded into a prompt of %d tokens", len(ends))

    def begin_rows(self) -> None:
        """From now on record what each token attends to that is decoded."""
        native.observe(self.ctx, native.OBSERVE_ROWS)

    def rows(self) -> npt.NDArray[np.float32]:
        """Of the token decoded last: (n_layer, n_head, tokens in the cache)."""
        return native.get_rows(self.ctx)

    def end_rows(self) -> None:
        native.observe(self.ctx, native.OBSERVE_OFF)
