"""The size of the context: what it is where nobody says, and what there is no memory for."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from headkv_local import ArgumentError, memory_estimate, models
from headkv_local._gguf.reading import VALUE_BYTES, Numbers, token_bytes
from headkv_local.chat import info
from headkv_local.chat.documents import Document
from headkv_local.chat.options import Options
from headkv_local.chat.session import open_session
from headkv_local.chat.wording import sentence
from headkv_local.defaults import FALLBACK_CTX, bounded_context, default_context
from headkv_local.errors import LoadMemoryError
from headkv_local.settings import KV_TYPES, MAX_CTX_BYTES
from helpers import needed

SMOLLM2: dict[str, int] = {
    "context_length": 8192,
    "block_count": 30,
    "embedding_length": 576,
    "attention.head_count": 9,
    "attention.head_count_kv": 3,
}
LLAMA_8B = {
    "context_length": 131072,
    "block_count": 32,
    "embedding_length": 4096,
    "attention.head_count": 32,
    "attention.head_count_kv": 8,
}


@pytest.mark.parametrize(
    ("numbers", "n_ctx"),
    [
        (SMOLLM2, 8192),
        (LLAMA_8B, MAX_CTX_BYTES // (128 * 1024)),
        (LLAMA_8B | {"attention.key_length": 64, "attention.value_length": 64}, MAX_CTX_BYTES // (64 * 1024)),
        ({key: LLAMA_8B[key] for key in LLAMA_8B if "kv" not in key}, MAX_CTX_BYTES // (512 * 1024)),
        ({}, FALLBACK_CTX),
        (SMOLLM2 | {"block_count": 0}, FALLBACK_CTX),
        ({key: SMOLLM2[key] for key in SMOLLM2 if key != "context_length"}, FALLBACK_CTX),
        (LLAMA_8B | {"block_count": 2**40}, 1),
    ],
)
def test_bounded_context(numbers: dict[str, int], n_ctx: int) -> None:
    assert bounded_context(numbers.get("context_length", 0), token_bytes(lists(numbers))) == n_ctx


def test_values_take_what_ggml_says() -> None:
    sizes = (GGML_QUANT_SIZES[GGMLQuantizationType(kind)] for kind in KV_TYPES.values())
    assert [VALUE_BYTES[kind] for kind in KV_TYPES.values()] == [n_bytes / n for n, n_bytes in sizes]


def lists(numbers: dict[str, int]) -> Numbers:
    """As metadata has them: one, or one per layer."""
    return {key: [number] for key, number in numbers.items()}


def test_context_of_the_default_model(smollm2: Path) -> None:
    assert default_context(str(smollm2)) == 8192


def test_context_of_no_model(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF")
    assert default_context(str(broken)) == FALLBACK_CTX
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("limit", [2**30, 400 * 2**20, 2**20])
def test_context_within_the_memory_of_a_container(
    smollm2: Path, limit: int, container: Callable[[int], None]
) -> None:
    """Half of what the weights leave of it."""
    container(limit)
    left = max((limit - smollm2.stat().st_size) // 2, 0)
    assert default_context(str(smollm2)) == max(min(8192, left // token_bytes(lists(SMOLLM2))), 1)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "headkv-local"


def asking(path: Path, **given: Any) -> Options:
    usual: dict[str, Any] = {"budget": 16, "threads": 1, "max_tokens": 4, "temp": 0.0, "ctx": 0}
    return Options(model=str(path), **usual | given)


@pytest.mark.parametrize("ctx", [0, 8192])
@pytest.mark.parametrize("named", [True, False])
def test_a_context_that_needs_an_archive_in_a_file(
    tiny_path: Path, folder: Path, container: Callable[[int], None], ctx: int, named: bool
) -> None:
    """It is the file that is named, or one of ours, made once."""
    container((needed(tiny_path, "rows") + needed(tiny_path, "memory")) // 2)
    where = folder.parent / "rows"
    with closing(open_session(asking(tiny_path, ctx=ctx, archive=str(where) if named else "auto"))) as chat:
        assert chat.llm.n_ctx() == 8192
        files = [where] if named else list(folder.iterdir())
        assert [str(file) for file in files] == [chat.archive.where]
        chat.attach([Document("a", "some words " * 60)])
        answer = chat.ask("Why?", lambda _: None)
        assert answer.stats.archive_tokens == answer.prompt_tokens
        assert any(line.startswith("archive:") and f" in {files[0]}" in line for line in info.told(chat))
    assert not files[0].exists()


def test_a_context_that_is_too_large(tiny_path: Path, folder: Path, container: Callable[[int], None]) -> None:
    """Nothing is left behind, and the words are of options."""
    container((needed(tiny_path, "rows") + needed(tiny_path, "memory")) // 2)
    smaller = "there is not enough memory for a context{}: start with a smaller --ctx{}"
    in_file = ", or with an archive in a file (--archive auto)"
    for options, told in (
        (asking(tiny_path, archive="memory"), smaller.format("", in_file)),
        (asking(tiny_path, ctx=32768), smaller.format(" of 32768 tokens", "")),
        (
            asking(tiny_path, ctx=32768, archive=str(folder.parent / "rows")),
            smaller.format(" of 32768 tokens", ""),
        ),
        (asking(tiny_path, ctx=32768, budget=None), smaller.format(" of 32768 tokens", "")),
    ):
        with pytest.raises(LoadMemoryError) as raised:
            open_session(options)
        assert sentence(raised.value, options) == told
    assert not [path for path in folder.parent.rglob("*") if path.is_file()]


def test_no_file_stays_of_a_chat_that_cannot_begin(
    tiny_path: Path, folder: Path, container: Callable[[int], None]
) -> None:
    container((needed(tiny_path, "rows") + needed(tiny_path, "memory")) // 2)
    for archive in ("auto", str(folder.parent / "rows")):
        with pytest.raises(ArgumentError):
            open_session(asking(tiny_path, archive=archive, grammar="root ::= nothing"))
    assert not [path for path in folder.parent.rglob("*") if path.is_file()]


def test_windows_are_not_charged_for_all_positions(
    tiny: Callable[..., Path], container: Callable[[int], None]
) -> None:
    path = tiny(arch="gemma3")
    (cpu,) = memory_estimate(path, n_ctx=8192, budget=16).devices
    there = cpu.peak_tokens - cpu.weights - cpu.compute
    assert there < 8192 * models.token_bytes(path)
    container(there)
    with closing(open_session(asking(path, ctx=8192, archive="off"))) as chat:
        assert chat.llm.n_ctx() == 8192
