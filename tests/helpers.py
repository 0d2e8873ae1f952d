"""What several tests do with a Llama."""

from __future__ import annotations

import resource
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
from llama_cpp import (
    llama_get_memory,
    llama_memory_seq_pos_max,
    llama_set_abort_callback,
)
from llama_cpp.llama_cpp import ggml_abort_callback

from headkv_local import Llama, Retention, memory_estimate
from headkv_local._core import native
from headkv_local.tokens import logits_of

Logits = npt.NDArray[np.float32]


@contextmanager
def beside(work: Callable[[], None]) -> Iterator[list[BaseException]]:
    """Runs work in another thread meanwhile; what that raised is in the list afterwards."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield raised
    finally:
        thread.join(60)
        assert not thread.is_alive()


def random_tokens(n: int, seed: int = 0) -> list[int]:
    """Tokens that every tiny model has, none of them special."""
    tokens: list[int] = np.random.default_rng(seed).integers(0, 256, n).tolist()
    return tokens


def last_logits(llm: Llama) -> Logits:
    """Logits after the last decoded token, (n_vocab,)."""
    return logits_of(llm).copy()


def forced_logits(llm: Llama, tokens: Sequence[int]) -> Logits:
    """Decode tokens one by one: the logits before each of them, and after the last."""
    rows = [last_logits(llm)]
    for token in tokens:
        llm.eval([token])
        rows.append(last_logits(llm))
    return np.array(rows)


def greedy_logits(llm: Llama, n: int) -> tuple[list[int], Logits]:
    """Go on from the cache with the n likeliest tokens: these, and what forced_logits() says of them."""
    tokens: list[int] = []
    rows = [last_logits(llm)]
    for _ in range(n):
        tokens.append(int(rows[-1].argmax()))
        llm.eval(tokens[-1:])
        rows.append(last_logits(llm))
    return tokens, np.array(rows)


def greedy(llm: Llama, n: int) -> list[int]:
    """Go on from the cache with the n likeliest tokens."""
    return greedy_logits(llm, n)[0]


def needed(path: Path, archive: str | None) -> int:
    """Bytes of memory that a context of all positions has to have on the CPU, with such an archive."""
    found = memory_estimate(path, n_ctx=0, retention=Retention(budget=16, archive=archive))
    (there,) = found.devices
    return there.peak(found.order) - there.weights - there.compute


def nmse(found: Logits, wanted: Logits) -> float:
    """Normalised mean squared error."""
    found64, wanted64 = found.astype(np.float64), wanted.astype(np.float64)
    return float(((found64 - wanted64) ** 2).sum() / (wanted64**2).sum())


def compact_natively(
    llm: Llama,
    tokens: list[int],
    caps: npt.NDArray[np.int32] | int,
    window: int = 8,
    kernel: int = 7,
    ends: npt.NDArray[np.uint8] | None = None,
) -> None:
    """Read a prompt and compact it through the C API alone, also with caps that keep everything.

    llm: with flash attention on, an empty cache and no retention.
    """
    ctx = int(llm.ctx)
    shape = native.model_shape(ctx)
    llm.eval(tokens[:-window])
    native.observe(ctx, native.OBSERVE_TOKENS, len(tokens) - window, window)
    llm.eval(tokens[-window:])
    native.observe(ctx, native.OBSERVE_OFF)
    wide = np.broadcast_to(np.int32(caps), (shape.n_layer, shape.n_head_kv))
    native.compact(ctx, native.Plan(wide, window, kernel, 4, ends))


def ends(llm: Llama) -> tuple[int, int, int]:
    """How many tokens there are by llama_cpp's count, by the cache's, and by the memory's last position."""
    last = llama_memory_seq_pos_max(llama_get_memory(llm.ctx), 0)
    stats = llm.cache_stats()
    return llm.n_tokens, stats.prompt_tokens + stats.tail_tokens, last + 1


@contextmanager
def at_each_node(llm: Llama, stops: Callable[[], bool]) -> Iterator[None]:
    """Asked before each node that a decode computes meanwhile; the decode stops where it says so."""
    callback = ggml_abort_callback(lambda _: stops())
    llama_set_abort_callback(llm.ctx, callback, None)
    try:
        yield
    finally:
        native.cancel_enable(llm.ctx)


@contextmanager
def cancelled_after(llm: Llama, n_nodes: float) -> Iterator[list[int]]:
    """A decode meanwhile stops when so many nodes of its graphs are computed; the list says how many were."""
    count = [0]

    def stops() -> bool:
        count[0] += 1
        return count[0] > n_nodes

    with at_each_node(llm, stops):
        yield count


@contextmanager
def no_room_on_disk(n_bytes: int) -> Iterator[None]:
    """No file can become longer than that meanwhile."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
