"""Hostile files that are wrong as GGUF files, whatever their keys say."""

from __future__ import annotations

from collections.abc import Iterator

from hostile_gguf import (
    ARR,
    F32,
    HEADS,
    LAYERS,
    STR,
    U32,
    U64,
    Case,
    File,
    Tensor,
    added,
    array,
    case_of,
    changed,
    model,
    patched,
    scalar,
    sidecar,
    swapped,
    text,
    u32,
    u64,
    with_tensor,
)

HUGE = (2**32, 2**61, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
N = LAYERS * HEADS


def containers() -> Iterator[Case]:
    def wrong(name: str, file: File | bytes, says: str) -> Case:
        return case_of(name, file, "FILE", says)

    yield wrong("empty file", b"", "is not a GGUF file: it is empty$")
    for name, content in {
        "one byte": b"G",
        "text": b"These are no head scores.\n",
        "zeros": bytes(4096),
        "JSON": b'{"headkv.version": 1}',
        "a GGML file of old": b"lmgg" + bytes(64),
    }.items():
        yield wrong(name, content, "is not a GGUF file$")
    yield wrong("magic of the other byte order", patched(sidecar(), magic=b"FUGG"), "is not a GGUF file$")
    for version in (0, 1, 4, 999, 2**32 - 1):
        says = f"is a GGUF file of version {version}, only 2 and 3 are known$"
        yield wrong(f"GGUF version {version}", patched(sidecar(), version=version), says)
    yield wrong("other byte order", swapped(sidecar), "is a GGUF file of the other byte order$")
    for n in HUGE:
        says = f"is damaged: it claims {n} %s, more than 65536$"
        yield wrong(f"{n} keys", patched(sidecar(), n_keys=n), says % "keys")
        yield wrong(f"{n} tensors", patched(sidecar(), n_tensors=n), says % "tensors")
    yield wrong("65536 keys", patched(sidecar(), n_keys=65536), "ends within key number 16$")
    yield wrong("one key more", patched(sidecar(), n_keys=16), "ends within key number 16$")
    yield wrong("one tensor more", patched(sidecar(), n_tensors=1), "ends within tensor number 1$")
    for n in HUGE:
        ends = "is damaged: it ends within the value of %s$"
        claimed = u32(ARR) + u32(F32) + u64(n)
        yield wrong(f"{n} scores", changed("headkv.scores", claimed), ends % "headkv.scores")
        texts = u32(ARR) + u32(STR) + u64(n)
        yield wrong(f"{n} texts", added("general.tags", texts), ends % "general.tags")
        yield wrong(
            f"a text of {n} bytes", changed("headkv.method", u32(STR) + u64(n)), ends % "headkv.method"
        )
        file = sidecar().content()[:24] + u64(n) + sidecar().content()[32:]
        yield wrong(f"a key of {n} bytes", file, f"key number 1 has a name of {n} bytes, not 1 to 65535$")


def keys() -> Iterator[Case]:
    def wrong(name: str, file: File | bytes, says: str) -> Case:
        return case_of(name, file, "FILE", "is damaged: " + says)

    for key in ("headkv.scores", "headkv.version", "headkv.source.model", "general.architecture"):
        value = dict(sidecar().keys)[key]
        yield wrong(f"{key} twice", added(key, value), f"key number 16 is there twice: {key}$")
    for kind in (13, 14, 255, 2**31, 2**32 - 1):
        says = f"the value of %s has the unknown type {kind}$"
        value = u32(kind) + bytes(64)
        yield wrong(f"type {kind}", changed("headkv.beta", value), says % "headkv.beta")
        items = u32(ARR) + u32(kind) + u64(2) + bytes(64)
        yield wrong(f"array of type {kind}", changed("headkv.scores", items), says % "headkv.scores")
    inner = array(F32, [1.0] * N)[4:]
    for depth in (1, 2, 1000):
        nested = u32(ARR) + (u32(ARR) + u64(1)) * depth + inner
        says = "the value of headkv.scores holds an array of arrays$"
        yield wrong(f"scores {depth} arrays deep", changed("headkv.scores", nested), says)
    nested = u32(ARR) + u32(ARR) + u64(2**63)
    yield wrong(
        "array of arrays of nothing", added("general.tags", nested), "the value of general.tags holds an"
    )
    yield wrong("key without a name", added("", scalar(U32, 1)), "key number 16 has a name of 0 bytes")
    for key in (b"headkv.version\0", b"\0", b"a\0b"):
        says = "key number 16 has a name with a zero byte in it$"
        yield wrong(f"key {key!r}", added(key, scalar(U32, 2)), says)
    yield wrong(
        "escapes in a key",
        added(b"\x1b[2J\xff\n", u32(99)),
        r"the value of \?\[2J\?\? has the unknown type 99$",
    )
    yield wrong("long key", added("x" * 5000, u32(99)), r"the value of x{64}\.\.\. has the unknown type 99$")
    for value in (scalar(U64, 32), array(U32, [32]), scalar(STR, "32")):
        yield wrong(
            f"alignment {value[:8]!r}", added("general.alignment", value), "general.alignment must be u32$"
        )
    for number in (0, 3, 33, 2**32 - 1):
        says = f"general.alignment must be a power of 2, not {number}$"
        yield wrong(f"alignment {number}", added("general.alignment", scalar(U32, number)), says)


def tensors() -> Iterator[Case]:
    def wrong(name: str, file: File | bytes, says: str) -> Case:
        return case_of(name, file, "FILE", "is damaged: " + says)

    for n in (0, 64, 2**40):
        content = with_tensor(name=b"")
        info = u64(n) + b"x" * min(n, 64) + Tensor().info()[16:]
        at = content.content().index(text("") + Tensor().info()[16:])
        says = f"tensor number 1 has a name of {n} bytes, not 1 to 63$"
        yield wrong(f"tensor name of {n} bytes", content.content()[:at] + info + bytes(512), says)
    yield wrong(
        "tensor name with a zero byte", with_tensor(name=b"a\0b"), "tensor number 1 has a name with a zero"
    )
    twice = model()
    twice.tensors[1].name = "a.weight"
    yield wrong("tensor twice", twice, "tensor number 2 is there twice: a.weight$")
    for shape in ((1,) * 5, (1,) * 1000):
        says = f"tensor number 1 has {len(shape)} dimensions, more than 4$"
        yield wrong(f"{len(shape)} dimensions", with_tensor(shape=shape), says)
    impossible = "tensor number 1 has a shape that cannot be$"
    for shape in ((-1,), (2**62, 4), (2**32, 2**32), (2**21,) * 4, (2**63 - 1,), (-(2**63), 2)):
        yield wrong(f"shape {shape}", with_tensor(shape=shape), impossible)
    yield wrong("half a block", with_tensor(shape=(33,), kind=8), impossible)
    for kind in (4, 5, 99, 2**31, 2**32 - 1):  # 4 and 5 were removed
        says = f"tensor number 1 has the unknown type {kind}$"
        yield wrong(f"tensor type {kind}", with_tensor(kind=kind), says)
    for offset in (1, 32, 2**63, 2**64 - 32):
        says = "tensor number 1 is not where the one before it ends$"
        yield wrong(f"tensor at {offset}", with_tensor(offset=offset), says)
    yield wrong("more data than there is", with_tensor(shape=(2**20,)), "it is shorter than its tensors$")
    yield wrong("exabytes of data", with_tensor(shape=(2**59,)), "it is shorter than its tensors$")
    far = model()
    far.keys.append(("general.alignment", scalar(U32, 2**31)))
    far.tensors = [Tensor()]
    yield wrong("data 2 GiB away", far, "it is shorter than its tensors$")


def truncated() -> Iterator[Case]:
    """At the end of every section, and in the middle of each."""
    for kind, file in (("sidecar", sidecar()), ("model", model())):
        content, at = file.content(), 0
        for name, part in file.sections():
            for place, end in (("before", at), ("within", at + len(part) // 2)):
                if end >= 4 and end < len(content):
                    says = "is damaged: it (ends within |is shorter than its tensors$)"
                    yield case_of(f"{kind} cut {place} the {name}", content[:end], "FILE", says)
            at += len(part)
