"""memory_estimate() against what llama.cpp and the cache then hold, in bytes of ggml's own buffers."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headkv_local import (
    ArgumentError,
    Llama,
    MemoryEstimate,
    ModelError,
    OutOfMemoryError,
    Retention,
    UnsupportedError,
    memory_estimate,
)
from headkv_local._core import ggml, room
from headkv_local._core.estimate import _Rows
from headkv_local._core.native.memory import get_memory
from headkv_local.budgets import LayerShape, ModelShape
from helpers import random_tokens

N_CTX, N_PROMPT = 2048, 1500
ROUNDED = 1536  # an archive makes room for as many
ORDERS = {
    "full": None,
    "tokens": Retention(budget=64),
    "layers": Retention(budget=64, order="layers"),
    "tokens, read again": Retention(budget=64, observe="all"),
    "layers, read again": Retention(budget=64, observe="all", order="layers"),
    "archive": Retention(budget=64, archive="memory"),
    "tokens with an archive": Retention(budget=64, archive="memory", order="tokens"),
}
# plain, with layers without attention, with windows, with windows and shared layers, recurrent layers beside
# attention, with a draft head that the cache holds and the model does not compute
MODELS = "smollm2 llama deci-without gemma3 gemma3n falcon-h1 qwen35 nemotron_h_moe-draft".split()


def near(found: int, wanted: int, share: float = 0.05) -> bool:
    return abs(found - wanted) <= share * wanted


def total(llm: Llama) -> int:
    found = get_memory(llm.ctx)
    return int((found.weights + found.cache + found.compute).sum())


def compute_while_reading(llm: Llama, tokens: list[int]) -> int:
    """Bytes of compute buffers, while a prompt of several batches is read."""
    compute: list[int] = []
    llm.on_prefill = lambda done, _: done and compute.append(int(get_memory(llm.ctx).compute.sum()))
    llm.prefill(tokens)
    return max(compute[:-1])  # the last is after compaction


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("order", ORDERS)
def test_what_is_held(name: str, order: str, request: pytest.FixtureRequest, tiny: Any, load: Any) -> None:
    path = request.getfixturevalue("smollm2") if name == "smollm2" else tiny(arch=name)
    retention = ORDERS[order]
    found = memory_estimate(path, n_ctx=N_CTX, retention=retention, n_prompt=N_PROMPT)
    llm = load(path, n_ctx=N_CTX, retention=retention, flash_attn=retention is not None)
    assert found.n_ctx == llm.n_ctx()
    assert [device.name for device in found.devices] == ["CPU"]

    at_first, held_at_first = get_memory(llm.ctx), total(llm)
    assert found.weights == at_first.weights.sum()
    if retention is None or not retention.archives:  # else there are few cells before a prompt
        assert found.cache_full == at_first.cache.sum()
        assert found.compute == at_first.compute.sum()
    compute = compute_while_reading(llm, random_tokens(N_PROMPT))
    recorded = retention is not None and retention.observe == "all"  # of whole batches: in found.total
    assert recorded or near(found.compute, compute)

    after, stats = total(llm), llm.cache_stats()
    assert near(found.cache_compacted + found.compute_compacted + found.weights, after)
    if retention is None:
        assert found.peak_layers is None
        assert found.total == found.answering == found.peak_tokens
        return
    bounded = found.cache_full - stats.full_bytes
    at_end = bounded if retention.archive else 0  # the archive holds these layers too
    assert found.archive == stats.archive_bytes + at_end
    assert near(found.answering, after + found.archive)

    # bytes_peak is of the layers that retain; the others are copied, to go back to
    copies = 2 * bounded if retention.archives or llm._bounded.recurrent else bounded
    archived = stats.full_bytes * ROUNDED // N_CTX if retention.archives else 0
    held = found.weights + bounded + copies + stats.peak_bytes + compute + archived + found.hidden
    assert near(found.total, max(held, held_at_first), 0.06 if recorded else 0.05)
    assert found.total == (found.peak_tokens if "tokens" in order else found.peak_layers)


@pytest.mark.parametrize("order", ["tokens", "layers"])
@pytest.mark.parametrize("arch", ["llama", "deci"])
def test_what_a_draft_asks_is_counted(tiny: Any, load: Any, arch: str, order: Any) -> None:
    """What is not of the retaining layers stays the same beside a draft of any length.

    Of four questions, the most that a draft answers. Layers have more and fewer heads in one of the models.
    """
    document = {"type": "text", "text": "It rained all day. " * 40, "document": True}
    questions = {"type": "text", "text": "What is it? Who is it? When is it? Where is it?"}
    beside = []
    for draft in (0, 24, 64):
        retention, path = Retention(budget=32, draft=draft, order=order), tiny(arch=arch)
        llm = load(path, n_ctx=N_CTX, retention=retention, flash_attn=True)
        llm.create_chat_completion([{"role": "user", "content": [document, questions]}], max_tokens=1)
        stats = llm.cache_stats()
        found = memory_estimate(path, n_ctx=N_CTX, retention=retention, n_prompt=stats.prompt_tokens)
        beside.append(found.total - stats.peak_bytes)
        if order == "tokens":
            rounded = 64 * len(stats.kept)  # tables of where heads begin
            held = found.weights + found.compute + 4 * llm.n_vocab() + stats.peak_bytes
            assert abs(found.peak_tokens - held) <= rounded
    assert beside[1] == beside[2]
    assert order == "layers" or beside[0] == beside[1]  # without a draft, reading the prompt is the peak


def test_a_record_is_of_the_prompt(tiny: Any, load: Any) -> None:
    """What is recorded of a prompt does not take more in a larger context."""
    beside = []
    for n_ctx in (1024, 8192):
        retention = Retention(budget=64)
        llm = load(tiny(), n_ctx=n_ctx, retention=retention)
        llm.prefill(random_tokens(300))
        stats = llm.cache_stats()
        found = memory_estimate(tiny(), n_ctx=n_ctx, retention=retention, n_prompt=300)
        beside += [
            stats.peak_bytes - stats.full_bytes,
            found.peak_tokens - found.weights - found.cache_full - found.compute,
        ]
    assert len(set(beside[::2])) == len(set(beside[1::2])) == 1


@pytest.mark.parametrize("window", [16, 600])
def test_the_mask_of_the_tail_is_counted(tiny: Any, load: Any, window: int) -> None:
    """It is as wide as the tail, which is as long as the window needs."""
    settings = {"n_ctx": N_CTX, "n_batch": 2048, "n_ubatch": 2048}
    settings["retention"] = Retention(budget=800, window=window)
    llm = load(tiny(), **settings)
    llm.prefill(random_tokens(N_PROMPT))
    found = memory_estimate(tiny(), n_prompt=N_PROMPT, **settings)
    assert found.compute_compacted == get_memory(llm.ctx).compute.sum()


@pytest.mark.parametrize("archive", ["memory", None])
@pytest.mark.parametrize(
    ("n_ctx", "n_ubatch", "n_prompt"), [(N_CTX, 2048, 200), (4000, 1000, 300), (64, 512, 48), (300, 512, 290)]
)
def test_batches_that_are_larger_than_the_prompt(
    tiny: Any, load: Any, archive: str | None, n_ctx: int, n_ubatch: int, n_prompt: int
) -> None:
    """Room for them is of the cells that there are, and of no more tokens than n_ctx was given."""
    settings = {"n_ctx": n_ctx, "n_batch": 2048, "n_ubatch": n_ubatch}
    for budget in (n_prompt // 2, n_prompt):  # of which the second keeps it whole
        settings["retention"] = Retention(budget=budget, archive=archive, order="layers")
        llm = load(tiny(), **settings)
        llm.prefill(random_tokens(n_prompt))
        found = memory_estimate(tiny(), n_prompt=n_prompt, **settings)
        assert llm.cache_stats().compacted == (budget < n_prompt)
        assert near(found.compute_compacted, int(get_memory(llm.ctx).compute.sum()), 0.01)


def test_rows_of_what_is_read_once_more_are_counted(tiny: Any, load: Any) -> None:
    """They are in the archive meanwhile, but for those of the last panel."""
    archived, peaks = [], []
    for panel in (100, None):
        retention = Retention(
            budget=64, observe="all", archive="memory", reselect=False, order="tokens", panel=panel
        )
        llm, seen = load(tiny(), n_ctx=N_CTX, retention=retention), []
        llm.on_prefill = lambda *_: seen.append(llm.cache_stats().archive_bytes)  # noqa: B023 - called in this turn
        llm.prefill(random_tokens(900))
        archived.append(max(seen))
        peaks.append(memory_estimate(tiny(), n_ctx=N_CTX, n_prompt=900, retention=retention).peak_tokens)
    assert peaks[0] - peaks[1] == archived[0] - archived[1] > 0


@pytest.mark.parametrize("arch", ["neo-bert", "mamba2", "deepseek2", "llama"])
@pytest.mark.parametrize("settings", [{"embedding": True}, {"logits_all": True}, {"n_batch": 100}])
def test_what_is_not_compacted(tiny: Any, load: Any, arch: str, settings: dict[str, Any]) -> None:
    """Encoders, recurrent models, latent attention; many sequences for embeddings."""
    path = tiny(arch=arch)
    found, made = (
        memory_estimate(path, n_ctx=N_CTX, **settings),
        get_memory(load(path, n_ctx=N_CTX, **settings).ctx),
    )
    parts = (found.weights, found.cache_full, found.compute)
    assert parts == (made.weights.sum(), made.cache.sum(), made.compute.sum())


RESIDENT = """
import sys
from headkv_local import Llama, Retention, default_model_path
from helpers import random_tokens

def memory(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key))

before = memory("VmRSS")
llm = Llama(default_model_path(), n_ctx=4096, retention=Retention(budget=64, archive="memory"))
llm.prefill(random_tokens(3000))
print(memory("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_the_process_takes(smollm2: Path) -> None:
    """All that is estimated, and what is not: work buffers of threads, and Python."""
    found = memory_estimate(
        smollm2, n_ctx=4096, n_prompt=3000, retention=Retention(budget=64, archive="memory")
    )
    command = [sys.executable, "-c", RESIDENT]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=600, cwd=Path(__file__).parents[1], check=True
    )
    assert 0.9 * found.total <= int(done.stdout) <= found.total + (32 << 20)


COPIED = """
import sys
from headkv_local import Llama, Retention
from helpers import random_tokens

draft = int(sys.argv[2])
settings = {"n_threads": 1, "n_threads_batch": 1, "n_ubatch": 64, "swa_full": True}
llm = Llama(sys.argv[1], n_ctx=8192, retention=Retention(budget=32, draft=draft), **settings)
llm.prefill(random_tokens(300))
with open("/proc/self/status") as file:
    print(next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM")))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_windows_that_a_draft_goes_back_to(tiny: Any) -> None:
    """They are copied at the end of the prompt, and count beside the full cache."""
    path = tiny(arch="gemma2", head_dim=256, n_head_kv=4)
    taken, found = [], []
    for draft in (24, 0):
        command = [sys.executable, "-c", COPIED, str(path), str(draft)]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=600, cwd=Path(__file__).parents[1], check=True
        )
        taken.append(int(done.stdout))
        retention = Retention(budget=32, draft=draft)
        settings = {"n_ctx": 8192, "n_prompt": 300, "n_ubatch": 64, "swa_full": True}
        found.append(memory_estimate(path, retention=retention, **settings).total)
    assert taken[0] - taken[1] > 32 << 20
    assert near(found[0] - found[1], taken[0] - taken[1], 0.2)


def test_settings_that_change_it(tiny_path: Path) -> None:
    plain = memory_estimate(tiny_path, n_ctx=N_CTX, budget=64)
    assert plain == memory_estimate(tiny_path, n_ctx=N_CTX, retention=Retention(budget=64))
    assert plain.peak_layers is not None
    assert plain.order == "tokens"
    assert memory_estimate(tiny_path, n_ctx=0).n_ctx == 8192
    assert (
        memory_estimate(tiny_path, n_ctx=N_CTX, budget=64, type_k=8, type_v=8).cache_full
        == plain.cache_full * 34 // 64
    )
    assert memory_estimate(tiny_path, n_ctx=N_CTX, budget=64, n_ubatch=64).compute < plain.compute
    everything = memory_estimate(tiny_path, n_ctx=N_CTX, budget=64, logits_all=True)
    assert everything.total - plain.total >= 4 * 259 * N_CTX
    for retention in (Retention(budget=64), ORDERS["archive"]):
        brief = memory_estimate(tiny_path, n_ctx=N_CTX, retention=retention, n_prompt=100)
        assert brief.answering <= brief.total  # batches of answers are as large
    short = memory_estimate(tiny_path, n_ctx=N_CTX, budget=64, n_prompt=50)
    assert short.cache_compacted == short.cache_full  # it is kept whole
    in_file = memory_estimate(tiny_path, n_ctx=N_CTX, retention=Retention(budget=64, archive="a"))
    assert in_file.archive == 0
    assert in_file.total < memory_estimate(tiny_path, n_ctx=N_CTX, retention=ORDERS["archive"]).total


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"n_ctx": -1}, ArgumentError),
        ({"n_ctx": "much"}, ArgumentError),
        ({"n_prompt": 0}, ArgumentError),
        ({"n_prompt": 513}, ArgumentError),
        ({"n_ctx": 2_000_000_000}, OutOfMemoryError),
        ({"budget": 64, "retention": Retention()}, ArgumentError),
        ({"budget": 64, "flash_attn": False}, UnsupportedError),
        ({"budget": "1KiB"}, ArgumentError),
        ({"retention": Retention(budget=600, window=600), "n_ctx": 512}, ArgumentError),
        ({"budget": 64, "archive": "memory"}, ArgumentError),
        ({"n_batches": 64}, ArgumentError),
    ],
)
def test_what_cannot_be_is_refused(
    tiny_path: Path, arguments: dict[str, Any], error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headkv_local._core.unloaded.memory_free", lambda: 8 << 30)
    with pytest.raises(error):
        memory_estimate(tiny_path, **arguments)


def test_while_another_class_stands_for_the_stock_one(
    tiny_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As while a server loads a model."""
    monkeypatch.setattr("llama_cpp.Llama", Llama)
    assert memory_estimate(tiny_path, n_batch=128).n_ctx > 0


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF")
    for path in (broken, tmp_path / "missing.gguf"):
        with pytest.raises(ModelError, match=path.name):
            memory_estimate(path)


def test_a_model_that_cannot_be_compacted(tiny: Any) -> None:
    with pytest.raises(UnsupportedError):
        memory_estimate(tiny(arch="deepseek2"), n_ctx=512, budget=64)


@pytest.mark.parametrize("retention", [None, Retention(budget=64), Retention(budget=64, archive="memory")])
def test_the_largest_context(
    tiny_path: Path,
    load: Any,
    retention: Retention | None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def estimate(n_ctx: int) -> MemoryEstimate:
        return memory_estimate(tiny_path, n_ctx=n_ctx, retention=retention)

    free = estimate(4096).total
    monkeypatch.setattr(room, "memory_free", lambda: free)
    with caplog.at_level(logging.INFO, logger="headkv_local"):
        llm = load(tiny_path, n_ctx="auto", retention=retention)
    n_ctx = llm.n_ctx()
    assert 256 <= n_ctx < 4096
    assert estimate(n_ctx).total <= 0.9 * free < estimate(n_ctx + 256).total
    assert f'n_ctx="auto" is {n_ctx} tokens' in caplog.text
    assert "a tenth" in caplog.text
    llm.prefill(random_tokens(n_ctx - 1))


def test_a_context_is_no_larger_than_was_trained_for(tiny: Any, load: Any) -> None:
    assert load(tiny(n_ctx_train=1024), n_ctx="auto").n_ctx() == 1024


@pytest.mark.parametrize(("free", "said"), [(1 << 20, "922 KiB"), (0, "0 B")])
def test_no_context_fits(
    tiny_path: Path, load: Any, monkeypatch: pytest.MonkeyPatch, free: int, said: str
) -> None:
    monkeypatch.setattr(room, "memory_free", lambda: free)
    with pytest.raises(OutOfMemoryError, match=f"already with 256 tokens .* on CPU, and {said} may be used"):
        load(tiny_path, n_ctx="auto")


@pytest.mark.parametrize("refused", [True, False])
@pytest.mark.parametrize("arch", ["gemma3", "gemma3n"])
def test_a_cache_with_windows_is_counted_as_it_is(
    tiny: Any, load: Any, monkeypatch: pytest.MonkeyPatch, arch: str, refused: bool
) -> None:
    """More than memory if all layers had all positions, which they have not."""
    path = tiny(arch=arch)
    (cpu,) = memory_estimate(path, n_ctx=8192, budget=64).devices
    there = cpu.peak_tokens - cpu.weights - cpu.compute - refused
    monkeypatch.setattr("headkv_local._core.room.memory_total", lambda: there)
    if refused:
        with pytest.raises(OutOfMemoryError, match="8192 tokens take .* MiB of KV cache"):
            load(path, n_ctx=8192, retention=Retention(budget=64))
    else:
        assert load(path, n_ctx=8192, retention=Retention(budget=64)).n_ctx() == 8192


@pytest.mark.parametrize(("arch", "width"), [("llama", 1), ("gemma3n", 4)])
def test_hidden_states_of_a_panel(tiny: Any, load: Any, arch: str, width: int) -> None:
    """As wide as they are: Gemma 3n has four of them. At most a quarter GiB, whatever a batch is."""
    path, retention = tiny(arch=arch), Retention(budget=64, order="layers")
    row = 4 * width * load(path, n_ctx=512).n_embd()
    found = memory_estimate(path, n_ctx=N_CTX, n_prompt=N_PROMPT, retention=retention)
    assert found.hidden == row * N_PROMPT
    most = 256 << 20
    n = 2 * most // row
    found = memory_estimate(path, n_ctx=n, n_batch=n, retention=retention)
    assert most - 512 * row < found.hidden <= most


def test_on_a_device_two_layers_have_cells_and_hidden_states_lie_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ggml, "device_names", lambda: ["GPU0", "GPU1", "CPU"])
    monkeypatch.setattr(ggml, "host", lambda: 2)
    layers = [LayerShape(il, 4, 2, 100 * (il + 1)) for il in (0, 1, 2, 5)]

    def cells(*devices: int) -> tuple[list[int], int]:
        rows = _Rows.of(ModelShape.of(layers), np.array(devices, dtype=np.int32))
        return rows.cells_in_turns(10).tolist(), rows.reader

    assert cells(1, 1, 1, 1) == ([0, 2 * 10 * (300 + 600), 0], 1)  # of layers 2 and 5
    assert cells(2, 2, 2, 2) == ([0, 0, 2 * 10 * 600], 2)
    assert cells(0, 0, 1, 1) == ([2 * 10 * 200, 2 * 10 * 600, 0], 2)  # layers on two devices: one at a time


def test_a_prompt_without_room_to_be_read_once_more(tiny: Any) -> None:
    """The question selects then, with a draft, as it does without observe="all"."""
    again, once = (Retention(budget=64, window=8, observe=observe) for observe in ("all", 128))
    for n_room, same in ((127, True), (128, False)):
        settings = {"n_ctx": N_CTX, "n_prompt": N_CTX - n_room}
        found = [memory_estimate(tiny(), retention=retention, **settings) for retention in (again, once)]
        assert (found[0] == found[1]) == same
