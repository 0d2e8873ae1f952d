"""GGUF files put together byte by byte, so that nothing keeps them from being wrong."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

U8, I8, U16, I16, U32, I32, F32, BOOL, STR, ARR, U64, I64, F64 = range(13)
TYPES = {
    U8: ("u8", "B"),
    I8: ("i8", "b"),
    U16: ("u16", "H"),
    I16: ("i16", "h"),
    U32: ("u32", "I"),
    I32: ("i32", "i"),
    F32: ("f32", "f"),
    BOOL: ("bool", "B"),
    STR: ("str", ""),
    U64: ("u64", "Q"),
    I64: ("i64", "q"),
    F64: ("f64", "d"),
}

LAYERS, HEADS, KV_HEADS = 2, 4, 2
SHARES = [0, 0.25, 1]
"""Of curves."""


def u32(x: int) -> bytes:
    return struct.pack("<I", x)


def u64(x: int) -> bytes:
    return struct.pack("<Q", x)


def text(x: str | bytes) -> bytes:
    content = x.encode() if isinstance(x, str) else x
    return u64(len(content)) + content


def scalar(kind: int, x: float | str | bytes) -> bytes:
    """Type and value."""
    if isinstance(x, str | bytes):
        return u32(kind) + text(x)
    return u32(kind) + struct.pack("<" + TYPES[kind][1], x)


def array(kind: int, values: list[float] | list[str]) -> bytes:
    items = (scalar(kind, x)[4:] for x in values)
    return u32(ARR) + u32(kind) + u64(len(values)) + b"".join(items)


@dataclass
class Tensor:
    name: str | bytes = "a.weight"
    shape: tuple[int, ...] = (32, 2)
    kind: int = 0  # f32
    offset: int = 0

    def info(self) -> bytes:
        dims = b"".join(struct.pack("<q", n) for n in self.shape)
        return text(self.name) + u32(len(self.shape)) + dims + u32(self.kind) + u64(self.offset)


@dataclass
class File:
    """keys: (name, type and value), in order."""

    keys: list[tuple[str | bytes, bytes]]
    tensors: list[Tensor] = field(default_factory=list)
    data: bytes = b""
    magic: bytes = b"GGUF"
    version: int = 3
    n_keys: int | None = None
    n_tensors: int | None = None

    def sections(self) -> Iterator[tuple[str, bytes]]:
        """The parts of the file, each with a name."""
        size = 0
        for name, part in self._metadata():
            size += len(part)
            yield name, part
        if self.tensors:
            yield "padding", bytes(-size % 32)
            yield "data", self.data

    def _metadata(self) -> Iterator[tuple[str, bytes]]:
        yield "magic", self.magic
        yield "version", u32(self.version)
        yield "tensor count", u64(len(self.tensors) if self.n_tensors is None else self.n_tensors)
        yield "key count", u64(len(self.keys) if self.n_keys is None else self.n_keys)
        for key, value in self.keys:
            shown = key if isinstance(key, str) else repr(key)
            yield f"name of {shown}", text(key)
            yield f"type of {shown}", value[:4]
            yield f"value of {shown}", value[4:]
        for tensor in self.tensors:
            yield f"info of {tensor.name!r}", tensor.info()

    def content(self) -> bytes:
        return b"".join(part for _, part in self.sections())


def sidecar() -> File:
    """A good one, with every key that there is."""
    return File(
        [
            ("general.architecture", scalar(STR, "headkv")),
            ("headkv.version", scalar(U32, 1)),
            ("headkv.method", scalar(STR, "r2")),
            ("headkv.block_count", scalar(U32, LAYERS)),
            ("headkv.head_count", scalar(U32, HEADS)),
            ("headkv.head_count_kv", scalar(U32, KV_HEADS)),
            ("headkv.scores", array(F32, [i / 8 for i in range(LAYERS * HEADS)])),
            ("headkv.curve.shares", array(F32, SHARES)),
            ("headkv.curve.losses", array(F32, [-i / 8 for i in range(LAYERS * KV_HEADS * len(SHARES))])),
            ("headkv.beta", scalar(F32, 1.5)),
            ("headkv.window", scalar(U32, 8)),
            ("headkv.kernel", scalar(U32, 13)),
            ("headkv.sinks", scalar(U32, 4)),
            ("headkv.source.model", scalar(STR, "tiny \u20ac")),
            ("headkv.source.seed", scalar(U32, 7)),
        ]
    )


def model() -> File:
    """A good one that carries scores; its two tensors are all it has of a model."""
    file = sidecar()
    file.keys.append(("tokenizer.ggml.tokens", array(STR, ["a", "", "longer than sixteen bytes"])))
    file.tensors = [Tensor("a.weight"), Tensor("b.weight", offset=256)]
    file.data = bytes(range(256)) * 2
    return file


def changed(key: str, value: bytes | None) -> File:
    """The good sidecar with another value, or without the key."""
    file = sidecar()
    at = [name for name, _ in file.keys].index(key)
    file.keys[at : at + 1] = [] if value is None else [(key, value)]
    return file


def added(key: str | bytes, value: bytes) -> File:
    file = sidecar()
    file.keys.append((key, value))
    return file


def with_tensor(**fields: object) -> File:
    file = model()
    file.tensors = [Tensor(**fields)]  # type: ignore[arg-type]
    return file


def patched(file: File, **fields: object) -> File:
    for name, value in fields.items():
        setattr(file, name, value)
    return file


def swapped(make: Callable[[], File]) -> bytes:
    """The header of the other byte order, which is as far as anybody reads."""
    content = make().content()
    return content[:4] + content[7:3:-1] + content[15:7:-1] + content[23:15:-1] + content[24:]


class Case(NamedTuple):
    name: str
    content: bytes
    code: str
    """HEADKV_ERR_..., without that."""
    says: str
    """A regular expression."""


def case_of(name: str, file: File | bytes, code: str, says: str) -> Case:
    return Case(name, file if isinstance(file, bytes) else file.content(), code, says)
