"""CacheStats: what the KV cache of a model holds, and what it costs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from .budgets import LayerShape
from .settings import Policy

if TYPE_CHECKING:
    from .retention import Retention


@dataclass(frozen=True, kw_only=True, eq=False)
class CacheStats:
    """A snapshot. Sizes are bytes of ggml's own buffers, times are seconds of the last prompt."""

    prompt_tokens: int
    """Tokens of the prompt, kept or not. Where a chat template begins an answer with a text that it leaves
    out of earlier answers, these tokens count as tail."""
    tail_tokens: int
    """Tokens decoded after the prompt."""
    turn_tokens: int = 0
    """Where the prompt of the last turn ended, as later prompts begin with it."""
    n_ctx: int
    """Positions that the context can hold."""
    compacted: bool
    """Whether the prompt has been compacted; otherwise it is kept whole."""
    policy: Policy | Literal["full"]
    """How the budgets of the heads were made: "uniform", by "scores", given as "caps", or "observed", by what
    each looks at (observe="all"); "full" while nothing is compacted."""
    scores_from: str | None = None
    """The file whose head scores made the budgets, "given" for those of no file; None where none did."""
    kept: npt.NDArray[np.int32]
    """Prompt entries kept per KV head of the layers that retain, (n_layer, n_head_kv); 0 where a layer has
    fewer KV heads than others."""
    row_bytes: int
    """K and V of one entry of one KV head; the mean where layers differ."""
    layers: tuple[LayerShape, ...] = ()
    """The layers that retain: those whose attention reaches to all positions. Layers with a sliding window
    and recurrent layers are bounded already, and not counted here. Empty where nothing can be compacted."""
    full_bytes: int
    """The KV cache at full size, n_ctx cells."""
    resident_bytes: int
    """All that is held now: cells, kept rows and records of attention."""
    pool_bytes: int
    """Kept rows of the prompt with their head tables, without the window; 0 while nothing is compacted."""
    tail_bytes: int
    """Cells for the window and the tokens after the prompt; 0 while nothing is compacted."""
    peak_bytes: int
    """The most that was held at once since the cache was last cleared."""
    prefill_seconds: float
    """Decoding the prompt, with what observing took; without selection and compaction."""
    select_seconds: float
    """Choosing the entries, with a draft that chooses."""
    compact_seconds: float
    """Moving the kept rows, freeing the full cache, and fitting the compute buffers to the new one."""
    devices: tuple[str, ...] = ("CPU",)
    """Where the cache lies: ("CUDA0",), or several where the layers are spread."""
    archive_bytes: int = 0
    """Full rows of the prompt in the archive, in memory or in a file; not counted above."""
    archive_tokens: int = 0
    """Tokens whose full rows are there: 0, `prompt_tokens`, or fewer once an answer has become a part
    of the prompt, where layers with a sliding window or a recurrent state cannot go back."""
    n_splits: int = 0
    """Parts of the last graph: one more than it changes between devices; 0 where that is not known."""

    @property
    def kept_share(self) -> float:
        """Share of the prompt's entries that is kept, 1.0 for an empty cache."""
        n_heads = sum(layer.n_head_kv for layer in self.layers) or self.kept.size
        entries = self.prompt_tokens * n_heads
        return float(self.kept.sum()) / entries if entries else 1.0

    @property
    def kept_bytes(self) -> int:
        """K and V of all kept entries."""
        if not self.layers:
            return int(self.kept.sum()) * self.row_bytes
        return sum(
            int(kept.sum()) * layer.row_bytes for kept, layer in zip(self.kept, self.layers, strict=True)
        )


@dataclass(frozen=True)
class PromptRecord:
    """What the KV cache itself does not know about the prompt that was read last."""

    n_tokens: int | None = None
    """None if no prompt was read: whatever the cache holds counts as prompt then."""
    retention: Retention | None = None
    """By which what is kept of it was chosen. None: not known."""
    policy: Policy = "uniform"
    scores_from: str | None = None
    prefill_seconds: float = 0.0
    question: tuple[tuple[int, int, float], ...] | None = None
    """The parts of it that were told to ask: from a token, before another, and how much they weigh. Empty
    where nothing was told, None where that is not known."""
    fits: bool = False
    """It was read under a retention, and is whole since it fits into the budget."""
    turns: tuple[tuple[int, int], ...] = ()
    """Of each turn, the last one last: where its prompt ended, and how many tokens were new."""
    due: tuple[int, int] | None = None
    """Of how many tokens this is the prompt, and at how many in all what came after it is folded. None: the
    tokens that choose are not recorded yet."""
    stays: int = 0
    """Tokens in all when it was found that what came after it stays as it is for now."""
    logits: npt.NDArray[np.float32] | None = field(default=None, repr=False, compare=False)
    """What its last token predicts, (n_vocab,): that token cannot be decoded again once others are gone."""
    recurrent: npt.NDArray[np.uint8] | None = field(default=None, repr=False, compare=False)
    """The state of recurrent layers at its end, to which they cannot go back; None without such layers."""

    def chosen_otherwise(self, now: Retention | None) -> bool:
        """Whether it is known that another retention chose. Where the archive is does not matter."""
        then = self.retention
        return then is not None and now is not None and then.without_archive() != now.without_archive()

    def turns_within(self, n_tokens: int) -> tuple[tuple[int, int], ...]:
        """Those whose prompt lies within the first n_tokens."""
        return tuple(turn for turn in self.turns if turn[0] <= n_tokens)
