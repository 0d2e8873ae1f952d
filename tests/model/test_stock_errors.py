"""The words that users of llama_cpp know its errors by, and the types that they catch, are ours too."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import llama_cpp
import numpy as np
import pytest

from headkv_local import HeadKVError, Llama, OutOfMemoryError, Retention, memory_estimate
from headkv_local._core import native, room
from headkv_local._core.failures import decode_error
from headkv_local._core.load import load_error
from headkv_local.errors import LoadMemoryError, ModelError
from helpers import random_tokens

TOO_LONG = r"Requested tokens \((\d+)\) exceed context window of (\d+)"  # llama_cpp.server and others

CALLS: dict[str, tuple[str, type[Exception], Callable[[Any, Path], Any]]] = {
    "long completion": (TOO_LONG, ValueError, lambda llm, _: llm("a " * 2000, max_tokens=5)),
    "long stream": (TOO_LONG, ValueError, lambda llm, _: list(llm("a " * 2000, stream=True))),
    "long chat": (
        TOO_LONG,
        ValueError,
        lambda llm, _: llm.create_chat_completion([{"role": "user", "content": "a " * 2000}]),
    ),
    "logprobs": (
        r"^logprobs is not supported for models created with logits_all=False$",
        ValueError,
        lambda llm, _: llm("a", logprobs=1),
    ),
    "embed": (
        r"^Llama model must be created with embedding=True to call this method$",
        RuntimeError,
        lambda llm, _: llm.embed("a"),
    ),
    "tool": (
        r"^Tool choice 'b' not found in tools\.$",
        ValueError,
        lambda llm, _: llm.create_chat_completion(
            [{"role": "user", "content": "a"}],
            tools=[{"type": "function", "function": {"name": "a", "parameters": {}}}],
            tool_choice={"type": "function", "function": {"name": "b"}},
        ),
    ),
    "no model": (
        r"^Model path does not exist: (.+)nothing\.gguf$",
        ValueError,
        lambda llm, folder: type(llm)(model_path=str(folder / "nothing.gguf")),
    ),
    "no GGUF": (
        r"^Failed to load model from file: (.+)text",
        ValueError,
        lambda llm, folder: type(llm)(model_path=str(folder / "text"), verbose=False),
    ),
    "no context": (
        r"^Failed to create llama_context",
        ValueError,
        lambda llm, _: type(llm)(model_path=llm.model_path, type_v=8, flash_attn=False, verbose=False),
    ),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("kind", [llama_cpp.Llama, Llama])
def test_the_same_words(tiny_path: Path, tmp_path: Path, name: str, kind: Any) -> None:
    """llama_cpp.Llama itself is asked too: these are its words."""
    words, error, call = CALLS[name]
    (tmp_path / "text").write_text("no GGUF file", encoding="utf-8")
    llm = kind(model_path=str(tiny_path), n_ctx=512, n_threads=1, verbose=False)
    with pytest.raises(error, match=words):
        call(llm, tmp_path)


@pytest.mark.parametrize("call", ["eval", "prefill", "generate"])
def test_a_full_context(load: Callable[..., Llama], tiny_path: Path, call: str) -> None:
    llm = load(tiny_path, n_ctx=512, retention=Retention(budget=32))
    for error in (ValueError, RuntimeError):
        with pytest.raises(error, match=TOO_LONG) as caught:
            list(getattr(llm, call)(random_tokens(600)) or ())
        assert re.search(TOO_LONG, str(caught.value)).groups() == ("600", "512")  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("code", "error"), [(1, ValueError), (-1, ValueError), (-2, MemoryError), (-3, RuntimeError)]
)
def test_a_decode_that_fails(
    load: Callable[..., Llama], tiny_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, error: Any
) -> None:
    llm = load(tiny_path, retention=Retention(budget=32))
    monkeypatch.setattr(native, "last_error", lambda: "no memory for a test")
    monkeypatch.setattr(llama_cpp.llama_cpp, "llama_decode", lambda *_: code)
    with pytest.raises(RuntimeError, match=f"llama_decode returned {code}") as caught:
        llm.eval([1, 2, 3])
    assert isinstance(caught.value, HeadKVError)
    assert isinstance(caught.value, error)
    if code == -2:
        assert isinstance(caught.value, OutOfMemoryError)
        assert caught.value.setting == "n_ctx"
        assert str(caught.value).endswith(": make n_ctx smaller")
    assert "no memory for a test" not in str(caught.value)  # of a call before: it was not logged
    said = decode_error(RuntimeError(f"llama_decode returned {code}"), ["init_batch: no memory for a test"])
    assert str(said).endswith(": no memory for a test")
    monkeypatch.undo()
    llm.eval([1, 2, 3])


def test_pythons_memory_error_says_what_to_change() -> None:
    error = load_error(np._core._exceptions._ArrayMemoryError((2**40,), np.dtype("i4")), [])
    assert isinstance(error, OutOfMemoryError)
    assert error.setting == "n_ctx"
    assert "make n_ctx or n_batch smaller" in str(error)


def test_a_draft_model_alone_is_no_matter_of_memory(tiny: Callable[..., Path]) -> None:
    path = tiny(arch="eagle3")
    with pytest.raises(ModelError, match="drafts for another one.*requires ctx_other"):
        Llama(path)


def test_a_context_without_memory_for_it(tiny_path: Path) -> None:
    program = """
import resource, sys
from headkv_local import Llama, OutOfMemoryError, Retention
llm = Llama(sys.argv[1], n_ctx=512)  # what is loaded once is
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
for arguments in ({}, {"retention": Retention(budget=32)}, {"logits_all": True}):
    try:
        Llama(sys.argv[1], n_ctx=2**31 - 256, n_threads=1, **arguments)
    except OutOfMemoryError as error:
        assert isinstance(error, ValueError) and error.setting == "n_ctx", repr(error)
        assert "make n_ctx smaller" in str(error), error
    else:
        sys.exit("it was made")
assert len(llm("hello", max_tokens=2)["choices"]) == 1
"""
    command = [sys.executable, "-c", program, str(tiny_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "gpus", "refused"),
    [
        ({}, (), True),
        ({"n_gpu_layers": -1}, (), True),
        ({"n_gpu_layers": -1}, ("one",), False),
        ({"n_gpu_layers": -1, "offload_kqv": False}, ("one",), True),
        ({"type_k": 8, "type_v": 8}, (), False),
    ],
)
def test_a_cache_beyond_a_containers_memory(
    tiny_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any], gpus: Any, refused: bool
) -> None:
    """Which is that of the machine, not of its GPU."""
    monkeypatch.setattr(room, "memory_total", lambda: 6 << 20)  # 8,192 tokens take 8 MiB
    monkeypatch.setattr(room, "gpus", lambda: gpus)
    sentence = "Failed to create llama_context: 8192 tokens take 8.00 MiB .* make n_ctx smaller$"
    with pytest.raises(LoadMemoryError, match=sentence) if refused else nullcontext():
        room.refuse_too_large(str(tiny_path), None, {"n_ctx": 0} | arguments)


@pytest.mark.parametrize("device", ["CPU", "one"])
@pytest.mark.parametrize(
    ("retention", "n_mib"),
    [
        (Retention(), 8),
        (Retention(archive="memory"), 4 + 1 + 8),
        (Retention(archive="rows", panel=1024), 4 + 1),  # one of two layers, and hidden states of a panel
        (Retention(archive="rows", order="tokens"), 8),
    ],
)
def test_a_prompt_that_has_to_fit(
    tiny_path: Path, monkeypatch: pytest.MonkeyPatch, retention: Retention, n_mib: int, device: str
) -> None:
    """As memory_estimate() counts it, to the byte. On a GPU with weights, if it is read by layers."""
    retention = replace(retention, panel=1024) if retention.by_layers else retention
    arguments = {"n_ctx": 0, "n_gpu_layers": -1 if device == "one" else 0}
    found = memory_estimate(tiny_path, n_ctx=0, retention=retention)
    (there,) = found.devices
    needed = there.peak(found.order) - (there.weights + there.compute if device == "CPU" else 0)
    assert n_mib << 20 <= needed - (device == "one") * (there.weights + there.compute) < (n_mib + 1.5) * 2**20
    gpu = SimpleNamespace(name="CPU", bytes_total=0)  # what is estimated on the CPU
    monkeypatch.setattr(room, "gpus", lambda: (gpu,) if device == "one" else ())
    for n_less in (0, 1):
        gpu.bytes_total = needed - n_less
        monkeypatch.setattr(room, "memory_total", lambda n_less=n_less: needed - n_less)
        refused = n_less == 1 and (device == "CPU" or retention.by_layers)
        match = "make n_ctx smaller$" if n_mib == 5 else "or keep an archive in a file"
        with pytest.raises(LoadMemoryError, match=match) if refused else nullcontext():
            room.refuse_too_large(str(tiny_path), retention, arguments)


def test_models_without_a_cache_are_not_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = gguf.GGUFWriter(tmp_path / "bert.gguf", "bert")
    for add in (writer.add_block_count, writer.add_head_count, writer.add_embedding_length):
        add(64)
    writer.add_causal_attention(False)
    writer.add_tensor("token_embd.weight", np.zeros((1, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    monkeypatch.setattr(room, "memory_total", lambda: 1)
    room.refuse_too_large(str(tmp_path / "bert.gguf"), None, {"n_ctx": 8192, "embedding": True})
