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


@dataclass
class Session:
    header: dict[str, Any]
    sections: list[tuple[bytes, bytes]]
    version: int = 1

    @classmethod
    def of(cls, data: bytes) -> Session:
        assert data[:16] == MAGIC
        version, n_header = struct.unpack_from("<II", data, 16)
        header, at = json.loads(data[24 : 24 + n_header]), 28 + n_header
        sections = []
        while at < len(data):
            name, n = struct.unpack_from("<8sQ", data, at)
            sections.append((name.rstrip(b"\0"), data[at + 16 : at + 16 + n]))
            at += 16 + n + 4
        return cls(header, sections, version)

    def to_bytes(self, text: bytes | None = None) -> bytes:
        """text: the header's, if not what JSON makes of it."""
        text = json.dumps(self.header).encode() if text is None else text
        data = _sealed(MAGIC + struct.pack("<II", self.version, len(text)) + text)
        return data + b"".join(_sealed(struct.pack("<8sQ", name, len(x)) + x) for name, x in self.sections)

    def change(self, name: bytes, change: Callable[[bytes], bytes]) -> Session:
        return Session(self.header, [(n, change(x) if n == name else x) for n, x in self.sections])


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
