"""What one turn of the chat produces: events while it runs, an answer at its end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from headkv_local import CacheStats
    from headkv_local.chat.documents import Document


@dataclass(frozen=True)
class Prefill:
    """`done` of `total` prompt tokens are read."""

    done: int
    total: int


@dataclass(frozen=True)
class Text:
    """The next piece of the answer."""

    text: str


@dataclass(frozen=True)
class Notice:
    """What the user should know before the answer goes on."""

    text: str


Event = Prefill | Text | Notice
FinishReason = Literal["stop", "length", "repetition", "interrupt"]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One answer, complete or not.

    finish_reason: "stop" (the model ended it), "length" (max_tokens or the end of the context),
    "repetition" (it had begun to repeat itself without end) or "interrupt" (Ctrl-C). prompt_tokens counts
    the whole conversation, read_tokens what of it had to be evaluated now. reread_reason: why that was all
    of it although an earlier turn had read a part, else None. decode_rate: tokens per second after the first
    one, None below two tokens. archive: where all rows of the prompt are, as Retention says it.
    """

    text: str
    finish_reason: FinishReason
    prompt_tokens: int
    read_tokens: int
    reread_reason: str | None
    completion_tokens: int
    prefill_seconds: float
    decode_rate: float | None
    context_full: bool
    archive: str | None
    stats: CacheStats

    def as_json(self) -> dict[str, Any]:
        """The object that --json prints. Sizes in bytes, times in seconds, rates in tokens per second."""
        stats = self.stats
        return {
            "text": self.text,
            "finish_reason": self.finish_reason,
            "usage": {
                "prompt_tokens": self.prompt_tokens,
                "completion_tokens": self.completion_tokens,
                "total_tokens": self.prompt_tokens + self.completion_tokens,
            },
            "stats": {
                "read_tokens": self.read_tokens,
                "reread_reason": self.reread_reason,
                "prefill_seconds": round(self.prefill_seconds, 6),
                "decode_rate": None if self.decode_rate is None else round(self.decode_rate, 3),
                "n_ctx": stats.n_ctx,
                "policy": stats.policy,
                "scores_from": stats.scores_from,
                "devices": list(stats.devices),
                "compacted": stats.compacted,
                "compacted_prompt_tokens": stats.prompt_tokens if stats.compacted else 0,
                "tail_tokens": stats.tail_tokens,
                "kept_share": round(stats.kept_share, 6),
                "full_bytes": stats.full_bytes,
                "resident_bytes": stats.resident_bytes,
                "pool_bytes": stats.pool_bytes,
                "tail_bytes": stats.tail_bytes,
                "peak_bytes": stats.peak_bytes,
                "archive": self.archive,
                "archive_tokens": stats.archive_tokens,
                "archive_bytes": stats.archive_bytes,
                "select_seconds": round(stats.select_seconds, 6),
                "compact_seconds": round(stats.compact_seconds, 6),
            },
        }


@dataclass(frozen=True, kw_only=True)
class Turn:
    """A question that was answered, and stays in the chat.

    content: what the model has read of it, also of somebody else's session. documents, question: what of that
    a user goes on with. used: positions of the context up to its end. opened: the mark of thinking that the
    prompt ended with, "" for none, None where that is not known.
    """

    documents: tuple[Document, ...]
    question: str
    content: Any
    answer: str
    used: int
    opened: str | None = None
