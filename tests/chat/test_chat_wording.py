from __future__ import annotations

import pytest

from headkv_local.chat import wording
from headkv_local.chat.options import Options
from headkv_local.chat.wording import sentence
from headkv_local.errors import DecodeMemoryError, LoadMemoryError, OutOfMemoryError

SMALLER = "there is not enough memory for a context of 4096 tokens: start with a smaller --ctx"


@pytest.mark.parametrize(
    ("kind", "setting", "on_gpu", "told"),
    [
        (DecodeMemoryError, "n_ctx", False, SMALLER),
        (LoadMemoryError, "n_ctx", True, f"{SMALLER}, or with fewer --gpu-layers"),
        (LoadMemoryError, "n_gpu_layers", True, "there is not enough memory for the model on the GPU"),
        (LoadMemoryError, None, False, "there is not enough memory: give --ctx a number of tokens"),
        (OutOfMemoryError, None, False, "there is not enough memory"),
        (MemoryError, None, False, "there is not enough memory"),
    ],
)
def test_memory(
    kind: type[MemoryError], setting: str | None, on_gpu: bool, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library's own words, of n_ctx and n_gpu_layers, are not what a user of the chat can change."""
    monkeypatch.setattr(wording, "_on_gpu", lambda options: on_gpu)
    error = kind("llama_decode returned -2: make n_ctx or n_gpu_layers smaller")
    if setting is not None:
        assert isinstance(error, OutOfMemoryError)
        error.setting = setting
    found = sentence(error, Options(ctx=4096))
    assert found.startswith(told)
    assert "n_" not in found
    in_memory = sentence(error, Options(ctx=4096, archive="memory"))
    assert in_memory.startswith(found)
    assert ("--archive auto" in in_memory) is (setting == "n_ctx")
