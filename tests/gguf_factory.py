"""Tiny random GGUF models, so that the tests need no download.

The weights are noise, scaled so that attention is not flat and the logits are not close to each other:
what a model says is meaningless, but it depends on every entry of its KV cache. The vocabulary is
byte-level, so any text can be tokenized, and comes with a ChatML template.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% endif %}"
)
_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_MERGED = ("th", "in", "er", "an", "on", "at", "ou", "st", "en", "he", "\u0120t", "\u0120a", "\u0120s", "the")

Matrix = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class TinyModel:
    """What a tiny model looks like. arch: one of ARCHITECTURES."""

    arch: str = "llama"
    n_layer: int = 2
    n_head: int = 4
    n_head_kv: int = 2
    head_dim: int = 64
    n_ff: int = 128
    n_ctx_train: int = 8192
    seed: int = 1
    chat_template: str = CHATML

    @property
    def n_embd(self) -> int:
        return self.n_head * self.head_dim

    def write(self, path: Path, split_max_tensors: int = 0) -> Path:
        """Make the GGUF file, or as many as it takes: "a-00001-of-00003.gguf" and so on for "a.gguf"."""
        writer = gguf.GGUFWriter(path, self.arch, split_max_tensors=split_max_tensors)
        writer.add_name("tiny")
        writer.add_context_length(self.n_ctx_train)
        writer.add_embedding_length(self.n_embd)
        writer.add_block_count(self.n_layer)
        n_vocab = _add_vocabulary(writer, self.chat_template)
        weights = _Weights(writer, np.random.default_rng(self.seed))
        weights.add("token_embd.weight", n_vocab, self.n_embd)
        if self.arch != "gemma2":  # whose output matrix is always that of the embeddings
            weights.add("output.weight", n_vocab, self.n_embd, gain=4.0)
        weights.norm("output_norm.weight", self.n_embd)
        ARCHITECTURES[self.arch](self, writer, weights)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path


class _Weights:
    def __init__(self, writer: gguf.GGUFWriter, rng: np.random.Generator) -> None:
        self._writer, self._rng = writer, rng

    def add(self, name: str, *shape: int, gain: float = 1.0) -> None:
        """Noise of a standard deviation that keeps the scale of what the matrix is applied to."""
        values: Matrix = self._rng.standard_normal(shape, dtype=np.float32)
        self._writer.add_tensor(name, values * np.float32(gain / np.sqrt(shape[-1])))

    def norm(self, name: str, n: int) -> None:
        values: Matrix = 1 + self._rng.standard_normal(n, dtype=np.float32) / 10
        self._writer.add_tensor(name, values)

    def values(self, name: str, values: Matrix) -> None:
        self._writer.add_tensor(name, values.astype(np.float32))


def _add_vocabulary(writer: gguf.GGUFWriter, chat_template: str) -> int:
    """GPT-2's alphabet of 256 bytes, a few merges, and the special tokens of ChatML."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    tokens = [*(alphabet[byte] for byte in range(256)), *_MERGED, *_SPECIAL]
    normal, control = gguf.TokenType.NORMAL, gguf.TokenType.CONTROL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([normal] * (len(tokens) - len(_SPECIAL)) + [control] * len(_SPECIAL))
    writer.add_token_merges([f"{token[:-1]} {token[-1]}" for token in _MERGED])
    writer.add_bos_token_id(tokens.index("<|endoftext|>"))
    writer.add_eos_token_id(tokens.index("<|im_end|>"))
    writer.add_add_bos_token(False)
    if chat_template:
        writer.add_chat_template(chat_template)
    return len(tokens)


def _heads(model: TinyModel, writer: gguf.GGUFWriter) -> None:
    writer.add_head_count(model.n_head)
    writer.add_head_count_kv(model.n_head_kv)
    writer.add_feed_forward_length(model.n_ff)
    writer.add_layer_norm_rms_eps(1e-5)


def _attention(model: TinyModel, weights: _Weights, blk: str) -> None:
    n_embd, n_kv = model.n_embd, model.n_head_kv * model.head_dim
    weights.norm(f"{blk}.attn_norm.weight", n_embd)
    weights.add(f"{blk}.attn_q.weight", n_embd, n_embd, gain=1.5)
    weights.add(f"{blk}.attn_k.weight", n_kv, n_embd, gain=1.5)
    weights.add(f"{blk}.attn_v.weight", n_kv, n_embd)
    weights.add(f"{blk}.attn_output.weight", n_embd, n_embd, gain=2.0)


def _gated_ffn(model: TinyModel, weights: _Weights, blk: str) -> None:
    weights.norm(f"{blk}.ffn_norm.weight", model.n_embd)
    weights.add(f"{blk}.ffn_gate.weight", model.n_ff, model.n_embd)
    weights.add(f"{blk}.ffn_up.weight", model.n_ff, model.n_embd)
    weights.add(f"{blk}.ffn_down.weight", model.n_embd, model.n_ff)


def _llama(model: TinyModel, writer: gguf.GGUFWriter, weights: _Weights) -> None:
    _heads(model, writer)
    writer.add_rope_dimension_count(model.head_dim)
    for il in range(model.n_layer):
        _attention(model, weights, f"blk.{il}")
        _gated_ffn(model, weights, f"blk.{il}")


def _qwen2(model: TinyModel, writer: gguf.GGUFWriter, weights: _Weights) -> None:
    _llama(model, writer, weights)
    n_kv = model.n_head_kv * model.head_dim
    for il in range(model.n_layer):
        for name, size in (("q", model.n_embd), ("k", n_kv), ("v", n_kv)):
            weights.values(f"blk.{il}.attn_{name}.bias", np.linspace(-0.5, 0.5, size, dtype=np.float32))


def _qwen3(model: TinyModel, writer: gguf.GGUFWriter, weights: _Weights) -> None:
    _llama(model, writer, weights)
    writer.add_key_length(model.head_dim)
    writer.add_value_length(model.head_dim)
    for il in range(model.n_layer):
        weights.norm(f"blk.{il}.attn_q_norm.weight", model.head_dim)
        weights.norm(f"blk.{il}.attn_k_norm.weight", model.head_dim)


def _phi3(model: TinyModel, writer: gguf.GGUFWriter, weights: _Weights) -> None:
    """Q, K and V in one matrix, gate and up in another."""
    _heads(model, writer)
    writer.add_rope_dimension_count(model.head_dim)
    n_qkv = (model.n_head + 2 * model.n_head_kv) * model.head_dim
    for il in range(model.n_layer):
        blk = f"blk.{il}"
        weights.norm(f"{blk}.attn_norm.weight", model.n_embd)
        weights.add(f"{blk}.attn_qkv.weight", n_qkv, model.n_embd, gain=1.5)
        weights.add(f"{blk}.attn_output.weight", model.n_embd, model.n_embd, gain=2.0)
        weights.norm(f"{blk}.ffn_norm.weight", model.n_embd)
        weights.add(f"{blk}.ffn_up.weight", 2 * model.n_ff, model.n_embd)
        weights.add(f"{blk}.ffn_down.weight", model.n_embd, model.n_ff)


def _gemma2(model: TinyModel, writer: gguf.GGUFWriter, weights: _Weights) -> None:
    """Every other layer has a sliding window."""
    _llama(model, writer, weights)
    writer.add_sliding_window(64)
    writer.add_key_length(model.head_dim)
    writer.add_value_length(model.head_dim)
    writer.add_attn_logit_softcapping(50.0)
    writer.add_final_logit_softcapping(30.0)
    for il in range(model.n_layer):
        weights.norm(f"blk.{il}.post_attention_norm.weight", model.n_embd)
        weights.norm(f"blk.{il}.post_ffw_norm.weight", model.n_embd)


def _mpt(model: TinyModel, writer: gguf.GGUFWriter, weights: _Weights) -> None:
    """ALiBi instead of RoPE, multi-head only."""
    _heads(model, writer)
    writer.add_layer_norm_eps(1e-5)
    writer.add_max_alibi_bias(8.0)
    for il in range(model.n_layer):
        blk = f"blk.{il}"
        weights.norm(f"{blk}.attn_norm.weight", model.n_embd)
        weights.add(f"{blk}.attn_qkv.weight", 3 * model.n_embd, model.n_embd)
        weights.add(f"{blk}.attn_output.weight", model.n_embd, model.n_embd)
        weights.norm(f"{blk}.ffn_norm.weight", model.n_embd)
        weights.add(f"{blk}.ffn_up.weight", model.n_ff, model.n_embd)
        weights.add(f"{blk}.ffn_down.weight", model.n_embd, model.n_ff)


def _deepseek2(model: TinyModel, writer: gguf.GGUFWriter, weights: _Weights) -> None:
    """MLA: one compressed row per token serves as K and V of all heads."""
    rank, n_rope, n_embd = 64, 32, model.n_embd
    _heads(model, writer)
    writer.add_rope_dimension_count(n_rope)
    writer.add_key_length(rank + n_rope)
    writer.add_value_length(rank)
    writer.add_key_length_mla(model.head_dim)
    writer.add_value_length_mla(model.head_dim)
    writer.add_q_lora_rank(rank)
    writer.add_kv_lora_rank(rank)
    writer.add_leading_dense_block_count(model.n_layer)
    writer.add_expert_feed_forward_length(model.n_ff)
    writer.add_expert_shared_count(1)
    for il in range(model.n_layer):
        blk = f"blk.{il}"
        weights.norm(f"{blk}.attn_norm.weight", n_embd)
        weights.norm(f"{blk}.attn_q_a_norm.weight", rank)
        weights.norm(f"{blk}.attn_kv_a_norm.weight", rank)
        weights.add(f"{blk}.attn_q_a.weight", rank, n_embd)
        weights.add(f"{blk}.attn_q_b.weight", model.n_head * model.head_dim, rank)
        weights.add(f"{blk}.attn_kv_a_mqa.weight", rank + n_rope, n_embd)
        weights.add(f"{blk}.attn_k_b.weight", model.n_head, rank, model.head_dim - n_rope)
        weights.add(f"{blk}.attn_v_b.weight", model.n_head, model.head_dim, rank)
        weights.add(f"{blk}.attn_output.weight", n_embd, n_embd)
        _gated_ffn(model, weights, blk)


def _mamba(model: TinyModel, writer: gguf.GGUFWriter, weights: _Weights) -> None:
    """Recurrent: no KV cache at all."""
    n_embd, n_inner, n_conv, n_state, rank = model.n_embd, 2 * model.n_embd, 4, 16, 16
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    writer.add_ssm_conv_kernel(n_conv)
    writer.add_ssm_inner_size(n_inner)
    writer.add_ssm_state_size(n_state)
    writer.add_ssm_time_step_rank(rank)
    writer.add_layer_norm_rms_eps(1e-5)
    for il in range(model.n_layer):
        blk = f"blk.{il}"
        weights.norm(f"{blk}.attn_norm.weight", n_embd)
        weights.add(f"{blk}.ssm_in.weight", 2 * n_inner, n_embd)
        weights.add(f"{blk}.ssm_conv1d.weight", n_inner, n_conv)
        weights.norm(f"{blk}.ssm_conv1d.bias", n_inner)
        weights.add(f"{blk}.ssm_x.weight", rank + 2 * n_state, n_inner)
        weights.add(f"{blk}.ssm_dt.weight", n_inner, rank)
        weights.norm(f"{blk}.ssm_dt.bias", n_inner)
        weights.values(f"{blk}.ssm_a", -np.tile(np.arange(1, n_state + 1, dtype=np.float32), (n_inner, 1)))
        weights.norm(f"{blk}.ssm_d", n_inner)
        weights.add(f"{blk}.ssm_out.weight", n_embd, n_inner)


ARCHITECTURES: dict[str, Callable[[TinyModel, gguf.GGUFWriter, _Weights], None]] = {
    "llama": _llama,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "phi3": _phi3,
    "gemma2": _gemma2,
    "mpt": _mpt,
    "deepseek2": _deepseek2,
    "mamba": _mamba,
}
