"""Saved states: small, of one model, loaded by any process and with any n_batch."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest
from llama_cpp import LlamaDiskCache, LlamaRAMCache

from gguf_factory import write_adapter
from headkv_local import (
    ArchiveError,
    ArgumentError,
    Cancelled,
    Llama,
    OutOfMemoryError,
    Retention,
    StateError,
)
from headkv_local._core import states
from headkv_local._core.native.archive import hold, restore
from headkv_local.settings import KV_TYPES
from helpers import greedy, last_logits, no_room_on_disk, random_tokens

Load = Callable[..., Llama]
Tiny = Callable[..., Path]
TOKENS = random_tokens(600)
RETENTION = Retention(budget=32)
ROW = {"f16": 2 * 64 * 2, "q8_0": 2 * 64 // 32 * 34}
"""Bytes of K and V of one entry of one KV head."""
_EPSILON = "llama.attention.layer_norm_rms_epsilon"


@pytest.mark.parametrize("arch", ["llama", "gemma2", "granitehybrid"])
def test_rows_that_are_held_of_another_prompt(load: Load, tiny: Tiny, arch: str) -> None:
    """Of the same length, and with the same last tokens."""
    llm = load(tiny(arch=arch), retention=Retention(budget=32, archive="memory"))
    ctx, held, saved = int(llm.ctx), [], []
    for first in (TOKENS[:5], TOKENS[5:10]):
        llm.reset()
        llm.prefill([*first, *TOKENS[100:400]])
        held.append(hold(ctx))
        saved.append(llm.save_state(light=True))
    for i, state in enumerate(saved):
        llm.load_state(state)
        with pytest.raises(StateError, match="not of the compacted prompt"):
            restore(ctx, held[1 - i])
        assert llm.cache_stats().archive_tokens == 0
        restore(ctx, held[i])
        assert llm.cache_stats().archive_tokens == 305


@pytest.mark.parametrize("logits_all", [False, True])
def test_a_state_holds_what_is_used(load: Load, tiny_path: Path, logits_all: bool) -> None:
    llm = load(tiny_path, n_ctx=2048, retention=RETENTION, logits_all=logits_all)
    llm.prefill(TOKENS)
    scores = llm.scores[:600].nbytes if logits_all else 0
    assert len(pickle.dumps(llm.save_state())) < llm.cache_stats().resident_bytes + scores + 10_000


@pytest.mark.parametrize("retention", [None, RETENTION])
def test_a_state_of_another_batch_context_and_process(
    load: Load, tiny_path: Path, tmp_path: Path, retention: Retention | None
) -> None:
    program = f"""
import pickle, sys
from headkv_local import Llama, Retention
llm = Llama(sys.argv[1], n_ctx=1536, n_batch=64, flash_attn=True, n_threads=1, retention={retention!r})
llm.prefill({TOKENS})
pickle.dump(llm.save_state(), open(sys.argv[2], "wb"))
"""
    subprocess.run([sys.executable, "-c", program, str(tiny_path), str(tmp_path / "state")], check=True)
    state = pickle.loads((tmp_path / "state").read_bytes())
    same = load(tiny_path, n_ctx=1536, n_batch=64, flash_attn=True, retention=retention)
    same.prefill(TOKENS)
    wanted = greedy(same, 10)
    for arguments in ({"n_batch": 512}, {"n_batch": 16, "n_ctx": 768}, {"logits_all": True}):
        llm = load(tiny_path, flash_attn=True, retention=retention, **arguments)
        llm.load_state(state)
        read: list[int] = []
        llm.on_prefill = lambda done, total, read=read: read.append(total)  # type: ignore[misc]
        answer = llm.generate([*TOKENS, wanted[0]], temp=0.0)
        assert [next(answer) for _ in range(9)] == wanted[1:]
        assert max(read) < 10


def test_states_that_are_refused_leave_the_cache_alone(
    load: Load, tiny: Callable[..., Path], tiny_path: Path, tmp_path: Path
) -> None:
    llm = load(tiny_path, n_ctx=512, retention=RETENTION)
    llm.prefill(TOKENS[:300])
    mask = llm.retention_mask()

    def saved(path: Path, **arguments: Any) -> Any:
        other = load(path, flash_attn=True, **arguments)
        other.prefill(TOKENS)
        return other.save_state()

    def other_with_archive() -> Any:
        other = load(tiny_path, n_ctx=512, retention=Retention(budget=32, archive="memory"))
        other.prefill(TOKENS[:300])
        return other.save_state()

    unsigned, newer, cut = saved(tiny_path), saved(tiny_path), saved(tiny_path)
    del vars(unsigned)["headkv_made_by"]
    vars(newer)["headkv_made_by"]["version"] = 99
    cut.input_ids = cut.input_ids[:9]
    less = saved(tiny_path)
    less.n_tokens = -1
    short = other_with_archive()
    short.llama_state = bytes(short.llama_state)[:1000]
    adapter = str(write_adapter(tmp_path / "adapter.gguf", 1))
    stock, plain = llama_cpp.Llama(str(tiny_path), n_ctx=512, verbose=False), load(tiny_path, n_ctx=512)
    stock.eval(TOKENS[:100])
    plain.eval(TOKENS[:100])
    for state, sentence in (
        (saved(tiny(seed=5)), r"is of the model tiny \(\d+-llama.gguf\), not of tiny \(\d+-llama.gguf\)"),
        (saved(tiny(arch="qwen2")), r"is of the model tiny \(\d+-qwen2.gguf\)"),
        (saved(tiny_path), "holds 600 tokens, and the context has room for 512"),
        (stock.save_state(), "does not say which model it is of"),
        (unsigned, "does not say which model it is of"),
        (newer, "has format 99, and this version of headkv-local reads 2"),
        (saved(tiny_path, rope_freq_base=5000.0), "has rows of other RoPE settings"),
        (saved(tiny_path, rope_freq_scale=0.5), "has rows of other RoPE settings"),
        (saved(tiny_path, yarn_beta_fast=16.0), "has rows of yarn_beta_fast=16.0, and this Llama has 32.0"),
        (saved(tiny_path, kv_overrides={_EPSILON: 0.5}), f"has rows of kv_overrides={{.{_EPSILON}.: 0.5}}"),
        (saved(tiny_path, lora_path=adapter), "has rows of lora_path="),
        (plain.save_state(), "is of a cache that cannot be compacted, and this one can be: flash_attn"),
        (cut, "is damaged: it has 9 of its 600 tokens"),
        (less, "is damaged: it has 600 of its -1 tokens"),
        (short, r"is damaged: it has 1000 bytes, and its archive alone \d+"),
        (b"a file", "a bytes is no saved state"),
    ):
        with pytest.raises(StateError, match=f"^[^']*{sentence}"):
            llm.load_state(state)
        assert llm.n_tokens == 300
        assert np.array_equal(llm.retention_mask(), mask)
    with pytest.raises(StateError, match="is of a cache that can be compacted, and this one cannot be"):
        plain.load_state(llm.save_state())
    assert plain.n_tokens == 100


def test_a_state_of_settings_that_are_no_numbers(load: Load, tiny_path: Path) -> None:
    """YaRN's, which change nothing without it: NaN is not equal to itself."""
    llm = load(tiny_path, retention=RETENTION, yarn_beta_fast=float("nan"))
    llm.prefill(TOKENS[:300])
    state = llm.save_state()
    llm.reset()
    llm.load_state(state)
    assert llm.n_tokens == 300


@pytest.mark.parametrize("disk", [True, False])
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_cache_of_another_model_or_context_is_a_miss(
    load: Load, tiny: Callable[..., Path], tiny_path: Path, tmp_path: Path, disk: bool
) -> None:
    cache = LlamaDiskCache(str(tmp_path / "cache")) if disk else LlamaRAMCache()
    prompt: Any = TOKENS[:200]
    plain = [
        load(tiny_path, n_batch=64, retention=RETENTION),
        load(tiny_path, n_batch=512, retention=RETENTION),
        load(tiny(seed=5), retention=RETENTION),
        load(tiny_path, type_k=8, retention=RETENTION),
        load(tiny_path, n_ctx=256, retention=RETENTION),
    ]
    for llm in plain:
        wanted = llm.create_completion(prompt, max_tokens=10, temperature=0.0)["choices"][0]
        llm.reset()
        llm.set_cache(cache)
        assert llm.create_completion(prompt, max_tokens=10, temperature=0.0)["choices"][0] == wanted


def test_a_long_state_after_a_short_prompt_was_cancelled(load: Load, tiny_path: Path) -> None:
    """The room that was made for the prompt is no limit."""
    tokens = random_tokens(700, seed=1)
    other = load(tiny_path, flash_attn=True)
    other.prefill(tokens)
    state = other.save_state()
    llm = load(tiny_path, retention=Retention(budget=64))
    llm.prefill(random_tokens(700, seed=2))
    llm.on_prefill = lambda done, _: llm.cancel() if done == 0 else None
    with pytest.raises(Cancelled):
        llm.prefill(random_tokens(100, seed=3))
    llm.on_prefill = None
    llm.load_state(state)
    assert llm.n_tokens == 700
    assert len(greedy(llm, 3)) == 3


@pytest.mark.parametrize("kind", ["memory", "file"])
@pytest.mark.parametrize("cache", ["f16", "q8_0"])
def test_a_state_holds_its_archive(
    load: Load, tiny_path: Path, tmp_path: Path, kind: str, cache: str
) -> None:
    """A later turn chooses from all rows, also in another Llama; a light state is as small as ever."""
    arguments: dict[str, Any] = dict.fromkeys(("type_k", "type_v"), KV_TYPES[cache])

    def opened(name: str) -> Llama:
        where = "memory" if kind == "memory" else tmp_path / name
        return load(tiny_path, retention=Retention(budget=32, archive=where), **arguments)

    llm, turn = opened("one"), random_tokens(40, seed=4)
    llm.prefill(TOKENS)
    prompt = [*TOKENS, *greedy(llm, 3), *turn]
    state, light = (pickle.loads(pickle.dumps(llm.save_state(light=each))) for each in (False, True))
    n_bytes = state.llama_state_size - light.llama_state_size
    assert n_bytes == pytest.approx(600 * 2 * 2 * ROW[cache], rel=0.1)
    llm.prefill(prompt)
    wanted = llm.retention_mask(), last_logits(llm)

    other = opened("two")
    if kind == "file":
        with no_room_on_disk(5000), pytest.raises(ArchiveError):
            other.load_state(state)
        assert (other.n_tokens, other.cache_stats().compacted) == (0, False)
    for found in (llm, other):
        found.load_state(state)
        assert found.cache_stats().archive_tokens == 600
        found.prefill(prompt)
        assert np.array_equal(found.retention_mask(), wanted[0])
        assert np.array_equal(last_logits(found), wanted[1])

    other.load_state(light)
    assert (other.cache_stats().compacted, other.cache_stats().archive_tokens) == (True, 0)
    without = load(tiny_path, retention=RETENTION, **arguments)
    without.load_state(state)
    assert without.cache_stats().compacted
    without.eval(turn)
    assert without.n_tokens == 643


@pytest.mark.parametrize("kind", ["memory", "file"])
@pytest.mark.parametrize("arch", ["llama", "gemma3", "qwen35"])
def test_conversations_in_turns_without_a_copy(
    load: Load, tiny: Tiny, tmp_path: Path, arch: str, kind: str
) -> None:
    """Each goes on as if it had been alone; two of them have their beginning in common."""
    path = tiny(arch=arch)
    archive = "memory" if kind == "memory" else tmp_path / "archive"
    llm = load(path, retention=Retention(budget=32, archive=archive))
    prompts = [TOKENS, [*TOKENS[:400], *random_tokens(100, seed=5)], random_tokens(300, seed=6)]
    alone = [load(path, retention=Retention(budget=32, archive="memory")) for _ in prompts]
    held: list[Any] = [None] * 3
    for seed in (7, 8, 9):
        for i in (1, 2, 0):
            if held[i] is not None:
                llm.load_state(held[i])
                assert llm.cache_stats().archive_tokens > 0
                assert llm.n_tokens == alone[i].n_tokens
            for each in (llm, alone[i]):
                each.prefill(prompts[i])
            assert np.array_equal(llm.retention_mask(), alone[i].retention_mask())
            assert np.array_equal(last_logits(llm), last_logits(alone[i]))
            answer = greedy(llm, 4)
            assert greedy(alone[i], 4) == answer
            prompts[i] = [*prompts[i], *answer, *random_tokens(30, seed=seed)]
            held[i] = llm.save_state(hold=True)
            assert held[i].llama_state_size == llm.save_state(light=True).llama_state_size
    n_bytes = llm.cache_stats().archive_bytes
    held.clear()
    llm.reset()
    llm.prefill(prompts[2])
    assert llm.cache_stats().archive_bytes < n_bytes / 2


def test_a_state_that_holds_rows_is_of_one_llama(load: Load, tiny_path: Path) -> None:
    llm, other = (load(tiny_path, retention=Retention(budget=32, archive="memory")) for _ in range(2))
    llm.prefill(TOKENS)
    state = llm.save_state(hold=True)
    with pytest.raises(ArgumentError, match="one of them"):
        llm.save_state(light=True, hold=True)
    with pytest.raises(TypeError, match=r"save_state\(\) copies them"):
        pickle.dumps(state)
    other.prefill(TOKENS[:100])
    with pytest.raises(StateError, match="another Llama"):
        other.load_state(state)
    assert other.n_tokens == 100
    llm.reset()
    llm.retention = Retention(budget=32)
    llm.load_state(state)
    assert (llm.n_tokens, llm.cache_stats().compacted, llm.cache_stats().archive_tokens) == (600, True, 0)
    llm.reset()
    llm.retention = Retention(budget=32, archive="memory")
    llm.prefill(random_tokens(600, seed=2))
    llm.load_state(state)
    assert (llm.n_tokens, llm.cache_stats().archive_tokens) == (600, 0)
    assert len(greedy(llm, 3)) == 3


NO_ROOM = """
import resource, sys
from headkv_local import Llama, OutOfMemoryError, Retention
llm = Llama(sys.argv[1], n_ctx=4096, n_threads=1, retention=Retention(budget=3000, archive="memory"))
llm.prefill([token % 200 for token in range(3200)])
state, taken = llm.save_state(hold=True), []
llm.reset()
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (4 << 20), resource.RLIM_INFINITY))
try:
    while True:
        taken.append(bytearray(1 << 18))
except MemoryError:
    del taken[-4:]  # what Python itself needs
try:
    llm.load_state(state)
except OutOfMemoryError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
assert llm.n_tokens == 0
llm.load_state(state)
assert (llm.n_tokens, llm.cache_stats().archive_tokens) == (3200, 3200)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and sets RLIMIT_AS")
def test_no_memory_for_a_state(tiny: Tiny) -> None:
    """It is no fault of the state's, which is loaded once there is room."""
    program = [sys.executable, "-c", NO_ROOM, str(tiny(n_layer=10))]
    done = subprocess.run(program, capture_output=True, text=True, check=True)
    assert "there is no memory to load the state into" in done.stdout


def test_an_archive_that_does_not_fit_into_a_state(
    load: Load, tiny_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = load(tiny_path, retention=Retention(budget=32, archive="memory"))
    llm.prefill(TOKENS)
    monkeypatch.setattr(states, "memory_free", lambda: 100_000)
    with pytest.raises(OutOfMemoryError, match="leaves it out$"):
        llm.save_state()
    assert llm.save_state(light=True).n_tokens == 600


def test_a_prompt_of_a_light_session_that_became_a_state(load: Load, tiny: Tiny, tmp_path: Path) -> None:
    """What recurrent layers hold at its end is there: the same prompt once more is not read again."""
    llm = load(tiny(arch="qwen35"), retention=Retention(budget=32, archive="memory"))
    prompt = random_tokens(96)
    llm.prefill(prompt)
    llm.save_session(tmp_path / "light", light=True)
    llm.load_session(tmp_path / "light")
    state = llm.save_state()
    llm.prefill(random_tokens(40, seed=2))
    llm.load_state(state)
    llm.prefill(prompt)
    assert (llm.cache_stats().archive_tokens, llm.n_tokens) == (0, 96)
    assert len(greedy(llm, 3)) == 3
