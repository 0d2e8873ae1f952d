"""A Llama that reads an evaluation's prompts: what is document in them, what fits, what it cost."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any, Final

from headkv_local import Llama
from headkv_local.defaults import FALLBACK_CTX
from headkv_local.devices import layers_to_measure
from headkv_local.models import chosen_model, trained_context
from headkv_local.tokens import n_same

from ..bench.chosen import read
from ..bench.suites.names import BEFORE, WITH
from .settings import Settings

_WITHIN: Final = {bytes([byte]) for byte in range(0x80, 0xC0)}


@dataclass
class Costs:
    """Of all prompts so far. prompt_tokens: those that were evaluated, not what the cache still had. skipped:
    prompts that did not fit. truncated: whose middle was cut out.

    Both, and unsplit, are also of earlier runs whose answers are taken from a file.
    """

    prompts: int = 0
    skipped: int = 0
    truncated: int = 0
    unsplit: int = 0
    prompt_tokens: int = 0
    prompt_seconds: float = 0.0
    answer_tokens: int = 0
    answer_seconds: float = 0.0

    def __post_init__(self) -> None:
        self.kept_shares: list[float] = []
        self.kept_bytes: list[int] = []
        self.resident_bytes: list[int] = []

    def left_out(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in ("skipped", "truncated", "unsplit")}

    def add_left_out(self, earlier: Mapping[str, int]) -> None:
        for name, n in earlier.items():
            setattr(self, name, getattr(self, name) + n)

    def summary(self) -> dict[str, Any]:
        """Means over prompts, and tokens per second; None where there was nothing."""
        return {
            **vars(self),
            **{
                name: mean(values) if values else None
                for name, values in (
                    ("kept_shares", self.kept_shares),
                    ("kept_bytes", self.kept_bytes),
                    ("resident_bytes", self.resident_bytes),
                )
            },
            "prompt_tokens_per_second": _rate(self.prompt_tokens, self.prompt_seconds),
            "answer_tokens_per_second": _rate(self.answer_tokens, self.answer_seconds),
        }


@dataclass(frozen=True)
class Prompt:
    """n_document: tokens before what asks; 0 where that is not known.

    text, cut: all of it in UTF-8, and where what was cut out of its middle begins and ends.
    """

    tokens: list[int]
    n_document: int
    text: bytes = b""
    cut: tuple[int, int] = 0, 0

    def said(self, messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """The messages that it was made of, as they stand in it."""
        return [{**one, "content": self._left(one.get("content"))} for one in messages]

    def _left(self, content: Any) -> Any:
        """Of the one that the cut is in."""
        start, stop = self.cut
        if not isinstance(content, str) or start == stop:
            return content
        said = content.strip().encode()  # as templates may
        at = self.text.find(said, max(0, stop - len(said)), start + len(said))
        if at < 0:
            return content
        return (said[: start - at] + said[stop - at :]).decode()


class Reader:
    """Raises what Llama raises."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.costs = settings, Costs()
        self.model = chosen_model(settings.model)
        layers = layers_to_measure(settings.options.get("n_gpu_layers"))
        n_ctx = settings.options.get("n_ctx") or trained_context(self.model) or FALLBACK_CTX
        options = settings.options | {"n_ctx": n_ctx, "n_gpu_layers": layers}
        self.llm = Llama(self.model, retention=settings.retention, flash_attn=True, **options)
        self.llm.on_prefill = self._count
        self._bos = self.llm.token_bos()
        self._compacted: tuple[list[int], Any] | None = None
        self._last: list[int] = []

    def tokens(self, text: str, add_bos: bool = True) -> list[int]:
        """With the model's beginning once, also where a chat template has written it."""
        found = list(self.llm.tokenize(text.encode(), add_bos=add_bos, special=True))
        return found[1:] if found[:2] == [self._bos, self._bos] else found

    def fits(self, n_tokens: int, n_more: int) -> bool:
        """Whether a prompt and n_more tokens fit into the context, without its middle if that is wanted."""
        room = self.llm.n_ctx() - n_more
        return n_tokens <= room or (self.settings.truncate and room >= 2)

    def prompt(self, tokens: list[int], text: str, n_more: int) -> Prompt | None:
        """A prompt, if it fits as fits() says."""
        n_asks = len(tokens) - self._n_document(tokens, text)
        room, said, cut = self.llm.n_ctx() - n_more, text.encode(), (0, 0)
        if not self.fits(len(tokens), n_more):
            self.costs.skipped += 1
            return None
        if len(tokens) > room:
            self.costs.truncated += 1
            half, rest = room // 2, len(tokens) - (room - room // 2)
            while half > 0 and self._is_within(tokens[half]):
                half -= 1
            while rest < len(tokens) and self._is_within(tokens[rest]):
                rest += 1
            out, end = (
                self.llm.detokenize(part, special=True) for part in (tokens[half:rest], tokens[rest:])
            )
            stop = len(said) - len(end)
            cut = stop - len(out), stop
            tokens = tokens[:half] + tokens[rest:]
        return Prompt(tokens, max(0, len(tokens) - n_asks), said, cut)

    def _is_within(self, token: int) -> bool:
        """Whether it begins in the middle of a character of UTF-8."""
        return self.llm.detokenize([token], special=True)[:1] in _WITHIN

    def read(self, prompt: Prompt, messages: Sequence[Mapping[str, Any]], again: bool = False) -> None:
        """Read a prompt and compact it. messages: that it was made of, if any. again: the one before, for
        another continuation; it is one prompt."""
        llm, tokens, n_document = self.llm, prompt.tokens, prompt.n_document
        started = time.perf_counter()
        if self.settings.chosen == WITH or n_document == 0:
            if self.settings.retention is not None and tokens != self._last:
                llm.reset()  # what was kept for another question is not to be gone on from
        elif self.settings.chosen == BEFORE:
            self._compact(tokens[:n_document])
        self._last = tokens
        question = slice(n_document, len(tokens)) if 0 < len(tokens) - n_document < n_document else None
        chosen, told = self.settings.chosen, () if question else prompt.said(messages)
        read(llm, tokens, n_document, chosen, question=question, messages=told)
        costs = self.costs
        costs.prompt_seconds += time.perf_counter() - started
        if chosen == BEFORE and n_document > 0:
            costs.prompt_tokens += len(tokens) - n_document  # which are not read as a prompt
        if again:
            return
        stats = llm.cache_stats()
        costs.prompts += 1
        costs.kept_shares.append(stats.kept_share)
        costs.kept_bytes.append(stats.kept_bytes)
        costs.resident_bytes.append(stats.resident_bytes)

    def _count(self, done: int, total: int) -> None:
        if done == total:
            self.costs.prompt_tokens += total

    def _n_document(self, tokens: list[int], text: str) -> int:
        """Tokens before the last split in the prompt; 0 where there is none, or none is given."""
        if self.settings.split is None:
            return 0
        at = text.rfind(self.settings.split)
        if at <= 0:
            self.costs.unsplit += 1
            return 0
        return n_same(tokens, self.tokens(text[:at]))

    def _compact(self, document: list[int]) -> None:
        """Compact a document that no question is known of; one that several questions follow, once."""
        if self._compacted is not None and self._compacted[0] == document:
            self.llm.load_state(self._compacted[1])
            return
        self.llm.reset()
        self.llm.prefill(document)
        self._compacted = document, self.llm.save_state()


def _rate(n: int, seconds: float) -> float | None:
    return n / seconds if seconds else None
