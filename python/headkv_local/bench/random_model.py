"""Models of known shapes with random weights: the speed does not depend on what the weights say.

`random:llama-3-8b` in the place of a file name makes such a GGUF, in seconds: the quantized blocks are valid
and random, of a scale that keeps activations finite. The vocabulary is bytes only, so the first and the last
matrix are small, and a real model of that shape decodes a little slower.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import gguf
import numpy as np
import numpy.typing as npt

from headkv_local import ArgumentError
from headkv_local.wording import size

PREFIX: Final = "random:"
_TILE = 1 << 22  # bytes of random blocks, repeated to fill a matrix


@dataclass(frozen=True, kw_only=True)
class Shape:
    arch: str
    n_layer: int
    n_head: int
    n_head_kv: int
    head_dim: int
    n_embd: int
    n_ff: int
    rope_base: float
    n_ctx: int = 131072 + 1024

    def matrices(self) -> Iterator[tuple[str, int, int]]:
        """Name, outputs and inputs of every matrix of a layer."""
        n_q, n_kv = self.n_head * self.head_dim, self.n_head_kv * self.head_dim
        yield from (
            ("attn_q", n_q, self.n_embd),
            ("attn_k", n_kv, self.n_embd),
            ("attn_v", n_kv, self.n_embd),
        )
        yield from (("attn_output", self.n_embd, n_q), ("ffn_gate", self.n_ff, self.n_embd))
        yield from (("ffn_up", self.n_ff, self.n_embd), ("ffn_down", self.n_embd, self.n_ff))


SHAPES: Final = {
    "llama-3-8b": Shape(
        arch="llama",
        n_layer=32,
        n_head=32,
        n_head_kv=8,
        head_dim=128,
        n_embd=4096,
        n_ff=14336,
        rope_base=500000.0,
    ),
    "qwen2.5-7b": Shape(
        arch="qwen2",
        n_layer=28,
        n_head=28,
        n_head_kv=4,
        head_dim=128,
        n_embd=3584,
        n_ff=18944,
        rope_base=1000000.0,
    ),
    "much-cache": Shape(
        arch="llama", n_layer=24, n_head=8, n_head_kv=8, head_dim=64, n_embd=512, n_ff=512, rope_base=10000.0
    ),
    "tiny": Shape(
        arch="llama", n_layer=2, n_head=4, n_head_kv=2, head_dim=64, n_embd=256, n_ff=512, rope_base=10000.0
    ),
}
QUANTS: Final = {"q4_k": gguf.GGMLQuantizationType.Q4_K, "q8_0": gguf.GGMLQuantizationType.Q8_0}


def parse(name: str) -> tuple[Shape, gguf.GGMLQuantizationType]:
    """Of "random:SHAPE" or "random:SHAPE:QUANT". Raises ArgumentError with the names that there are."""
    shape, _, quant = name.removeprefix(PREFIX).partition(":")
    quant = quant or "q4_k"
    if shape not in SHAPES or quant not in QUANTS:
        raise ArgumentError(
            f"there is no model {name!r}: random:SHAPE with a SHAPE of {', '.join(SHAPES)}, and behind it "
            f":QUANT with one of {', '.join(QUANTS)}"
        )
    return SHAPES[shape], QUANTS[quant]


@contextmanager
def opened(name: str, keep_in: Path | None = None) -> Iterator[str]:
    """The path of the model that a name stands for: the name itself unless it is a random one.

    A random model lives in a temporary folder until the context is left, or is kept in the folder `keep_in`,
    and found there the next time. Raises ArgumentError for an unknown name, OSError where there is no room.
    """
    if not name.startswith(PREFIX):
        yield name
        return
    shape, quant = parse(name)
    with tempfile.TemporaryDirectory(prefix="headkv-random-") as folder:
        path = (keep_in or Path(folder)) / (name.replace(":", "-") + ".gguf")
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            unfinished = path.with_suffix(".part")
            try:
                write(shape, quant, unfinished)
                unfinished.rename(path)
            finally:
                unfinished.unlink(missing_ok=True)
        yield str(path)


def write(shape: Shape, quant: gguf.GGMLQuantizationType, path: Path) -> None:
    """Make the GGUF, one matrix at a time."""
    writer = gguf.GGUFWriter(path, shape.arch)
    writer.add_name("random")
    writer.add_context_length(shape.n_ctx)
    writer.add_embedding_length(shape.n_embd)
    writer.add_block_count(shape.n_layer)
    writer.add_feed_forward_length(shape.n_ff)
    writer.add_head_count(shape.n_head)
    writer.add_head_count_kv(shape.n_head_kv)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(shape.rope_base)
    n_vocab = _add_bytes(writer)

    matrices = {"token_embd.weight": (n_vocab, shape.n_embd), "output.weight": (n_vocab, shape.n_embd)}
    vectors = {"output_norm.weight": np.ones(shape.n_embd, dtype=np.float32)}
    for il in range(shape.n_layer):
        for name, n_out, n_in in shape.matrices():
            matrices[f"blk.{il}.{name}.weight"] = n_out, n_in
            if shape.arch == "qwen2" and name in ("attn_q", "attn_k", "attn_v"):
                vectors[f"blk.{il}.{name}.bias"] = np.linspace(-0.5, 0.5, n_out, dtype=np.float32)
        for name in ("attn_norm", "ffn_norm"):
            vectors[f"blk.{il}.{name}.weight"] = np.ones(shape.n_embd, dtype=np.float32)

    n_per_block, block_bytes = gguf.GGML_QUANT_SIZES[quant]
    for name, (n_out, n_in) in matrices.items():
        row = n_in // n_per_block * block_bytes
        writer.add_tensor_info(name, (n_out, row), np.dtype(np.uint8), n_out * row, quant)
    for name, values in vectors.items():
        writer.add_tensor_info(name, values.shape, values.dtype, values.nbytes)
    _require_room(path.parent, sum(info.nbytes for infos in writer.tensors for info in infos.values()))

    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    tiles = {n_in: _tile(quant, n_in) for n_in in {n_in for _, n_in in matrices.values()}}
    for n_out, n_in in matrices.values():
        writer.write_tensor_data(np.resize(tiles[n_in], n_out * (n_in // n_per_block) * block_bytes))
    for values in vectors.values():
        writer.write_tensor_data(values)
    writer.close()


def _tile(quant: gguf.GGMLQuantizationType, n_in: int) -> npt.NDArray[np.uint8]:
    """Random blocks whose values have the standard deviation 1/sqrt(n_in) and a mean of about zero."""
    rng = np.random.default_rng(n_in)
    _, size = gguf.GGML_QUANT_SIZES[quant]
    blocks = rng.integers(0, 256, (_TILE // size, size), dtype=np.uint8)
    if quant == gguf.GGMLQuantizationType.Q4_K:
        # d, dmin, then 6-bit scales s and m, then 4-bit q: d*s*q - dmin*m, where q is 7.5 on average
        d = 1 / (200 * np.sqrt(n_in))
        blocks[:, :4] = np.array([d, 7.5 * d], dtype=np.float16).view(np.uint8)
    else:
        blocks[:, :2] = np.array([1 / (74 * np.sqrt(n_in))], dtype=np.float16).view(np.uint8)
    return blocks.reshape(-1)


def _add_bytes(writer: gguf.GGUFWriter) -> int:
    """A vocabulary of GPT-2's alphabet for the 256 bytes, and one token that ends."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    tokens = [*(letters[byte] for byte in range(256)), "<|end|>"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.NORMAL] * 256 + [gguf.TokenType.CONTROL])
    writer.add_token_merges(["t h"])  # a list must be there; "th" is no token, so it merges nothing
    writer.add_eos_token_id(256)
    writer.add_add_bos_token(False)
    return len(tokens)


def _require_room(folder: Path, n_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if n_bytes > free - (1 << 28):
        raise OSError(
            f"the model takes {size(n_bytes)}, and {folder} has {size(free)} free: "
            "let TMPDIR name a folder with more"
        )
