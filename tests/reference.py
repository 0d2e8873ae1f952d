"""What llama.cpp's own cache says of any model, also where each KV head sees positions of its own.

Without flash attention llama.cpp computes the scores of a layer as a tensor of its own, ("kq-<layer>",
(n_head, n_tokens, n_kv)), and lets a callback look at it before the softmax: what a head is not to see
is set to minus infinity there. So no model's mathematics is written down a second time.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import llama_cpp
import numpy as np
import numpy.typing as npt
from llama_cpp import llama_cpp as bindings

from architectures.tensors import TensorHead, name_of
from headkv_local import Llama
from headkv_local.bench.contexts import stock_cache
from helpers import nmse

Logits = npt.NDArray[np.float32]
Masks = Mapping[int, npt.NDArray[np.bool_]]
"""Which prompt positions each KV head of a layer keeps, (n_head_kv, n_prompt), by the layer's number."""

# the scores, as they are and after soft-capping or a bias: masked at each step, for a tanh makes a
# number of minus infinity
_SCORES = re.compile(r"(kq|kq_scaled|kq_scaled_2|kq_plus_kq_b)-(\d+)")

_get, _set = bindings._lib.ggml_backend_tensor_get, bindings._lib.ggml_backend_tensor_set
for _copy in (_get, _set):
    _copy.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t)
    _copy.restype = None


class Stock:
    """A sequence in llama.cpp's own cache (HEADKV_DISABLE=1), on one thread of the CPU."""

    def __init__(
        self,
        path: Path,
        *,
        flash: bool = False,
        n_ctx: int = 512,
        n_ubatch: int = 64,
        swa_full: bool = False,
        scores: Scores | None = None,
    ) -> None:
        """swa_full: sliding windows get cells for the whole context, as llama.cpp chooses and Llama with a
        retention does not.
        scores: without flash attention only."""
        model_params = llama_cpp.llama_model_default_params()
        model_params.n_gpu_layers = 0
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = params.n_batch = n_ctx
        params.n_ubatch = n_ubatch
        params.swa_full = swa_full
        params.n_threads = params.n_threads_batch = 1
        params.flash_attn_type = int(flash)  # LLAMA_FLASH_ATTN_TYPE_DISABLED is 0, _ENABLED 1
        self._scores = scores
        if scores is not None:
            params.cb_eval = scores.callback
        self._model = llama_cpp.llama_model_load_from_file(os.fsencode(path), model_params)
        if not self._model:
            raise ValueError(f"llama.cpp cannot load {path}")
        with stock_cache():
            self._ctx = llama_cpp.llama_init_from_model(self._model, params)
        if not self._ctx:
            llama_cpp.llama_model_free(self._model)
            raise ValueError(f"llama.cpp makes no context for {path}")
        self._n_vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))

    def read(self, tokens: Sequence[int]) -> Logits:
        """Decode them in one batch: the logits after the last, (n_vocab,)."""
        array = (llama_cpp.llama_token * len(tokens))(*tokens)
        result = llama_cpp.llama_decode(self._ctx, llama_cpp.llama_batch_get_one(array, len(tokens)))
        if self._scores is not None and self._scores.error is not None:
            raise self._scores.error
        if result:
            raise RuntimeError(f"llama_decode returned {result}")
        return np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(self._ctx, -1), (self._n_vocab,)).copy()

    def read_each(self, tokens: Sequence[int], n_prompt: int) -> Logits:
        """The first n_prompt in one batch, the others one by one: the logits after the prompt and after
        each of the others, (1 + len(tokens) - n_prompt, n_vocab)."""
        return np.array([self.read(tokens[:n_prompt]), *(self.read([token]) for token in tokens[n_prompt:])])

    def clear(self) -> None:
        """Forget all that was read."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._ctx), True)

    def close(self) -> None:
        llama_cpp.llama_free(self._ctx)
        llama_cpp.llama_model_free(self._model)

    def __enter__(self) -> Stock:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Scores:
    """The callback that hides positions from heads. Nothing is hidden before masks are set."""

    def __init__(self) -> None:
        self.masks: Masks = {}
        self.met: set[int] = set()
        self.shapes: dict[int, tuple[int, int]] = {}
        """Of the last scores of each layer that has any: heads, and cells that they see."""
        self.seen: dict[int, list[npt.NDArray[np.float32]]] = {}
        """Of each layer in masks, before anything was hidden: (n_head, n_tokens, n_kv), by batch."""
        self.error: Exception | None = None
        self.callback = bindings.ggml_backend_sched_eval_callback(self._on_node)

    def _on_node(self, tensor: int, is_question: bool, _: object) -> bool:
        """Asked whether it wants to see a node, and then shown it: a refusal then ends the decode."""
        try:
            name = _SCORES.fullmatch(name_of(tensor))
            if not name:
                return not is_question
            layer = int(name[2])
            n_kv, _, n_head, _ = TensorHead.from_address(tensor).ne
            self.shapes[layer] = n_head, n_kv
            if layer not in self.masks:
                return not is_question
            if not is_question:
                self.met.add(layer)
                self.seen.setdefault(layer, []).append(_hide(tensor, self.masks[layer]))
            return True
        except Exception as error:  # it cannot pass through llama.cpp
            self.error = error
            return False


def full_attention_layers(path: Path) -> list[int]:
    """Those that see a whole prompt of 300 tokens, also such as share the K and V of an earlier layer."""
    scores = Scores()
    with Stock(path, scores=scores) as stock:
        stock.read([1] * 300)
    return sorted(layer for layer, (_, n_kv) in scores.shapes.items() if n_kv >= 300)


def masks_of(path: Path, llm: Llama) -> dict[int, npt.NDArray[np.bool_]]:
    """What retention_mask() says of the layers that retain, by their numbers.

    Layers that have no K and V of their own come last, and use those of the last layer that has.
    """
    found = zip(llm.cache_stats().layers, llm.retention_mask(), strict=True)
    masks = {layer.il: mask[: layer.n_head_kv] for layer, mask in found}
    last = max(masks)
    return masks | {il: masks[last] for il in full_attention_layers(path) if il > last}


def reference_logits(
    path: Path, tokens: Sequence[int], n_prompt: int, masks: Masks, *, n_ctx: int = 512, n_ubatch: int = 64
) -> Logits:
    """What a cache says that was compacted after the prompt, without flash attention.

    The prompt, tokens[:n_prompt], is read with the attention of the model. The others are decoded one by
    one: a KV head of a layer in masks sees the prompt positions that it keeps, and all after the prompt. A
    layer that is not in masks is left as it is. Returns what Stock.read_each() does; ValueError where a
    layer has no scores to hide or other heads than its mask.

    A layer that shares the K and V of an earlier one (gemma4, gemma3n) needs a mask as well: masks_of().
    """
    scores = Scores()
    with Stock(path, n_ctx=n_ctx, n_ubatch=n_ubatch, scores=scores) as stock:
        rows = [stock.read(tokens[:n_prompt])]
        scores.masks = masks
        rows += [stock.read([token]) for token in tokens[n_prompt:]]
    if len(tokens) > n_prompt and scores.met != set(masks):
        raise ValueError(f"layers without scores: {sorted(set(masks) - scores.met)}")
    return np.array(rows)


def attention_after(
    path: Path, tokens: Sequence[int], n_prompt: int, masks: Masks, scale: float
) -> dict[int, npt.NDArray[np.float64]]:
    """What tokens[n_prompt:] would pay to all positions of the prompt, though they see what masks leave.

    (n_head, n_later, n_prompt) of each layer in masks: the softmax over the prompt of what their queries
    and its keys give, times `scale`.
    """
    scores = Scores()
    with Stock(path, scores=scores) as stock:
        stock.read(tokens[:n_prompt])
        scores.masks = masks
        for token in tokens[n_prompt:]:
            stock.read([token])
    found = {}
    for layer, rows in scores.seen.items():
        logits = scale * np.concatenate(rows, axis=1)[..., :n_prompt].astype(np.float64)
        powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
        found[layer] = powers / powers.sum(axis=-1, keepdims=True)
    return found


def stock_distance(path: Path, tokens: Sequence[int], n_prompt: int, *, n_ctx: int = 512) -> float:
    """How far llama.cpp's own two ways of attention are from each other: the NMSE of the logits of
    Stock.read_each() with flash attention against those without."""
    with Stock(path, flash=True, n_ctx=n_ctx) as flash, Stock(path, n_ctx=n_ctx) as plain:
        return nmse(flash.read_each(tokens, n_prompt), plain.read_each(tokens, n_prompt))


def _hide(tensor: int, mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    """Of scores (1, n_head, n_tokens, n_kv): position i of the prompt is in cell i. Returns the former."""
    head = TensorHead.from_address(tensor)
    values = np.empty(tuple(reversed(head.ne)), dtype=np.float32)
    n_stream, n_head, _, n_kv = values.shape
    n_head_kv, n_prompt = mask.shape
    if n_stream != 1 or n_head % n_head_kv or n_prompt > n_kv:
        raise ValueError(f"scores {values.shape} do not fit a mask {mask.shape}")
    _get(tensor, values.ctypes.data, 0, values.nbytes)
    before = values[0].copy()
    grouped = values.reshape(n_head_kv, n_head // n_head_kv, -1, n_kv)
    grouped[..., :n_prompt][np.broadcast_to(~mask[:, None, None], (*grouped.shape[:3], n_prompt))] = -np.inf
    _set(tensor, values.ctypes.data, 0, values.nbytes)
    return before
