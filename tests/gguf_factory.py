"""Tiny random GGUF models, so that the tests need no download.

The weights are noise, scaled so that attention is not flat and the logits are not close to each other:
what a model says is meaningless, but it depends on every entry of its KV cache. The vocabulary is
byte-level, so any text can be tokenized, and comes with a ChatML template. What differs from one
architecture to the next is in architectures/.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np

from architectures import FAMILIES, add_keys, common_keys, fused, tensors_of, values_of

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% endif %}"
)
_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_MERGED = ("th", "in", "er", "an", "on", "at", "ou", "st", "en", "he", "\u0120t", "\u0120a", "\u0120s", "the")


@dataclass(frozen=True, kw_only=True)
class TinyModel:
    """What a tiny model looks like.

    arch: one of FAMILIES. n_layer: None for the least that shows all kinds of layers of the architecture.
    head_dim: of layers with full attention. width: of what goes from layer to layer; None for what all
    heads have together. window: tokens of the sliding window, where there is one; 0
    takes it away where the architecture can do without.
    """

    arch: str = "llama"
    n_layer: int | None = None
    n_head: int = 4
    n_head_kv: int = 2
    head_dim: int = 64
    width: int | None = None
    n_ff: int = 128
    n_ctx_train: int = 8192
    window: int = 64
    seed: int = 35  # tests want answers of the default model that are neither empty nor endless
    chat_template: str = CHATML

    @property
    def layers(self) -> int:
        return FAMILIES[self.arch].n_layer if self.n_layer is None else self.n_layer

    @property
    def n_embd(self) -> int:
        return self.width or self.n_head * self.head_dim

    def write(self, path: Path, split_max_tensors: int = 0) -> Path:
        """Make the GGUF file, or as many as it takes: "a-00001-of-00003.gguf" and so on for "a.gguf"."""
        family = FAMILIES[self.arch]
        arch = family.arch or self.arch
        tensors = tensors_of(arch, self._add_metadata) if family.loads else {}
        writer = gguf.GGUFWriter(path, arch, split_max_tensors=split_max_tensors)
        self._add_metadata(writer)
        tensors = {name: shape for name, shape in tensors.items() if not re.search(family.without, name)}
        for name, shape in (fused(tensors) if family.fused else tensors).items():
            writer.add_tensor(name, values_of(name, shape, self.seed, family.rules))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    def _add_metadata(self, writer: gguf.GGUFWriter) -> None:
        writer.add_name("tiny")
        add_keys(writer, writer.arch, common_keys(self) | FAMILIES[self.arch].keys(self))
        _add_vocabulary(writer, self.chat_template, FAMILIES[self.arch].n_vocab)


def write_adapter(path: Path, seed: int) -> Path:
    """Of the tiny model with all defaults: it changes what K is."""
    writer, rng = gguf.GGUFWriter(path, "llama"), np.random.default_rng(seed)
    writer.add_string("general.type", "adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 4.0)
    model = TinyModel()
    for il in range(model.layers):
        for name, shape in (("a", (4, model.n_embd)), ("b", (model.n_head_kv * model.head_dim, 4))):
            values = rng.normal(scale=0.1, size=shape).astype(np.float32)
            writer.add_tensor(f"blk.{il}.attn_k.weight.lora_{name}", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_vocabulary(writer: gguf.GGUFWriter, chat_template: str, n_least: int) -> None:
    """GPT-2's alphabet of 256 bytes, a few merges, the special tokens of ChatML, and what n_least lacks."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    tokens = [*(alphabet[byte] for byte in range(256)), *_MERGED, *_SPECIAL]
    normal, control = gguf.TokenType.NORMAL, gguf.TokenType.CONTROL
    types = [normal] * (len(tokens) - len(_SPECIAL)) + [control] * len(_SPECIAL)
    more = [f"<{i}>" for i in range(len(tokens), n_least)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens + more)
    writer.add_token_types(types + [normal] * len(more))
    writer.add_token_merges([f"{token[:-1]} {token[-1]}" for token in _MERGED])
    writer.add_bos_token_id(tokens.index("<|endoftext|>"))
    writer.add_eos_token_id(tokens.index("<|im_end|>"))
    writer.add_add_bos_token(False)
    if chat_template:
        writer.add_chat_template(chat_template)
