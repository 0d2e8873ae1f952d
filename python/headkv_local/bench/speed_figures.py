"""What was timed of one prompt length and one budget, and what follows from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median
from typing import Any

from headkv_local import CacheStats

from . import memory
from .timing import quartiles


@dataclass
class Samples:
    """Seconds, one entry per batch, per compaction or per step."""

    prefill_stock: list[list[float]] = field(default_factory=list)
    prefill_headkv: list[list[float]] = field(default_factory=list)
    """Batch by batch, a list for each pass."""
    end_plain: list[float] = field(default_factory=list)
    """The prompt's end, from the batch with the first observed token on, decoded without recording."""
    end_recorded: list[float] = field(default_factory=list)
    recording: list[float] = field(default_factory=list)
    """The difference of the two, each time."""
    select: list[float] = field(default_factory=list)
    compact: list[float] = field(default_factory=list)
    decode_stock: list[float] = field(default_factory=list)
    decode_headkv: list[float] = field(default_factory=list)
    decode_short: list[float] = field(default_factory=list)
    short_ratios: list[float] = field(default_factory=list)
    """Decode speed of the compacted cache against stock at the depth of the budget, per pass."""


@dataclass(frozen=True)
class Speed:
    """Of one prompt length and one budget."""

    n_prompt: int
    budget: int | str
    short_depth: int
    stats: CacheStats
    samples: Samples
    memory: memory.Memory | None

    @property
    def prefill_stock(self) -> float:
        """Seconds to read the whole prompt."""
        return _by_batch(self.samples.prefill_stock)

    @property
    def prefill_headkv(self) -> float:
        """The same with our cache, without what observing and compacting take."""
        return _by_batch(self.samples.prefill_headkv)

    @property
    def first_token_headkv(self) -> float:
        """Seconds to the logits of the first answer token; of stock that is prefill_stock."""
        return self.prefill_headkv + self.cost

    @property
    def peak_bytes(self) -> int | None:
        """Of the process of its own: here a prompt goes on from a state, behind which cells are moved."""
        return None if self.memory is None else self.memory.peak_bytes

    @property
    def cost(self) -> float:
        """Seconds that the compaction of one prompt takes: what observing adds, selection, moving rows."""
        s = self.samples
        return median(s.recording) + median(s.select) + median(s.compact)

    @property
    def short_ratio(self) -> float:
        """Decode speed of the compacted cache against stock at the depth of the budget."""
        return median(self.samples.decode_short) / median(self.samples.decode_headkv)

    @property
    def short_ratio_q1(self) -> float:
        """The same quotient of the lower quartiles: a busy machine blurs the faster steps least."""
        short, ours = quartiles(self.samples.decode_short), quartiles(self.samples.decode_headkv)
        return short["q1"] / ours["q1"]

    def as_dict(self) -> dict[str, Any]:
        prefill, samples = self.prefill_stock, vars(self.samples)
        flat = {name: values for name, values in samples.items() if not name.startswith("prefill")}
        return {
            "prompt_tokens": self.n_prompt,
            "budget": self.budget,
            "short_depth": self.short_depth,
            "samples": {name: quartiles(values) for name, values in flat.items()},
            "prefill_tokens_per_second": {
                "stock": self.n_prompt / prefill,
                "headkv": self.n_prompt / self.prefill_headkv,
            },
            "first_token_seconds": {"stock": prefill, "headkv": self.first_token_headkv},
            "prefill_seconds_of_batches": {
                "stock": self.samples.prefill_stock,
                "headkv": self.samples.prefill_headkv,
            },
            "decode_tokens_per_second": {
                "stock": 1 / median(self.samples.decode_stock),
                "headkv": 1 / median(self.samples.decode_headkv),
                "stock_at_short_depth": 1 / median(self.samples.decode_short),
            },
            "decode_ratio_to_short": self.short_ratio,
            "decode_ratio_to_short_q1": self.short_ratio_q1,
            "cost_seconds": self.cost,
            "cost_share_of_prefill": self.cost / prefill,
            "cache": {
                "devices": self.stats.devices,
                "n_splits": self.stats.n_splits,
                "kept_bytes": self.stats.kept_bytes,
                "full_bytes": self.stats.full_bytes,
                "resident_bytes": self.stats.resident_bytes,
                "peak_bytes": self.peak_bytes,
                "pool_bytes": self.stats.pool_bytes,
                "tail_bytes": self.stats.tail_bytes,
                "kept_share": self.stats.kept_share,
            },
            "own_process": None if self.memory is None else self.memory.as_dict(),
        }


def _by_batch(passes: list[list[float]]) -> float:
    """Seconds for all batches: of each the median over the passes."""
    seconds: float = sum(median(batch) for batch in zip(*passes, strict=True))
    return seconds
