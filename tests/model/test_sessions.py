"""Sessions: what a Llama saved goes on in another one bit for bit, and nothing else does."""

from __future__ import annotations

import gc
import json
import os
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gguf_factory import write_adapter
from headkv_local import (
    ArchiveError,
    ArgumentError,
    Cancelled,
    HeadKVError,
    HeadScores,
    Llama,
    Retention,
    SessionError,
    StateError,
    UnsupportedError,
)
from headkv_local._core import sessions
from headkv_local._core.session_header import to_json
from helpers import greedy, greedy_logits, last_logits, random_tokens
from session_bytes import Session, mutant

Load = Callable[..., Llama]
Tiny = Callable[..., Path]
TOKENS = random_tokens(600)
ONE_THREAD = {"n_threads": 1, "n_threads_batch": 1}
RETENTION = Retention(budget=32, archive="memory", observe=64)
SCORES = HeadScores(scores=np.ones((2, 4)), n_head_kv=2, method="r", window=6, source={"seed": 3})
MESSAGES = [{"role": "user", "content": "Is it \ud800 or é?", "n": [1, None]}]


@pytest.fixture
def reopen() -> Any:
    """reopen(path, **arguments): Llama.open_session(), closed after the test."""
    opened: list[Llama] = []

    def opener(path: Path, **arguments: Any) -> Llama:
        opened.append(Llama.open_session(path, **(ONE_THREAD | arguments)))
        return opened[-1]

    yield opener
    for llm in opened:
        llm.close()


def read_by(llm: Llama, tokens: list[int]) -> int:
    """Tokens that a prompt is read for."""
    read: list[int] = [0]
    llm.on_prefill = lambda _, total: read.append(total)
    llm.prefill(tokens)
    llm.on_prefill = None
    return max(read)


def agree(saved: Llama, opened: Llama) -> None:
    """Logits, masks, and what there is in the cache."""
    assert np.array_equal(greedy_logits(saved, 4)[1], greedy_logits(opened, 4)[1])
    assert np.array_equal(saved.retention_mask(), opened.retention_mask())
    both = [llm.cache_stats() for llm in (saved, opened)]
    assert len({(s.prompt_tokens, s.tail_tokens, s.archive_tokens, s.policy, s.compacted) for s in both}) == 1


@pytest.mark.parametrize("arch", ["llama", "gemma3", "qwen35"])
@pytest.mark.parametrize("kind", [1, 8])
@pytest.mark.parametrize("archive", [None, "memory", "file", "layers"])
def test_all_goes_on_bit_for_bit(
    load: Load, tiny: Tiny, reopen: Load, tmp_path: Path, arch: str, kind: int, archive: str | None
) -> None:
    where = {"file": tmp_path / "rows", "layers": None}.get(archive or "", archive)
    retention = replace(RETENTION, archive=where, order="layers" if archive == "layers" else None)
    saved = load(tiny(arch=arch), retention=retention, type_k=kind, type_v=kind, n_batch=96)
    saved.prefill(TOKENS)
    greedy(saved, 70)  # also what a sliding window holds goes round
    saved.save_session(tmp_path / "a.session", messages=MESSAGES)
    if archive == "file":
        (tmp_path / "rows").unlink()  # whose name is needed for the other one
    opened = reopen(tmp_path / "a.session")
    assert opened.session_messages == MESSAGES
    assert opened.retention == saved.retention
    agree(saved, opened)

    turn = [*saved.input_ids[: saved.n_tokens].tolist(), *random_tokens(40, seed=1)]
    assert read_by(opened, turn) == read_by(saved, turn) < len(TOKENS)
    agree(saved, opened)
    back = [*TOKENS[:450], *random_tokens(100, seed=2)]
    assert read_by(opened, back) == read_by(saved, back)
    agree(saved, opened)
    (tmp_path / "b.session").write_bytes(b"")
    opened.save_session(tmp_path / "b.session")
    agree(opened, reopen(tmp_path / "b.session", retention=replace(retention, archive=archive and "memory")))


@pytest.mark.parametrize("arch", ["llama", "gemma3", "qwen35"])
def test_the_same_prompt_once_more(load: Load, tiny: Tiny, reopen: Load, tmp_path: Path, arch: str) -> None:
    saved = load(tiny(arch=arch), retention=replace(RETENTION, archive=None))
    saved.prefill(TOKENS)
    wanted = last_logits(saved)
    answer = greedy(saved, 5)
    saved.save_session(tmp_path / "a")
    opened = reopen(tmp_path / "a")
    assert read_by(opened, TOKENS) == 0 or not opened._bounded.reaches(600)
    if arch != "gemma3":  # its windows have nothing to go back to, saved or not
        assert np.array_equal(last_logits(opened), wanted)
        assert greedy(opened, 5) == answer
    assert read_by(saved, TOKENS) == read_by(opened, TOKENS)


@pytest.mark.parametrize("retention", [None, Retention(budget=32)])
@pytest.mark.parametrize("way", ["open_session", "load_session", "load_state"])
def test_logits_that_were_not_saved(
    load: Load, tiny_path: Path, reopen: Load, tmp_path: Path, way: str, retention: Retention | None
) -> None:
    """Of the answer's tokens they go on; where those of the prompt are asked for too, it is read anew."""
    text = "The quick brown fox jumps over the lazy dog near the river bank. " * 4
    asked = {"prompt": text, "logprobs": 1, "max_tokens": 2, "temperature": 0.0}
    same = load(tiny_path, logits_all=True, retention=retention, flash_attn=True)
    saved = load(tiny_path, retention=retention, flash_attn=True)
    saved.prefill(saved.tokenize(text.encode()))
    saved.save_session(tmp_path / "a")
    if way == "open_session":
        opened = reopen(tmp_path / "a", logits_all=True)
    else:
        opened = load(tiny_path, logits_all=True, retention=retention, flash_attn=True)
        getattr(opened, way)(tmp_path / "a" if way == "load_session" else saved.save_state())
    for echo, reason in ((False, ""), (True, "the logits of all its tokens are asked for")):
        found, wanted = (
            llm.create_completion(**asked, echo=echo)["choices"][0]["logprobs"]["token_logprobs"]
            for llm in (opened, same)
        )
        assert found == pytest.approx(wanted, abs=0.1)  # other batches add up otherwise
        assert reason in (opened.reread_reason or "")
        assert bool(opened.reread_reason) is echo


@pytest.mark.parametrize("retention", [RETENTION, None])
@pytest.mark.parametrize("arch", ["llama", "gemma3", "qwen35"])
def test_a_short_prompt(
    load: Load, tiny: Tiny, reopen: Load, tmp_path: Path, arch: str, retention: Retention | None
) -> None:
    saved = load(tiny(arch=arch), retention=retention, flash_attn=True, n_ctx=4096)
    saved.prefill(TOKENS[:30])
    greedy(saved, 3)
    saved.save_session(tmp_path / "a")
    opened = reopen(tmp_path / "a")
    agree(saved, opened)
    if retention is not None:
        assert opened.cache_stats().resident_bytes == saved.cache_stats().resident_bytes
    turn = [*saved.input_ids[: saved.n_tokens].tolist(), *random_tokens(300, seed=1)]
    assert read_by(opened, turn) == read_by(saved, turn) < 301
    agree(saved, opened)


def test_a_light_session(load: Load, tiny: Tiny, reopen: Load, tmp_path: Path) -> None:
    saved = load(tiny(n_layer=8), retention=replace(RETENTION, budget=128), n_ctx=2048)
    saved.prefill(random_tokens(1500))
    stats = saved.cache_stats()
    saved.save_session(tmp_path / "light", light=True, messages=MESSAGES)
    assert (tmp_path / "light").stat().st_mode & 0o777 == 0o600  # a conversation is nobody else's
    assert (tmp_path / "light").stat().st_size < 1.1 * stats.kept_bytes
    saved.save_session(tmp_path / "whole")
    assert (tmp_path / "whole").stat().st_size > stats.archive_bytes * 0.9
    opened = reopen(tmp_path / "light")
    assert opened.cache_stats().archive_tokens == 0
    assert np.array_equal(greedy_logits(saved, 5)[1], greedy_logits(opened, 5)[1])
    turn = [*saved.input_ids[:1505].tolist(), *random_tokens(20, seed=1)]
    assert read_by(opened, turn) == 20
    assert read_by(opened, random_tokens(400, seed=2)) == 400
    assert opened.cache_stats().archive_tokens == 400  # later prompts are archived again


def test_a_light_session_after_a_turn_that_was_cancelled(
    load: Load, tiny: Tiny, reopen: Load, tmp_path: Path
) -> None:
    """Its prompt once more is not read again, though windows cannot go back and logits were lost."""
    saved = load(tiny(arch="gemma3"), retention=RETENTION)
    saved.prefill(TOKENS)
    wanted = last_logits(saved)
    saved.on_prefill = lambda done, _: saved.cancel() if done > 0 else None
    with pytest.raises(Cancelled):
        saved.prefill([*TOKENS, *TOKENS[:80]])
    saved.save_session(tmp_path / "light", light=True)
    opened = reopen(tmp_path / "light")
    assert read_by(opened, TOKENS) == 0
    assert np.array_equal(last_logits(opened), wanted)


def test_other_settings_and_a_model_that_has_moved(
    load: Load, tiny: Tiny, reopen: Load, tmp_path: Path
) -> None:
    model = tiny(arch="gemma3").rename(tmp_path / "old.gguf")
    saved = load(model, retention=RETENTION, n_batch=64, n_ubatch=64, n_ctx=768)
    saved.prefill(TOKENS)
    saved.save_session(tmp_path / "a")
    moved = model.rename(tmp_path / "new.gguf")
    try:
        with pytest.raises(HeadKVError, match="Model path does not exist"):
            reopen(tmp_path / "a")
        opened = reopen(tmp_path / "a", model_path=moved, n_ctx=2048, n_batch=256, n_ubatch=256)
        assert opened.n_ctx() == 2048
        turn = [*TOKENS, *random_tokens(30, seed=1)]
        assert read_by(opened, turn) == read_by(saved, turn)
        assert np.allclose(last_logits(opened), last_logits(saved), atol=1e-3)
        plain = reopen(tmp_path / "a", model_path=moved, retention=Retention(budget=32))
        assert plain.cache_stats().archive_tokens == 0
        assert len(greedy(plain, 3)) == 3
    finally:
        moved.rename(model).rename(tiny(arch="gemma3"))


def test_a_link_to_a_session_stays(load: Load, tiny: Tiny, reopen: Load, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "link").symlink_to("other/a")
    llm = load(tiny(), retention=RETENTION)
    for n in (10, 20):
        llm.reset()
        llm.eval(TOKENS[:n])
        llm.save_session(tmp_path / "link")
        assert (tmp_path / "link").is_symlink()
        assert reopen(tmp_path / "other" / "a").n_tokens == n
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "other"]


def test_the_name_of_a_link_to_the_model_stays(load: Load, tiny: Tiny, reopen: Load, tmp_path: Path) -> None:
    """What belongs to a model stands beside its link: parts of a split one, head scores."""
    link = tmp_path / "link.gguf"
    link.symlink_to(tiny())
    llm = load(link, retention=RETENTION)
    llm.eval(TOKENS[:10])
    llm.save_session(tmp_path / "a")
    assert reopen(tmp_path / "a").model_path == str(link)


@pytest.mark.parametrize(
    "retention",
    [
        Retention(budget="10%", window=5, kernel=3, beta=1.5, sinks=2),
        Retention(caps=np.full((2, 2), 40), order="tokens", archive="memory", reselect=False, panel=64),
        Retention(scores=np.arange(1, 9).reshape(2, 4)),
        Retention(scores="uniform", fold=64),
        Retention(scores=SCORES),
        Retention(
            budget=np.int64(64),  # type: ignore[arg-type]
            beta=np.float32(1.5),  # type: ignore[arg-type]
            scores=replace(SCORES, n_head_kv=np.int64(2), beta=np.float32(2), source={"seed": np.int64(3)}),
        ),
        Retention(fold=None),
        None,
    ],
)
def test_settings_are_those_that_were_given(
    load: Load, tiny_path: Path, reopen: Load, tmp_path: Path, retention: Retention | None
) -> None:
    saved = load(tiny_path, retention=retention, flash_attn=True, rope_freq_base=5000.0, seed=7)
    saved.prefill(TOKENS)
    saved.save_session(tmp_path / "a")
    opened = reopen(tmp_path / "a")
    if retention is not None and isinstance(retention.scores, HeadScores):
        assert opened.retention is not None
        assert isinstance(opened.retention.scores, HeadScores)
        assert vars(opened.retention.scores)["source"] == retention.scores.source
    else:
        assert opened.retention == retention
    assert opened.scores_from == saved.scores_from
    assert opened._seed == 7
    agree(saved, opened)


def test_the_seed_is_the_one_that_is_given(load: Load, tiny_path: Path, tmp_path: Path) -> None:
    """Else the session's."""
    saved = load(tiny_path, retention=Retention(budget=32), seed=7)
    saved.prefill(TOKENS)
    saved.save_session(tmp_path / "a")
    with Llama.open_session(tmp_path / "a", seed=9) as opened:
        assert opened._seed == 9
    other = load(tiny_path, retention=Retention(budget=32), seed=5)
    other.load_session(tmp_path / "a")
    assert other._seed == 7


def test_files_that_are_named_from_another_folder(
    load: Load, tiny_path: Path, reopen: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    SCORES.to_sidecar(tmp_path / "scores.gguf")
    write_adapter(tmp_path / "adapter.gguf", seed=1)
    monkeypatch.chdir(tmp_path)
    kept = Retention(budget=32, scores="scores.gguf", archive="rows")
    with load(tiny_path, retention=kept, lora_path=Path("adapter.gguf")) as saved:
        saved.prefill(TOKENS)
        logits = last_logits(saved)
        saved.save_session("a")
    monkeypatch.chdir("/")
    opened = reopen(tmp_path / "a")
    assert opened.retention == kept
    assert np.array_equal(opened._contents.logits(), logits)


def test_an_empty_path_of_an_adapter_is_none(
    load: Load, tiny_path: Path, reopen: Load, tmp_path: Path
) -> None:
    saved, other = load(tiny_path, retention=RETENTION, lora_path=""), load(tiny_path, retention=RETENTION)
    saved.prefill(TOKENS[:200])
    saved.save_session(tmp_path / "a")
    other.load_state(saved.save_state())
    other.load_session(tmp_path / "a")
    agree(saved, reopen(tmp_path / "a"))


def test_rows_that_were_made_otherwise(load: Load, tiny_path: Path, reopen: Load, tmp_path: Path) -> None:
    """By another adapter, or with other metadata: a Llama that is there does not go on over them."""
    one, two = (write_adapter(tmp_path / f"{seed}.gguf", seed) for seed in (1, 2))
    other_eps = {"llama.attention.layer_norm_rms_epsilon": 0.5}

    def llama(**settings: Any) -> Llama:
        llm = load(tiny_path, retention=RETENTION, **{key: value for key, value in settings.items() if value})
        llm.prefill(TOKENS[:200])
        return llm

    with_one = {"lora_path": str(one), "lora_scale": 0.5}
    saved = {
        name: llama(**settings)
        for name, settings in (
            ("bare", {}),
            ("one", with_one),
            ("kv", {"kv_overrides": other_eps}),
            ("yarn", {"yarn_beta_fast": 16.0}),
        )
    }
    for name, llm in saved.items():
        llm.save_session(tmp_path / name)
        agree(llm, reopen(tmp_path / name))
    cases = (
        ("one", {}, f"lora_path='{one}', and this Llama has None"),
        ("one", {"lora_path": str(two), "lora_scale": 0.5}, f"lora_path='{one}', and this Llama has '{two}'"),
        ("one", {"lora_path": str(one), "lora_scale": 0.25}, "lora_scale=0.5, and this Llama has 0.25"),
        ("bare", with_one, f"lora_path=None, and this Llama has '{one}'"),
        ("kv", {}, "kv_overrides={'llama.attention.layer_norm_rms_epsilon': 0.5}, and this Llama has None"),
        ("yarn", {}, "yarn_beta_fast=16.0, and this Llama has 32.0"),
    )
    for name, settings, words in cases:
        with load(tiny_path, retention=RETENTION, **settings) as llm:
            llm.prefill(TOKENS[:50])
            with pytest.raises(SessionError) as raised:
                llm.load_session(tmp_path / name)
            assert str(raised.value) == f"the session {tmp_path / name} has rows of {words}"
            assert llm.n_tokens == 50
    there = reopen(tmp_path / "one")
    moved = one.rename(tmp_path / "moved.gguf")
    agree(there, reopen(tmp_path / "one", lora_path=str(moved)))
    two.rename(one)
    with pytest.raises(SessionError, match=r"with the weights fnv1a-\w+, which has fnv1a-\w+ now"):
        reopen(tmp_path / "one")


def test_the_weights_are_those_that_were_loaded(load: Load, tiny: Tiny, reopen: Load, tmp_path: Path) -> None:
    """Whatever has the model's name when the session is saved."""
    path = tmp_path / "model.gguf"
    for other in (tiny(seed=5), None):
        shutil.copy(tiny(), path)
        saved = load(path, retention=RETENTION)
        saved.prefill(TOKENS[:200])
        path.unlink()
        if other is not None:
            shutil.copy(other, path)
        saved.save_session(tmp_path / "a")
        with pytest.raises(HeadKVError, match="weights differ" if other else "does not exist"):
            reopen(tmp_path / "a")
        agree(saved, reopen(tmp_path / "a", model_path=tiny()))


@pytest.mark.parametrize("archive", ["memory", None])
def test_another_question_about_the_same_prompt(
    load: Load, tiny_path: Path, reopen: Load, tmp_path: Path, archive: str | None
) -> None:
    saved = load(tiny_path, retention=replace(RETENTION, archive=archive))
    saved.prefill(TOKENS, question=slice(0, 20))
    saved.save_session(tmp_path / "a")
    mask = saved.retention_mask()
    opened = reopen(tmp_path / "a")
    read: list[int] = []
    opened.on_prefill = lambda _, total: read.append(total)
    opened.prefill(TOKENS, question=slice(0, 20))
    assert read == []
    assert np.array_equal(opened.retention_mask(), mask)
    for llm in (opened, saved):
        llm.prefill(TOKENS, question=slice(40, 60))
        assert not np.array_equal(llm.retention_mask(), mask)
    assert np.array_equal(opened.retention_mask(), saved.retention_mask())


@pytest.fixture
def no_garbage() -> Any:
    """Of other tests, which is not to be collected in the depths of what is nested."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize(
    ("settings", "error", "sentence"),
    [
        ({"rope_freq_scale": -1.0}, UnsupportedError, "has RoPE settings that no session can hold"),
        ({"rope_freq_base": float("inf")}, UnsupportedError, "has RoPE settings that no session can hold"),
        ({"rope_scaling_type": -7}, ArgumentError, "session cannot hold: rope_scaling_type cannot be -7"),
        ({"rope_scaling_type": 2**31}, ArgumentError, "session cannot hold: rope_scaling_type cannot be"),
        (
            {"yarn_beta_fast": float("nan")},
            ArgumentError,
            "session cannot hold: yarn_beta_fast cannot be nan",
        ),
    ],
)
def test_what_could_not_be_opened_is_not_saved(
    load: Load, tiny_path: Path, tmp_path: Path, settings: dict[str, Any], error: type, sentence: str
) -> None:
    """llama.cpp takes these settings."""
    llm = load(tiny_path, n_ctx=512, retention=RETENTION, **settings)
    llm.prefill(TOKENS[:300])
    with pytest.raises(error, match=f"^[^.]* {sentence}"):
        llm.save_session(tmp_path / "a")
    assert not any(tmp_path.iterdir())
    assert llm.retention_mask().shape[-1] == 300


@pytest.mark.usefixtures("no_garbage")
def test_bad_files_and_calls_are_refused_and_leave_the_context(
    load: Load, tiny: Tiny, tiny_path: Path, tmp_path: Path
) -> None:
    llm = load(tiny_path, n_ctx=512, retention=RETENTION)
    with pytest.raises(StateError, match="nothing to save"):
        llm.save_session(tmp_path / "a")
    llm.prefill(TOKENS[:300])
    mask = llm.retention_mask()
    for messages in ("text" * 99, {"role": "user"}, [1], [{"role": {1}}], [{"x": float("nan")}]):
        with pytest.raises(ArgumentError, match="message") as refused:
            llm.save_session(tmp_path / "a", messages=messages)  # type: ignore[arg-type]
        assert len(str(refused.value)) < 150
    llm.on_prefill = lambda _, __: llm.save_session(tmp_path / "a")
    with pytest.raises(StateError, match="in a callback"):
        llm.prefill([*TOKENS[:200], *random_tokens(50, seed=1)])
    llm.on_prefill = None
    assert np.array_equal(llm.retention_mask(), mask)
    (tmp_path / "other").write_bytes(b"precious")
    for path in (tiny_path, tmp_path / "other", tmp_path, tmp_path / "no" / "folder", "", "a\0b"):
        with pytest.raises(SessionError):
            llm.save_session(path)
    assert (tmp_path / "other").read_bytes() == b"precious"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other"]

    def saved(path: Path = tiny_path, **arguments: Any) -> bytes:
        other = load(path, **({"retention": RETENTION} | arguments))
        other.prefill(TOKENS[:400])
        other.save_session(tmp_path / "a")
        return (tmp_path / "a").read_bytes()

    good = saved()
    session = Session.of(good)
    long = load(tiny_path, retention=RETENTION)
    long.prefill(TOKENS)
    long.save_session(tmp_path / "long")
    os.mkfifo(tmp_path / "fifo")
    deep, nan = b"[" * 10**6, json.dumps(session.header | {"seed": float("nan")}).encode()
    odd_turns: list[Any] = [7, [400], [100, 101], [9**9, 1], [400, -1], [400.0, 1], [True, 0], "ab"]

    odd_parts: list[Any] = [7, [0, 9], [9, 9, 1.0], [0, 401, 1.0], [-1, 9, 1.0], [0, 9, 1.5], [0, 9, True]]
    odd_overrides: list[Any] = [
        {"a": None},
        {"a": [1]},
        {"a": 2**63},
        {"": 1},
        {"a": "\ud800"},
        {"a" * 128: 1},
    ]

    def saying(part: str, name: str, value: object) -> bytes:
        return json.dumps(session.header | {part: session.header[part] | {name: value}}).encode()

    cases: list[tuple[bytes | Path, str]] = [
        (saved(tiny(seed=5)), r"is of the model tiny \(.*\), not of tiny"),
        (saved(type_k=8), r"has rows of type_k=q8_0, and this context has f16"),
        ((tmp_path / "long").read_bytes(), "holds 600 tokens, and the context has room for 512"),
        (good[:16] + b"\1" + good[17:], "has format 1, and this version of headkv-local reads 3"),
        (good[:16] + b"\x63" + good[17:], "has format 99, and this version of headkv-local reads 3"),
        (session.saying(n_tokens=0).to_bytes(), "'about' says what cannot be"),
        (session.saying(n_prompt=401).to_bytes(), "'about' says what cannot be"),
        (session.saying(type_k=999).to_bytes(), "'about' says what cannot be"),
        (session.change(b"about", lambda x: x[:-1]).to_bytes(), "'about' is not what it should be"),
        (session.change(b"about", lambda x: x[:30]).to_bytes(), "'about' is not what it should be"),
        (session.to_bytes(b'{"a": 1}\0'), "its header is no text"),
        (session.to_bytes(b'{"a": "\xff"}'), "no JSON of ours"),
        (b"", "does not begin as a session does"),
        (tiny_path.read_bytes(), "does not begin as a session does"),
        (good[:-1], "cut short"),
        (good + b"\0", "cut short"),
        (good[:28] + b"\xff\xff\xff\x7f" + good[32:], "cut short"),
        (good[:-9] + bytes([good[-9] ^ 1]) + good[-8:], "the checksum of its section 'end'"),
        (session.to_bytes(deep), "no JSON of ours"),
        (session.to_bytes(nan), "no JSON of ours"),
        (session.to_bytes(b"[]"), "no JSON object"),
        *((session.to_bytes(saying("prompt", "turns", [x])), "turns cannot hold") for x in odd_turns),
        *((session.to_bytes(saying("prompt", "question", [x])), "question cannot hold") for x in odd_parts),
        *(
            (session.to_bytes(saying("context", "kv_overrides", x)), "kv_overrides cannot hold")
            for x in odd_overrides
        ),
        (tmp_path, "is not a file"),
        (tmp_path / "fifo", "is not a file"),
        (tmp_path / "missing", "No such file"),
    ]
    for data, sentence in cases:
        path = data if isinstance(data, Path) else tmp_path / "bad"
        if isinstance(data, bytes):
            path.write_bytes(data)
        with pytest.raises(SessionError, match=sentence) as raised:
            llm.load_session(path)
        assert raised.value.damaged == (" is damaged: " in str(raised.value))
        assert "\n" not in str(raised.value)
        assert llm.n_tokens == 300
        assert np.array_equal(llm.retention_mask(), mask)
    no_flash = load(tiny_path)
    no_flash.prefill(TOKENS[:10])
    with pytest.raises(UnsupportedError):
        no_flash.save_session(tmp_path / "a")
    llm.close()
    with pytest.raises(StateError, match="closed"):
        llm.save_session(tmp_path / "a")


def test_rows_that_are_no_numbers(load: Load, tiny_path: Path, tmp_path: Path) -> None:
    """Of one head they are not noticed when they are read; what selects gets through."""
    llm = load(tiny_path, retention=RETENTION)
    llm.prefill(TOKENS)
    llm.save_session(tmp_path / "a")
    session = Session.of((tmp_path / "a").read_bytes())

    def change(rows: bytes) -> bytes:  # K of one head, some positions, in the last layer
        changed = np.frombuffer(rows, dtype="<u2").copy()
        keys = changed[256 * 2 * 128 :][: 256 * 128].reshape(256, 2, 64)
        keys[100:140, 0] = 0x7E00
        return changed.tobytes()

    (tmp_path / "a").write_bytes(session.change(b"rows", change).to_bytes())
    llm.load_session(tmp_path / "a")
    llm.prefill([*TOKENS, *random_tokens(30, seed=1)])
    assert llm.cache_stats().kept.sum() == 32 * 4
    llm.prefill(random_tokens(300, seed=2))
    assert len(greedy(llm, 3)) == 3


@pytest.mark.parametrize("arch", ["llama", "gemma3", "qwen35"])
def test_mutants(load: Load, tiny: Tiny, tmp_path: Path, arch: str) -> None:
    """Whatever a file says: a sentence or a context that computes, and the next prompt is as ever."""
    retention = replace(RETENTION, fold=64)
    llm = load(tiny(arch=arch), n_ctx=512, n_batch=64, n_ubatch=64, retention=retention)
    prompt, path, good = random_tokens(120, seed=9), tmp_path / "a", []
    llm.prefill(prompt)
    wanted = greedy(llm, 2)
    for n, light, n_answer in ((300, False, 3), (300, False, 50), (300, True, 50), (20, False, 3)):
        llm.prefill(random_tokens(n))
        assert len(greedy(llm, n_answer)) == n_answer  # of 50 the last ones are recorded for a fold
        llm.save_session(path, light=light)
        good.append(path.read_bytes())
    rng = random.Random(1)
    n_refused = 0
    for i in range(120):
        path.write_bytes(mutant(rng.choice(good), rng))
        try:
            llm.load_session(path)
        except SessionError:
            n_refused += 1
        else:
            greedy(llm, 1)
            with suppress(HeadKVError):
                llm.prefill([*llm.input_ids[: llm.n_tokens].tolist(), *prompt[:20]])
        if i % 10 == 0:
            llm.prefill(prompt)
            assert greedy(llm, 2) == wanted
    assert n_refused > 60


def test_a_failing_write_leaves_the_old_file(load: Load, tiny_path: Path, tmp_path: Path) -> None:
    llm = load(tiny_path, retention=replace(RETENTION, archive=tmp_path / "rows"))
    llm.prefill(TOKENS)
    path = tmp_path / "a"
    llm.save_session(path)
    before, wanted = path.read_bytes(), last_logits(llm)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for n_bytes in (0, 19, 100, 5000, 200_000, len(before) - 1):
        resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, limits[1]))
        try:
            with pytest.raises(SessionError, match="a cannot be written: File too large"):
                llm.save_session(path)
            with pytest.raises(ArchiveError, match="cannot be written"):  # its rows go to a file again
                llm.load_session(path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        llm.load_session(path)
        assert np.array_equal(last_logits(llm), wanted)
    assert path.read_bytes() == before
    os.truncate(tmp_path / "rows", 9000)
    with pytest.raises(ArchiveError, match="cut short"):
        llm.save_session(path)
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "rows"]
    assert len(greedy(llm, 3)) == 3


def test_a_killed_process_leaves_the_old_file(tiny_path: Path, tmp_path: Path) -> None:
    """Killed by the system in the middle of a write, of the first sections and of the last one."""
    path = tmp_path / "a"
    program = f"""
import resource, signal, sys
from headkv_local import Llama, Retention
llm = Llama({str(tiny_path)!r}, n_ctx=1024, n_threads=1, retention=Retention(budget=32, archive="memory"))
llm.prefill({TOKENS})
llm.save_session({str(path)!r}, messages=[{{"role": "first"}}])
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
n = int(sys.argv[1])
if n < 0:
    import os
    n += os.path.getsize({str(path)!r})
resource.setrlimit(resource.RLIMIT_FSIZE, (n, n))
llm.save_session({str(path)!r}, messages=[{{"role": "other"}}])
"""
    for n_bytes in (2000, -4):
        run = subprocess.run([sys.executable, "-c", program, str(n_bytes)], timeout=120, check=False)
        assert run.returncode == -signal.SIGXFSZ
        with Llama.open_session(path, **ONE_THREAD) as llm:
            assert llm.session_messages == [{"role": "first"}]
            assert llm.n_tokens == 600
        if has_nameless_files(tmp_path):
            assert [one.name for one in tmp_path.iterdir()] == ["a"]


def has_nameless_files(folder: Path) -> bool:
    try:
        os.close(os.open(folder, os.O_TMPFILE | os.O_RDWR))
    except (AttributeError, OSError):
        return False
    return True


def test_lengths_that_no_file_has(load: Load, tiny_path: Path, tmp_path: Path) -> None:
    """A section's length is believed for what the file has, not for what memory would be asked for."""
    llm = load(tiny_path, retention=RETENTION)
    llm.prefill(TOKENS)
    llm.save_session(tmp_path / "a")
    good = (tmp_path / "a").read_bytes()
    at = good.index(b"tokens\0\0") + 8
    for length in (2**64 - 1, 2**63, 2**32, len(good), 2400 + 8):
        (tmp_path / "a").write_bytes(good[:at] + struct.pack("<Q", length) + good[at + 8 :])
        with pytest.raises(SessionError, match="is damaged"):
            llm.load_session(tmp_path / "a")


def test_who_cancels_a_session_keeps_the_earlier_one(
    load: Load, tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = load(tiny_path, retention=RETENTION)
    llm.prefill(TOKENS)
    path = tmp_path / "a"
    llm.save_session(path)
    before = path.read_bytes()
    llm.eval([1, 2, 3])
    monkeypatch.setattr(sessions, "to_json", lambda *of: (llm.cancel(), to_json(*of))[1])
    with pytest.raises(Cancelled):  # in what is written
        llm.save_session(path)
    monkeypatch.undo()
    assert [one.name for one in tmp_path.iterdir()] == ["a"]
    llm.cancel()  # nothing runs: it is meant for nothing that comes later
    assert path.read_bytes() == before
    llm.load_session(path)
    assert llm.n_tokens == len(TOKENS)
    llm.cancel()
    llm.save_session(path)


def test_a_cancel_that_is_meant_for_a_stream_reaches_it(load: Load, tiny_path: Path, tmp_path: Path) -> None:
    """Whoever saves a session between its steps."""
    llm = load(tiny_path, retention=RETENTION)
    stream = llm.generate(TOKENS, temp=0.0)
    assert next(stream) >= 0
    llm.cancel()
    llm.save_session(tmp_path / "a")
    with pytest.raises(Cancelled):
        next(stream)
    assert next(llm.generate(TOKENS, temp=0.0)) >= 0
