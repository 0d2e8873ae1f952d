from __future__ import annotations

from pathlib import Path

import pytest

from headkv_local import ArgumentError, defaults
from headkv_local._core.memory import Numbers, token_bytes
from headkv_local.chat import context
from headkv_local.chat.context import choose_context
from headkv_local.defaults import FALLBACK_CTX, bounded_context
from headkv_local.settings import MAX_CTX_BYTES

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


def lists(numbers: dict[str, int]) -> Numbers:
    """As metadata has them: one, or one per layer."""
    return {key: [number] for key, number in numbers.items()}


def test_context_of_the_default_model(smollm2: Path) -> None:
    path = str(smollm2)
    assert choose_context(path, None) == 8192
    assert choose_context(path, 0) == 8192
    assert choose_context(path, 100) == 100
    assert choose_context(path, "auto") == "auto"  # Llama chooses


def test_context_beyond_the_memory(smollm2: Path) -> None:
    with pytest.raises(ArgumentError, match="2000000000 tokens take 42915 GiB of KV cache"):
        choose_context(str(smollm2), 2_000_000_000)


def test_context_of_no_model(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF")
    assert choose_context(str(broken), None) == FALLBACK_CTX
    assert choose_context(str(tmp_path / "missing"), 100) == 100
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("limit", [2**30, 400 * 2**20, 2**20])
def test_context_within_the_memory_of_a_container(
    smollm2: Path, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of what the weights leave of it, and what was asked for where it is not known to be too much."""
    path, cost = str(smollm2), token_bytes(lists(SMOLLM2))
    for module in (context, defaults):
        monkeypatch.setattr(module, "memory_total", lambda: limit)
    left = max((limit - smollm2.stat().st_size) // 2, 0)
    assert choose_context(path, None) == max(min(8192, left // cost), 1)
    assert choose_context(path, limit // cost) == limit // cost
    with pytest.raises(ArgumentError, match="of memory may be used here: choose a smaller --ctx"):
        choose_context(path, limit // cost + 1)
