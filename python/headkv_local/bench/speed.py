"""Speed of the stock cache and of the compacted one, side by side on the same library."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median

import llama_cpp

from headkv_local import CacheStats, Llama, Retention
from headkv_local.settings import DEFAULT_OBSERVE

from . import memory
from .contexts import Setup, check_length, n_ctx_for, open_headkv, open_stock, require_compacted
from .speed_figures import Samples, Speed
from .state import KeptState
from .text import text_tokens
from .timing import BLOCK, decode_in_turns, prefill_in_turns, timed_eval

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    prompt_tokens: tuple[int, ...] = (6000,)
    budgets: tuple[int | str, ...] = (128,)
    repeat: int = 3
    compactions: int = 3
    """Per pass, of the same prompt."""
    short_depth: int | None = None
    """How much the short stock context holds; None: as much as a KV head keeps."""
    decode_tokens: int = 64
    stock_flash: bool = True
    own_process: bool = True
    """Whether memory is measured again in a process that does nothing else."""


def run(setup: Setup, settings: Settings, tell: Tell = lambda _: None) -> Iterator[list[Speed]]:
    """The results of each prompt length when they are there, one per budget.

    Raises ArgumentError for lengths that cannot be measured.
    """
    for n_prompt in settings.prompt_tokens:
        yield _measure(setup, settings, n_prompt, tell)


def _measure(setup: Setup, settings: Settings, n_prompt: int, tell: Tell) -> list[Speed]:
    """All budgets on the same prompt, which is read once in every pass."""
    n_total = n_prompt + settings.decode_tokens
    apart: dict[int | str, memory.Memory] = {}
    if settings.own_process:
        for budget in settings.budgets:
            tell(f"prompt {n_prompt}: memory at budget {budget}, in a process of its own")
            apart[budget] = memory.measure_apart(setup, n_prompt, budget, settings.decode_tokens)
    prefill = Samples()
    samples = {
        budget: Samples(prefill_stock=prefill.prefill_stock, prefill_headkv=prefill.prefill_headkv)
        for budget in settings.budgets
    }
    stats: dict[int | str, CacheStats] = {}
    n_head = _before_observed(n_prompt, setup.n_batch)
    with ExitStack() as stack:
        ours = stack.enter_context(open_headkv(setup, n_ctx_for(n_total)))
        check_length(ours, n_total)
        stock = open_stock(setup, n_ctx_for(n_total), settings.stock_flash)
        stack.callback(stock.close)
        shorts = stack.enter_context(_Shorts(setup, settings))
        text = text_tokens(ours, n_total)
        prompt, continuation = text[:n_prompt], text[n_prompt:]
        _warm_up(stock, ours, prompt[: setup.n_batch])
        for i in range(settings.repeat):
            tell(f"prompt {n_prompt}: pass {i + 1} of {settings.repeat}")
            state = _prefill(stock, ours, prompt, n_head, setup.n_batch, prefill)
            for budget in settings.budgets:
                tell(f"prompt {n_prompt}: pass {i + 1} of {settings.repeat}, budget {budget}")
                retention = Retention(budget=budget, scores="uniform")
                stats[budget] = _compact(
                    ours, state, prompt, n_head, retention, settings.compactions, samples[budget]
                )
                require_compacted(stats[budget], budget, n_prompt)
                short = shorts.at(prompt[: _short_depth(settings, stats[budget])])
                stock.n_tokens = n_prompt  # the next eval() drops what the last budget decoded
                _decode(stock, ours, short, continuation, samples[budget])
    return [
        Speed(
            n_prompt=n_prompt,
            budget=budget,
            short_depth=_short_depth(settings, stats[budget]),
            stats=stats[budget],
            samples=samples[budget],
            memory=apart.get(budget),
        )
        for budget in settings.budgets
    ]


def _before_observed(n_prompt: int, n_batch: int) -> int:
    """How many tokens of a prompt are in batches without any that is observed."""
    return max(0, n_prompt - DEFAULT_OBSERVE) // n_batch * n_batch


def _short_depth(settings: Settings, stats: CacheStats) -> int:
    return (
        round(float(stats.kept[stats.kept > 0].mean()))
        if settings.short_depth is None
        else settings.short_depth
    )


class _Shorts:
    """One short stock context, made larger when a budget needs it."""

    def __init__(self, setup: Setup, settings: Settings) -> None:
        self._setup, self._settings = setup, settings
        self._llm: llama_cpp.Llama | None = None

    def __enter__(self) -> _Shorts:
        return self

    def __exit__(self, *_: object) -> None:
        if self._llm is not None:
            self._llm.close()

    def at(self, prompt: Sequence[int]) -> llama_cpp.Llama:
        """Holding exactly this prompt."""
        n_ctx = n_ctx_for(len(prompt) + self._settings.decode_tokens)
        if self._llm is None or self._llm.n_ctx() < n_ctx:
            self.__exit__()
            self._llm = open_stock(self._setup, n_ctx, self._settings.stock_flash)
        self._llm.reset()
        if prompt:
            self._llm.eval(prompt)
        return self._llm


def _warm_up(stock: llama_cpp.Llama, ours: Llama, prompt: Sequence[int]) -> None:
    """A GPU loads a kernel and takes memory when something first needs them: not while that is timed."""
    head, last = prompt[:-BLOCK], prompt[-BLOCK:]
    if not head:
        return
    ours.retention = Retention(budget=32, scores="uniform")
    ours.prefill(head)
    stock.eval(head)
    for llm in (stock, ours):
        for token in last:
            llm.eval([token])
        llm.reset()
    ours.retention = None


def _prefill(
    stock: llama_cpp.Llama,
    ours: Llama,
    prompt: Sequence[int],
    n_head: int,
    n_batch: int,
    samples: Samples,
) -> KeptState:
    """Read the prompt with both; the state of ours after n_head tokens, where compactions begin."""
    stock.reset()
    ours.reset()
    ours.retention = None
    llms = {"stock": stock, "headkv": ours}
    head = prefill_in_turns(llms, prompt[:n_head], n_batch)
    state = KeptState(ours)
    end = prefill_in_turns(llms, prompt[n_head:], n_batch)
    samples.prefill_stock.append(head["stock"] + end["stock"])
    samples.prefill_headkv.append(head["headkv"] + end["headkv"])
    return state


def _compact(
    ours: Llama,
    state: KeptState,
    prompt: Sequence[int],
    n_head: int,
    retention: Retention,
    n: int,
    samples: Samples,
) -> CacheStats:
    """Observe and compact n times, each time from the same state, with the cache as warm for both timings."""
    for _ in range(n):
        state.restore(ours)  # a compacted cache gets its full size back
        ours.retention = None
        for _ in range(2):
            plain = timed_eval(ours, prompt[n_head:])
            ours.n_tokens = n_head  # the next eval() drops what lies behind
        ours.retention = retention
        ours.prefill(prompt)
        stats = ours.cache_stats()
        samples.end_plain.append(plain)
        samples.end_recorded.append(stats.prefill_seconds)
        samples.recording.append(stats.prefill_seconds - plain)
        samples.select.append(stats.select_seconds)
        samples.compact.append(stats.compact_seconds)
    return stats


def _decode(
    stock: llama_cpp.Llama,
    ours: Llama,
    short: llama_cpp.Llama,
    continuation: Sequence[int],
    samples: Samples,
) -> None:
    times = decode_in_turns({"stock": stock, "headkv": ours, "short": short}, continuation)
    samples.decode_stock.extend(times["stock"])
    samples.decode_headkv.extend(times["headkv"])
    samples.decode_short.extend(times["short"])
    samples.short_ratios.append(median(times["short"]) / median(times["headkv"]))
