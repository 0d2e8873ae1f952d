"""An archive: prompts that are read layer by layer, turns that are read against all rows, and going back."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest

from architectures import VARIANTS
from headkv_local import (
    ArchiveError,
    ArgumentError,
    Cancelled,
    HeadKVError,
    Llama,
    Retention,
    StateError,
    UnsupportedError,
)
from headkv_local.settings import KV_TYPES
from helpers import ends, forced_logits, greedy, greedy_logits, last_logits, random_tokens

Load = Callable[..., Llama]
Tiny = Callable[..., Path]

SETTINGS: dict[str, Any] = {
    "n_ctx": 768,
    "n_ubatch": 64,
    "n_batch": 128,
    "n_threads_batch": 1,
    "n_threads": 1,
}
TOKENS = random_tokens(700, seed=3)
PROMPT, TURN = TOKENS[:300], TOKENS[300:350]

NAMES = (
    "llama qwen2 qwen3 qwen3moe qwen3vl phi3 deci deci-without openelm "
    "gemma2 gemma3 gemma3n gemma4 gemma4-512 gemma4-shared gpt-oss cohere2 olmo2 llama4 "
    "qwen3next qwen35 qwen35moe lfm2 granitehybrid nemotron_h nemotron_h_moe-draft falcon-h1 jamba"
).split()
BOUNDED = NAMES[NAMES.index("gemma2") :]


def reading(
    load: Load, path: Path, order: str | None = None, archive: Any = "memory", **settings: Any
) -> Llama:
    kept = {name: settings.pop(name) for name in ("panel", "reselect", "observe") if name in settings}
    return load(
        path, retention=Retention(budget=64, archive=archive, order=order, **kept), **SETTINGS | settings
    )


def stock(load: Load, path: Path, parts: Sequence[list[int]], **settings: Any) -> Llama:
    """What was never compacted, and read these parts."""
    llm = load(path, flash_attn=True, swa_full=False, **SETTINGS | settings)
    for part in parts:
        llm.eval(part)
    return llm


@pytest.mark.parametrize("name", NAMES)
def test_both_orders_agree_to_the_bit(load: Load, tiny: Tiny, name: str) -> None:
    path = tiny(**VARIANTS[name])
    found = []
    for order in ("tokens", "layers"):
        llm = reading(load, path, order)
        llm.prefill(PROMPT)
        rows = [last_logits(llm), llm.retention_mask(), forced_logits(llm, TURN[:3])]
        llm.prefill([*PROMPT, *TURN])
        found.append([*rows, last_logits(llm), llm.retention_mask()])
    for by_tokens, by_layers in zip(*found, strict=True):
        assert np.array_equal(by_tokens, by_layers)


@pytest.mark.parametrize("kv", ["f16", "q8_0", "q4_0"])
@pytest.mark.parametrize(("n_ubatch", "panel"), [(64, None), (37, 185), (100, 50)])
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_whatever_the_types_and_batches(
    load: Load, tiny: Tiny, name: str, kv: str, n_ubatch: int, panel: int | None
) -> None:
    types = {"type_k": KV_TYPES[kv], "type_v": KV_TYPES[kv], "n_ubatch": n_ubatch, "n_batch": 3 * n_ubatch}
    found = []
    for order in ("tokens", "layers"):
        llm = reading(load, tiny(**VARIANTS[name]), order, panel=panel, **types)
        llm.prefill(PROMPT)
        found.append((last_logits(llm), llm.retention_mask()))
    assert all(np.array_equal(a, b) for a, b in zip(*found, strict=True))


# graniteswitch has a layer in its cache that it does not count
@pytest.mark.parametrize("name", [*NAMES, "graniteswitch"])
def test_a_later_turn_is_that_of_the_full_cache(load: Load, tiny: Tiny, name: str) -> None:
    """What was generated over kept rows is read again with the turn."""
    path = tiny(**VARIANTS[name])
    llm = reading(load, path)
    llm.prefill(PROMPT)
    later = [*greedy(llm, 5), *TURN]
    llm.prefill([*PROMPT, *later])
    wanted = stock(load, path, [PROMPT[:128], PROMPT[128:256], PROMPT[256:], later])
    assert np.array_equal(last_logits(llm), last_logits(wanted))
    stats = llm.cache_stats()
    assert (stats.prompt_tokens, stats.tail_tokens, stats.archive_tokens) == (355, 0, 355)
    assert ends(llm) == (355, 355, 355)


@pytest.mark.parametrize("where", ["memory", "file"])
def test_going_back_reads_nothing_before_the_cut(load: Load, tiny: Tiny, tmp_path: Path, where: str) -> None:
    """But what asks. Another continuation of a shared beginning, by prefill() and by generate()."""
    read: list[int] = []
    llm = reading(load, tiny(), archive=where if where == "memory" else tmp_path / "rows", observe=50)
    llm.prefill(PROMPT)
    greedy(llm, 4)
    llm.on_prefill = lambda done, total: read.append(total)
    other = [*PROMPT[:256], *TURN]
    llm.prefill(other)
    assert set(read) == {50}
    assert llm.reread_reason is None
    wanted = stock(load, tiny(), [PROMPT[:128], PROMPT[128:256], TURN])
    assert np.array_equal(last_logits(llm), last_logits(wanted))
    read.clear()
    third = [*other[:200], 1, 2, 3, *range(40)]
    next(llm.generate(third, temp=0))
    assert set(read) == {50}
    assert llm.cache_stats().prompt_tokens == len(third)
    read.clear()
    next(llm.generate(third, temp=0))  # the same once more
    assert not read


def test_an_earlier_prompt_is_asked_by_the_same_tokens(load: Load, tiny: Tiny, tmp_path: Path) -> None:
    kept = Retention(
        budget=32, archive="memory", draft=0
    )  # a draft's tokens may be nearly as likely as others
    llm = load(tiny(), retention=kept, **SETTINGS)
    llm.prefill(PROMPT)
    second = [*PROMPT, *greedy(llm, 4), *TURN]
    masks = {len(PROMPT): llm.retention_mask()}
    llm.prefill(second)
    masks[len(second)] = llm.retention_mask()
    for prompt in (PROMPT, second, [*second, *TOKENS[400:500]], second, PROMPT):
        llm.prefill(prompt)
        assert np.array_equal(llm.retention_mask(), masks.setdefault(len(prompt), llm.retention_mask()))
    llm.prefill(second)
    llm.save_session(tmp_path / "session")
    with Llama.open_session(tmp_path / "session") as other:
        for prompt in (PROMPT, second):
            other.prefill(prompt)
            assert np.array_equal(other.retention_mask(), masks[len(prompt)])


@pytest.mark.parametrize("name", ["gemma3", "gpt-oss", "qwen35", "falcon-h1"])
def test_all_layers_go_back_to_the_end_of_the_prompt(load: Load, tiny: Tiny, name: str) -> None:
    """From farther on than windows reach, by llama.cpp's own call, and to the bit."""
    llm = reading(load, tiny(**VARIANTS[name]))
    read: list[int] = []
    llm.on_prefill = lambda done, total: read.append(total)
    llm.prefill(PROMPT)
    read.clear()
    answer, found = greedy_logits(llm, 300)
    memory = llama_cpp.llama_get_memory(llm.ctx)
    assert not llama_cpp.llama_memory_seq_rm(memory, 0, 299, -1)
    assert llama_cpp.llama_memory_seq_rm(memory, 0, 300, -1)
    assert llama_cpp.llama_memory_seq_pos_max(memory, 0) == 299
    llm.n_tokens = 300
    assert np.array_equal(forced_logits(llm, answer[:70])[1:], found[1:71])
    llm.prefill(PROMPT)
    assert read == []
    assert np.array_equal(forced_logits(llm, answer[:70]), found[:71])


@pytest.mark.parametrize("name", ["gemma3", "qwen35"])
def test_what_cannot_go_back_is_read_whole(load: Load, tiny: Tiny, name: str) -> None:
    path = tiny(**VARIANTS[name])
    llm = reading(load, path)
    llm.prefill(PROMPT)
    other = [*PROMPT[:256], *TURN]
    llm.prefill(other)
    assert llm.reread_reason is not None
    again = reading(load, path)
    again.prefill(other)
    assert np.array_equal(last_logits(llm), last_logits(again))


def test_a_short_prompt_is_kept_whole_until_it_grows(load: Load, tiny: Tiny) -> None:
    llm = reading(load, tiny())
    llm.prefill(PROMPT[:40])
    assert not llm.cache_stats().compacted
    answer = greedy(llm, 4)
    later = [*PROMPT[:40], *answer, *TOKENS[400:600]]
    llm.prefill(later)
    assert llm.cache_stats().compacted
    assert llm.cache_stats().archive_tokens == 244
    wanted = stock(
        load, tiny(), [PROMPT[:40], *([token] for token in answer), TOKENS[400:528], TOKENS[528:600]]
    )
    assert np.array_equal(last_logits(llm), last_logits(wanted))


@pytest.mark.parametrize("name", ["llama", "gemma3", "qwen35"])
def test_a_cancelled_turn_leaves_what_was_there(load: Load, tiny: Tiny, name: str) -> None:
    llm = reading(load, tiny(**VARIANTS[name]))
    other = reading(load, tiny(**VARIANTS[name]))
    for one in (llm, other):
        one.prefill(PROMPT)
    answer = greedy(llm, 5)
    assert greedy(other, 5) == answer
    turn = [*PROMPT, *answer, *TOKENS[400:600]]
    for at in (1, 60, 160):
        llm.on_prefill = lambda done, total, at=at: llm.cancel() if done >= at else None
        with pytest.raises(Cancelled):
            llm.prefill(turn)
        assert ends(llm) == ends(other)
        assert np.array_equal(llm.retention_mask(), other.retention_mask())
        with pytest.raises(StateError, match="no logits"):
            llm.sample()
    llm.on_prefill = None
    assert np.array_equal(_after(llm), _after(other))
    for one in (llm, other):
        one.prefill(turn)
    assert np.array_equal(last_logits(llm), last_logits(other))


@pytest.mark.parametrize(
    "prompt",
    [
        [],
        [*PROMPT[:200], 9999],
        [*PROMPT[:200], *random_tokens(900)],
        [PROMPT[0] + 1, 9999],
        random_tokens(900, seed=4),
    ],
    ids=["no token", "unknown", "no room", "begins otherwise, unknown", "begins otherwise, no room"],
)
@pytest.mark.parametrize("archive", ["memory", None])
def test_a_turn_that_is_refused_leaves_what_was_there(
    load: Load, tiny: Tiny, archive: str | None, prompt: list[int]
) -> None:
    llm = reading(load, tiny(), archive=archive)
    llm.prefill(PROMPT)
    greedy(llm, 5)
    logits, n_archived = last_logits(llm), llm.cache_stats().archive_tokens
    for call in (llm.prefill, lambda tokens: next(llm.generate(tokens))):
        with pytest.raises(HeadKVError):
            call(prompt)
        assert ends(llm) == (305, 305, 305)
        assert llm.cache_stats().archive_tokens == n_archived
        assert np.array_equal(last_logits(llm), logits)


@pytest.mark.parametrize("name", ["llama", "gemma3", "qwen35"])
@pytest.mark.parametrize("reselect", [None, False])
def test_another_prompt_that_is_cancelled_leaves_what_was_there(
    load: Load, tiny: Tiny, name: str, reselect: bool | None
) -> None:
    """Also one that has no token of it. Read then, it is as if nothing had been there."""
    llm, other, new = (reading(load, tiny(**VARIANTS[name]), reselect=reselect) for _ in range(3))
    another = [PROMPT[0] + 1, *TOKENS[350:649]]  # as long as the one that is there, which asks nothing
    for one in (llm, other):
        one.prefill(PROMPT[:250])
        one.prefill(PROMPT)
    for at in (1, 150):
        llm.on_prefill = lambda done, total, at=at: llm.cancel() if done >= at else None
        with pytest.raises(Cancelled):
            llm.prefill(another)
        assert ends(llm) == ends(other) == (300, 300, 300)
        assert np.array_equal(llm.retention_mask(), other.retention_mask())
    llm.on_prefill = None
    assert np.array_equal(_after(llm), _after(other))
    for one in (llm, new):
        one.prefill(another)
    assert np.array_equal(llm.retention_mask(), new.retention_mask())
    assert np.array_equal(last_logits(llm), last_logits(new))
    assert llm._prompts.record.turns == new._prompts.record.turns


def _after(llm: Llama) -> Any:
    llm.eval(TURN[:1])
    return last_logits(llm)


def test_the_first_prompt_needs_one_layer(load: Load, tiny: Tiny) -> None:
    path = tiny(n_layer=12)
    whole, one = reading(load, path, "tokens", archive=None), reading(load, path)
    for llm in (whole, one):
        llm.prefill(TOKENS[:640])
    full, layer, kept = (whole.cache_stats().peak_bytes, one.cache_stats().peak_bytes, one.cache_stats())
    assert layer < 0.3 * full
    assert layer <= 1.05 * (640 * kept.row_bytes * 2 + kept.pool_bytes + kept.tail_bytes)


def test_without_an_archive_layers_can_be_the_order_too(load: Load, tiny: Tiny) -> None:
    llm = reading(load, tiny(), "layers", archive=None)
    llm.prefill(PROMPT)
    assert llm.cache_stats().archive_tokens == llm.cache_stats().archive_bytes == 0
    other = reading(load, tiny())
    other.prefill(PROMPT)
    assert np.array_equal(last_logits(llm), last_logits(other))
    llm.prefill([*PROMPT, *TURN])  # behind what was kept
    assert llm.cache_stats().tail_tokens == 50


def test_chosen_once_although_there_is_an_archive(load: Load, tiny: Tiny) -> None:
    llm = reading(load, tiny(), reselect=False)
    llm.prefill(PROMPT)
    mask = llm.retention_mask()
    llm.prefill([*PROMPT, *TURN])
    assert np.array_equal(llm.retention_mask(), mask)
    assert llm.cache_stats().tail_tokens == 50


def test_a_light_state_goes_on_without_the_archive(load: Load, tiny: Tiny) -> None:
    llm = reading(load, tiny())
    llm.prefill(PROMPT)
    state = llm.save_state(light=True)
    llm.load_state(state)
    assert llm.cache_stats().archive_tokens == 0
    llm.prefill([*PROMPT, *TURN])
    assert llm.cache_stats().tail_tokens == 50


@pytest.mark.parametrize(
    ("name", "reason"),
    [("plamo2", "its graph has no place to cut"), ("graniteswitch", "layer 0 needs what layer 2 computes")],
)
def test_a_graph_that_cannot_be_cut(
    load: Load, tiny: Tiny, name: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tiny(arch=name)
    with pytest.raises(UnsupportedError, match=f"layer by layer: {reason}"):
        reading(load, path, "layers").prefill(PROMPT)
    llm = reading(load, path)
    with caplog.at_level(logging.INFO, "headkv_local"):
        for prompt in (PROMPT, [*PROMPT, *TURN]):
            llm.prefill(prompt)
            assert llm.cache_stats().archive_tokens == len(prompt)
            said = [line for line in caplog.messages if "in the order of tokens" in line]
            assert len(said) == 1
            assert reason in said[0]
            caplog.clear()


def test_files_that_are_no_archive(load: Load, tiny: Tiny, tmp_path: Path) -> None:
    rows, other = tmp_path / "rows", tmp_path / "other"
    other.write_text("a letter")
    llm = reading(load, tiny(), archive=rows)
    for bad, reason in ((rows, "is in use"), (other, "is another file"), (tmp_path, "Is a directory")):
        with pytest.raises(ArchiveError, match=reason):
            reading(load, tiny(), archive=bad)
    assert other.read_text() == "a letter"
    llm.prefill(PROMPT)
    assert rows.stat().st_size >= llm.cache_stats().archive_bytes > 300 * 2 * 2 * 256
    rows.write_bytes(b"")
    with pytest.raises(ArchiveError, match="cut short"):
        llm.prefill([*PROMPT, *TURN])
    assert len(greedy_after(llm)) == 3  # from the kept rows
    llm.close()
    assert not rows.exists()


def greedy_after(llm: Llama) -> list[int]:
    llm.eval(TURN[:1])
    return greedy(llm, 3)


@pytest.mark.parametrize(
    "settings",
    [
        {"archive": ""},
        {"archive": 3},
        {"reselect": True},
        {"order": "rows"},
        {"panel": 0},
        {"archive": "memory", "reselect": 1},
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError):
        Retention(**settings)


_IN_LITTLE_MEMORY = """
import resource, sys
from headkv_local import Llama, OutOfMemoryError, Retention

model, archive, n_tokens = sys.argv[1], sys.argv[2], 2048
kept = Retention(budget=64, observe=16, archive=archive or None)
threads = {"n_threads": 2, "n_threads_batch": 2}
with Llama(model, n_ctx=n_tokens, n_batch=64, n_ubatch=64, retention=kept, **threads) as llm:
    llm.prefill([i * 7 % 250 for i in range(100)])
    llm.reset()
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    limit = int(status["VmData"].split()[0]) * 1024 + 20 * 2**20
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    try:
        llm.prefill([i * i % 250 for i in range(n_tokens)])
    except OutOfMemoryError as error:
        print("refused", llm.cache_stats().full_bytes >> 20, error)
    else:
        print("read", llm.cache_stats().archive_bytes >> 20, llm.cache_stats().compacted)
"""


@pytest.mark.parametrize(("archive", "said"), [("", "refused 48 "), ("rows", "read 48 True")])
def test_a_prompt_whose_cache_does_not_fit(tiny: Tiny, tmp_path: Path, archive: str, said: str) -> None:
    """The memory that may be written to has 20 MiB more, and the full cache is 48 MiB."""
    path = tiny(n_layer=48, n_ff=64)
    where = str(tmp_path / archive) if archive else ""
    command = [sys.executable, "-c", _IN_LITTLE_MEMORY, str(path), where]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.stdout.startswith(said), done.stdout + done.stderr


def test_no_logits_of_all_tokens(load: Load, tiny: Tiny) -> None:
    for kept in (Retention(archive="memory"), Retention(order="layers")):
        with pytest.raises(ArgumentError, match="logits_all"):
            load(tiny(), retention=kept, logits_all=True)
        llm = load(tiny(), retention=Retention(), logits_all=True)
        with pytest.raises(ArgumentError, match="logits_all"):
            llm.retention = kept


def test_a_prompt_shorter_than_the_window_after_a_compacted_one(load: Load, tiny: Tiny) -> None:
    llm = reading(load, tiny(), "tokens", archive="memory")
    llm.prefill(PROMPT)
    llm.prefill([*PROMPT[:2], 5])
    assert (llm.n_tokens, llm.cache_stats().prompt_tokens) == (3, 3)
    assert len(greedy(llm, 3)) == 3
