"""What a model takes in memory, before it is loaded."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Literal

from .checks import int_of
from .errors import ArgumentError
from .retention import Retention
from .settings import AUTO

__all__ = ["DeviceMemory", "MemoryEstimate", "memory_estimate"]


@dataclass(frozen=True, kw_only=True)
class DeviceMemory:
    """Bytes on one device. Host memory is the CPU's."""

    name: str
    """As ggml has it: "CPU", "CUDA0"."""
    weights: int
    cache_full: int
    """The KV cache with room for n_ctx tokens, and what other layers hold in any case: those with a sliding
    window, and recurrent ones."""
    cache_compacted: int
    """The same when a prompt of n_prompt tokens has been compacted: kept rows, and cells for the window and
    the tokens after it. Cells double while an answer grows, up to twice the retention's `fold`."""
    compute: int
    """What batches of a prompt are computed in."""
    compute_compacted: int
    """The same when the prompt has been compacted."""
    hidden: int = 0
    """What goes from layer to layer where a prompt is read layer by layer: the hidden states of a panel."""
    archive: int = 0
    """All rows of the prompt, where they are kept in host memory, and what goes with them."""
    peak_tokens: int
    """The most that is held at once where the prompt is read in the order of tokens."""
    peak_layers: int | None = None
    """The same in the order of layers; None without a retention."""
    answering: int
    """What is held when the prompt has been read, and compacted if there is a retention."""

    def peak(self, order: Literal["tokens", "layers"]) -> int:
        """The most that is held at once in an order."""
        return self.peak_tokens if order == "tokens" or self.peak_layers is None else self.peak_layers


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """What a Llama takes, by device, and over all of them by the same names."""

    devices: tuple[DeviceMemory, ...]
    """Those that hold something, in ggml's order."""
    n_ctx: int
    """Positions of the context, as llama.cpp rounds them up."""
    n_prompt: int
    order: Literal["tokens", "layers"]
    """In which the prompt is read; `compute` is of it."""

    @property
    def weights(self) -> int:
        return sum(device.weights for device in self.devices)

    @property
    def cache_full(self) -> int:
        return sum(device.cache_full for device in self.devices)

    @property
    def cache_compacted(self) -> int:
        return sum(device.cache_compacted for device in self.devices)

    @property
    def compute(self) -> int:
        return sum(device.compute for device in self.devices)

    @property
    def compute_compacted(self) -> int:
        return sum(device.compute_compacted for device in self.devices)

    @property
    def hidden(self) -> int:
        return sum(device.hidden for device in self.devices)

    @property
    def archive(self) -> int:
        return sum(device.archive for device in self.devices)

    @property
    def peak_tokens(self) -> int:
        return sum(device.peak_tokens for device in self.devices)

    @property
    def peak_layers(self) -> int | None:
        peaks = [device.peak_layers for device in self.devices]
        return None if None in peaks else sum(peak for peak in peaks if peak is not None)

    @property
    def answering(self) -> int:
        return sum(device.answering for device in self.devices)

    @property
    def total(self) -> int:
        """The most that is held at once, in the order in which the prompt is read."""
        return sum(device.peak(self.order) for device in self.devices)


def memory_estimate(
    model_path: str | os.PathLike[str],
    *,
    n_ctx: int | Literal["auto"] = 512,
    budget: int | str | None = None,
    retention: Retention | None = None,
    n_prompt: int | None = None,
    **kwargs: Any,
) -> MemoryEstimate:
    """What Llama(model_path, n_ctx=n_ctx, retention=retention, **kwargs) takes; nothing of it is loaded.

    llama.cpp itself counts the weights, the KV cache and the compute buffers: it makes the model and its
    contexts without memory for their tensors (no_alloc). What compaction and the two orders add follows
    from the layers' shapes. It takes about as long as reading the model's vocabulary.

    n_ctx: 0 for what the model was trained for, "auto" for as much of it as fits, as in Llama.
    budget: in place of Retention(budget=budget).
    n_prompt: tokens of the prompt, at least 1; None: as many as the context has room for.
    kwargs: the other arguments of Llama that change what is held: n_batch, n_ubatch, type_k, type_v,
        n_gpu_layers, offload_kqv, flash_attn, swa_full, logits_all, ...

    An adapter (lora_path) counts as the size of its file. Not counted are Python and the libraries, a draft
    model, the work buffers of CPU threads (some MiB; up to 32 MiB more while a question is observed), what
    llama.cpp describes graphs with (some MiB; 110 MiB for Qwen3.5 and its like with n_ubatch=2048), a GPU's
    driver and its workspaces, and an archive in a file. Weights that are mapped from their file count
    whole, though the system may drop them. A model whose graph cannot be cut is read in the order of tokens
    whatever `order` says, which only reading shows.

    Raises what Llama would raise for these arguments: ModelError, UnsupportedError, ArgumentError; the last
    also for an argument that Llama does not have.
    """
    from ._core.estimate import Estimator
    from ._core.load import refuse_unknown
    from ._core.room import largest_context
    from ._core.settle import require_fitting

    refuse_unknown(kwargs, known=("on_prefill",))

    if budget is not None:
        if retention is not None:
            raise ArgumentError("budget and retention exclude each other: give one of them")
        retention = Retention(budget=budget)
    if n_prompt is not None:
        n_prompt = int_of("n_prompt", n_prompt, 1)
    kwargs["n_ctx"] = n_ctx
    with Estimator(model_path, retention, kwargs) as estimator:
        if n_ctx == AUTO:
            n_ctx = largest_context(estimator)
        estimate = estimator.at(int(n_ctx), n_prompt)
        if estimator.retention is not None:
            require_fitting(estimator.retention, estimator.shape(), estimate.n_ctx)
        return estimate
