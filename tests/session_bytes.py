"""Session files taken apart and put together again, with right checksums whatever they say."""

from __future__ import annotations

import json
import random
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

MAGIC = b"headkv session\n\0"
_ODD_WORDS = (0, 1, 2, 63, 64, 255, 256, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFFFFE, 0x7E00FC00)
_ODD_VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1,
    2**31,
    2**63,
    10**400,
    1e300,
    "",
    "x",
    [],
    {},
    [[1]],
    {"a": 1},
)


_ABOUT = (
    "n_tokens",
    "n_prompt",
    "n_archived",
    "n_ctx",
    "n_batch",
    "n_ubatch",
    "type_k",
    "type_v",
)  # uint32 each


@dataclass
class Session:
    header: dict[str, Any]
    """Of the section of that name, in which to_bytes() puts it."""
    sections: list[tuple[bytes, bytes]]
    version: int = 3

    @classmethod
    def of(cls, data: bytes) -> Session:
        assert data[:16] == MAGIC
        version, at, sections = struct.unpack_from("<I", data, 16)[0], 20, []
        while at < len(data):
            name, n = struct.unpack_from("<8sQ", data, at)
            sections.append((name.rstrip(b"\0"), data[at + 16 : at + 16 + n]))
            at += 16 + n + 4
        return cls(json.loads(dict(sections).get(b"header", b"{}")), sections, version)

    def to_bytes(self, text: bytes | None = None) -> bytes:
        """text: the header's, if not what JSON makes of it."""
        text = json.dumps(self.header).encode() if text is None else text
        data = [MAGIC + struct.pack("<I", self.version)]
        for name, held in self.sections:
            x = text if name == b"header" else held
            data.append(_sealed(struct.pack("<8sQ", name, len(x)) + x))
        return b"".join(data)

    def change(self, name: bytes, change: Callable[[bytes], bytes]) -> Session:
        return Session(self.header, [(n, change(x) if n == name else x) for n, x in self.sections])

    def saying(self, **about: int) -> Session:
        """With other numbers in the section about."""

        def change(data: bytes) -> bytes:
            changed = bytearray(data)
            for name, value in about.items():
                struct.pack_into("<I", changed, 4 * _ABOUT.index(name), value)
            return bytes(changed)

        return self.change(b"about", change)


def mutant(good: bytes, rng: random.Random) -> bytes:
    """Bytes flipped or cut; or with right checksums: words, lengths, sections and the header's values."""
    kind = rng.randrange(8)
    if kind == 0:
        at = rng.randrange(len(good))
        return good[:at] + bytes([good[at] ^ 1 << rng.randrange(8)]) + good[at + 1 :]
    if kind == 1:
        return good[: rng.randrange(len(good))]
    session = Session.of(good)
    if kind == 2:
        _change_header(session.header, rng)
        return session.to_bytes()
    i = rng.randrange(len(session.sections))
    name, data = session.sections[i]
    if kind == 3:
        session.sections[i : i + 1] = rng.choice(([], [(name, data)] * 2, [(b"other", data)], [(name, b"")]))
    elif kind == 4:
        session.sections[i] = name, data[: rng.randrange(len(data) + 1)] + bytes(rng.choice((0, 0, 4, 64)))
    else:  # most words that mean something stand at the beginning
        changed = bytearray(data)
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(min(len(data) - 3, rng.choice((64, 4096, len(data))))) // 4 * 4
            struct.pack_into(
                "<I", changed, at, rng.choice(_ODD_WORDS) if rng.random() < 0.8 else rng.getrandbits(32)
            )
        session.sections[i] = name, bytes(changed)
    return session.to_bytes()


def _change_header(header: Any, rng: random.Random) -> None:
    key = rng.choice(list(header) if isinstance(header, dict) else range(len(header)))
    inner = header[key]
    if isinstance(inner, dict | list) and inner and rng.random() < 0.8:
        _change_header(inner, rng)
    elif rng.random() < 0.2 and isinstance(header, dict):
        del header[key]
    else:
        header[key] = rng.choice(_ODD_VALUES)


def _sealed(data: bytes) -> bytes:
    return data + struct.pack("<I", zlib.crc32(data))
