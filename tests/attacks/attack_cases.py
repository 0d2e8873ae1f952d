"""Every hostile file: what is in it, the error code of headkv.h that it must give, and what the text says."""

from __future__ import annotations

import math
from collections.abc import Iterator

from file_cases import containers, keys, tensors, truncated
from hostile_gguf import (
    F32,
    F64,
    HEADS,
    I8,
    I32,
    KV_HEADS,
    LAYERS,
    SHARES,
    STR,
    TYPES,
    U8,
    U32,
    U64,
    Case,
    File,
    added,
    array,
    case_of,
    changed,
    scalar,
    sidecar,
)

N = LAYERS * HEADS


def cases() -> list[Case]:
    groups = (
        _types,
        _missing,
        _lengths,
        _values,
        _layers,
        _curves,
        _texts,
        containers,
        keys,
        tensors,
        truncated,
    )
    return [case for group in groups for case in group()]


REQUIRED = {
    "headkv.version": U32,
    "headkv.method": STR,
    "headkv.block_count": U32,
    "headkv.head_count": U32,
    "headkv.head_count_kv": U32,
}
OPTIONAL = {
    "headkv.beta": F32,
    "headkv.window": U32,
    "headkv.kernel": U32,
    "headkv.sinks": U32,
    "headkv.source.model": STR,
}


def _types() -> Iterator[Case]:
    def wrong(name: str, key: str, value: bytes, says: str) -> Case:
        return case_of(f"{key} as {name}", changed(key, value), "SCORES_TYPE", f"{key} must be {says}$")

    for key, wanted in (REQUIRED | OPTIONAL).items():
        must = TYPES[wanted][0]
        for kind in {U8, I32, F32, F64, U64, STR} - {wanted}:
            if key == "headkv.source.model" and kind == U32:
                continue
            value = scalar(kind, "8" if kind == STR else 3)
            yield wrong(TYPES[kind][0], key, value, f"{must}, not {TYPES[kind][0]}")
        items = ["a"] if wanted == STR else [3.0] if wanted == F32 else [3]
        yield wrong("an array of its type", key, array(wanted, items), f"{must}, not an array of {must}")
        yield wrong("an empty array", key, array(wanted, []), f"{must}, not an array of {must}")
    for kind in (I8, I32, F64, STR):
        value = array(kind, ["x"] * N if kind == STR else [1] * N)
        said = f"an array of f32, not an array of {TYPES[kind][0]}"
        yield wrong(f"an array of {TYPES[kind][0]}", "headkv.scores", value, said)
    yield wrong("one number", "headkv.scores", scalar(F32, 1.0), "an array of f32, not f32")
    yield wrong("text", "headkv.scores", scalar(STR, "1" * 32), "an array of f32, not str")
    yield wrong("f64", "headkv.source.seed", scalar(F64, 7.0), "str, not f64")


def _missing() -> Iterator[Case]:
    yield case_of("no scores", changed("headkv.version", None), "SCORES_ABSENT", "holds no head scores$")
    yield case_of("no keys at all", File([]), "SCORES_ABSENT", "holds no head scores$")
    for key in [*REQUIRED, "headkv.scores"]:
        if key != "headkv.version":
            yield case_of(f"no {key}", changed(key, None), "SCORES_MISSING", f"{key} is missing$")


def _lengths() -> Iterator[Case]:
    def wrong(n: int) -> Case:
        says = f"headkv.scores must have {N} values, one per layer and query head, not {n}$"
        file = changed("headkv.scores", array(F32, [1.0] * n))
        return case_of(f"{n} scores", file, "SCORES_LENGTH", says)

    yield from map(wrong, (0, 1, N - 1, N + 1, LAYERS * 2))
    for key, value in (("headkv.block_count", 4096), ("headkv.head_count", 4096)):
        says = "headkv.scores must have [0-9]+ values, one per layer and query head, not 8$"
        yield case_of(f"{key} of {value}", changed(key, scalar(U32, value)), "SCORES_LENGTH", says)


def _values() -> Iterator[Case]:
    def wrong(name: str, key: str, value: bytes, says: str) -> Case:
        return case_of(f"{key} {name}", changed(key, value), "SCORES_VALUE", f"{key} {says}")

    for name, number in {
        "nan": math.nan,
        "-nan": -math.nan,
        "inf": math.inf,
        "-inf": -math.inf,
        "negative": -0.25,
        "a bit negative": -1e-45,
    }.items():
        for at in (0, N - 1):
            scores = [1.0] * N
            scores[at] = number
            says = f"must be finite and not negative, value {at} is -?(nan|inf|0.25|1.4013e-45)$"
            yield wrong(f"{name} at {at}", "headkv.scores", array(F32, scores), says)
    for zero in (0.0, -0.0):
        yield wrong(f"all {zero}", "headkv.scores", array(F32, [zero] * N), "must not be all zero$")
    for value in (1.0, 0.5, 0.0, -2.0, math.nan, math.inf, -math.inf):
        yield wrong(f"{value}", "headkv.beta", scalar(F32, value), "must be finite and above 1, not ")
    for key in ("headkv.block_count", "headkv.head_count", "headkv.head_count_kv"):
        for value in (0, 4097, 2**31, 2**32 - 1):
            yield wrong(f"{value}", key, scalar(U32, value), f"must be from 1 to 4096, not {value}$")
    for value in (3, 8, 4096):
        says = f"must divide the head count of {HEADS}, {value} does not$"
        yield wrong(f"{value}", "headkv.head_count_kv", scalar(U32, value), says)
    for key, least, values in (
        ("headkv.window", 1, (0, 2**20 + 1, 2**32 - 1)),
        ("headkv.kernel", 1, (0, 2**20 + 1, 2**31)),
        ("headkv.sinks", 0, (2**20 + 1, 2**32 - 1)),
    ):
        for value in values:
            yield wrong(f"{value}", key, scalar(U32, value), f"must be from {least} to 1048576, not {value}$")
    yield wrong("even", "headkv.kernel", scalar(U32, 14), "must be odd, not 14$")
    for version in (0, 2, 2**32 - 1):
        file = changed("headkv.version", scalar(U32, version))
        says = f"headkv.version is {version}, only 1 is known$"
        yield case_of(f"headkv.version {version}", file, "SCORES_VERSION", says)


def _layers() -> Iterator[Case]:
    def wrong(name: str, value: bytes, code: str, says: str) -> Case:
        return case_of(f"headkv.layers {name}", added("headkv.layers", value), code, f"headkv.layers {says}")

    for n in (0, 1, LAYERS + 1, 5000):
        says = f"must have {LAYERS} values, one per layer, not {n}$"
        yield wrong(f"of {n}", array(U32, list(range(n))), "SCORES_LENGTH", says)
    for values, at in (([1, 1], 1), ([1, 0], 1), ([0, 4096], 1), ([2**32 - 1, 0], 0)):
        says = f"must be ascending and below 4096, value {at} is {values[at]}$"
        yield wrong(f"{values}", array(U32, values), "SCORES_VALUE", says)
    for kind in (I32, F32, U64):
        says = f"must be an array of u32, not an array of {TYPES[kind][0]}$"
        yield wrong(f"as {TYPES[kind][0]}", array(kind, [0] * LAYERS), "SCORES_TYPE", says)
    yield wrong("as one number", scalar(U32, 0), "SCORES_TYPE", "must be an array of u32, not u32$")


def _curves() -> Iterator[Case]:
    def wrong(key: str, name: str, value: bytes | None, code: str, says: str) -> Case:
        key = f"headkv.curve.{key}"
        return case_of(f"{key} {name}", changed(key, value), f"SCORES_{code}", f"{key} {says}")

    n = LAYERS * KV_HEADS * len(SHARES)
    for key, values in (("shares", SHARES), ("losses", [0.0] * n)):
        yield wrong(key, "alone missing", None, "MISSING", "is missing$")
        for kind in (I32, U64, F64, STR):
            value = array(kind, ["x" if kind == STR else 1] * len(values))
            says = f"must be an array of f32, not an array of {TYPES[kind][0]}$"
            yield wrong(key, f"as {TYPES[kind][0]}", value, "TYPE", says)
        yield wrong(key, "as one number", scalar(F32, 1.0), "TYPE", "must be an array of f32, not f32$")
    for m in (0, 1, 65, 5000):
        value = array(F32, [i / max(m - 1, 1) for i in range(m)])
        yield wrong("shares", f"of {m}", value, "LENGTH", f"must have 2 to 64 values, not {m}$")
    for m in (0, 1, n - 1, n + 1):
        says = f"must have {n} values, 2 layers of 2 KV heads with {len(SHARES)} each, not {m}$"
        yield wrong("losses", f"of {m}", array(F32, [1.0] * m), "LENGTH", says)
    for values in ([0.1, 0.5, 1], [0, 0.5, 0.9], [0, 1, 1], [0, -0.5, 1], [0, math.nan, 1], [math.nan] * 3):
        yield wrong("shares", f"{values}", array(F32, values), "VALUE", "must ascend from 0 to 1$")
    for at, number in ((0, math.nan), (n - 1, -math.inf)):
        losses = [1.0] * n
        losses[at] = number
        says = f"must be finite, value {at} is -?(nan|inf)$"
        yield wrong("losses", f"with {number}", array(F32, losses), "VALUE", says)


def _texts() -> Iterator[Case]:
    for key in ("headkv.method", "headkv.source.model"):
        for n in (0, 4097, 100_000):
            says = f"{key} must have 1 to 4096 bytes, not {n}$"
            yield case_of(f"{key} of {n} bytes", changed(key, scalar(STR, "x" * n)), "SCORES_LENGTH", says)
        for name, content in {
            "a stray byte": b"ab\xff",
            "half a character": b"ab\xe2\x82",
            "an overlong form": b"\xc0\xaf",
            "an overlong form of 3 bytes": b"\xe0\x80\xaf",
            "a surrogate": b"\xed\xa0\x80",
            "beyond Unicode": b"\xf4\x90\x80\x80",
        }.items():
            file = changed(key, scalar(STR, content))
            yield case_of(f"{key} with {name}", file, "SCORES_VALUE", f"{key} must be UTF-8$")
        for name, content in {"": b"a\0b", " before too much": b"a\0" + b"b" * 5000}.items():
            says = f"is damaged: the value of {key} has a zero byte in it$"
            yield case_of(f"{key} with zero byte{name}", changed(key, scalar(STR, content)), "FILE", says)
    for n, code, says in (
        (14, "SCORES_LENGTH", r"headkv.source.\* has a key of 14 bytes, not 15 to 128$"),
        (129, "SCORES_LENGTH", r"headkv.source.\* has a key of 129 bytes, not 15 to 128$"),
        (65535, "SCORES_LENGTH", r"headkv.source.\* has a key of 65535 bytes, not 15 to 128$"),
        (65536, "FILE", "key number 16 has a name of 65536 bytes, not 1 to 65535$"),
    ):
        file = added("headkv.source.".ljust(n, "x"), scalar(STR, "y"))
        yield case_of(f"headkv.source key of {n} bytes", file, code, says)
    for name, key in {
        "an escape": b"\x1b[2J",
        "a line break": b"a\nb",
        "no UTF-8": b"\xff",
        "a space": b"a b",
    }.items():
        says = r"headkv.source.\* has a key that is not printable ASCII$"
        file = added(b"headkv.source." + key, scalar(STR, "y"))
        yield case_of(f"headkv.source key with {name}", file, "SCORES_VALUE", says)
    file = sidecar()
    file.keys += [(f"headkv.source.n{i}", scalar(U32, i)) for i in range(256)]
    says = r"headkv.source.\* has more than 256 keys$"
    yield case_of("258 headkv.source keys", file, "SCORES_LENGTH", says)
