"""What C programs call on top of headkv_prefill(): prompts in one call, and the sessions of Python."""

from __future__ import annotations

import ctypes
import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest

from headkv_local import ArgumentError, Cancelled, HeadKVError, HeadScores, Llama, Retention, SessionError
from headkv_local._core import native
from headkv_local._core.native.plan import Keep
from headkv_local.curves import Curves
from helpers import greedy_logits, last_logits, nmse, random_tokens
from session_bytes import Session, mutant

Load = Callable[..., Llama]
Tiny = Callable[..., Path]
ffi, call = native.ffi, native._functions
RETENTION = Retention(budget=32, archive="memory", observe=64, fold=None)
TOKENS, LATER = random_tokens(300), random_tokens(40, seed=1)
KINDS = [{"arch": "llama"}, {"arch": "gemma2"}, {"arch": "granitehybrid"}]


def check(code: int) -> None:
    native._check(code)


def context(llm: Llama) -> Any:
    return ffi.cast("struct llama_context *", int(llm.ctx))


def keep(retention: Retention = RETENTION) -> tuple[Any, Any]:
    """The struct, and what it points to."""
    names = ("beta", "window", "kernel", "sinks", "observe", "draft")
    return Keep(retention.budget, *(getattr(retention, name) for name in names)).struct()


def read(
    llm: Llama,
    tokens: list[int],
    n_held: int = 0,
    *,
    file: Any = ffi.NULL,
    retention: Retention = RETENTION,
    **fields: Any,
) -> Any:
    """What headkv_read() found out. file: of head scores; fields: of struct headkv_reading."""
    reading = ffi.new("struct headkv_reading *", fields)
    flat = ffi.new("int32_t[]", tokens)
    reading.tokens, reading.n_tokens, reading.n_held = flat, len(tokens), n_held
    raw, _kept = keep(retention)
    raw.file = file
    info = ffi.new("struct headkv_read_info *")
    sizes = [ffi.sizeof(f"struct headkv_{name}") for name in ("reading", "retention", "read_info")]
    check(call["headkv_read"](context(llm), reading, sizes[0], raw, sizes[1], info, sizes[2]))
    llm.input_ids[: len(tokens)], llm.n_tokens = tokens, len(tokens)  # so that eval() goes on from there
    return info


HEADER = {
    "retention": {"budget": 32, "observe": 64, "archive": "memory", "fold": None, "scores": "uniform"},
    "messages": [{"role": "user", "content": "Is it é, \U0001f600?"}],
}


def identity(model: Path) -> Any:
    text = ffi.new("char[]", 32)
    check(call["headkv_model_id"](str(model).encode(), text, 32))
    return text


def save(
    llm: Llama,
    path: Path,
    model: Path,
    tokens: list[int],
    header: bytes | None = None,
    model_id: bytes | None = None,
    **fields: Any,
) -> None:
    """header: the text; None: HEADER. model_id: None: the model's."""
    text = json.dumps(HEADER, ensure_ascii=False).encode() if header is None else header
    kept = [
        identity(model) if model_id is None else ffi.new("char[]", model_id),
        ffi.new("char[]", str(model).encode()),
        ffi.new("char[]", text),
        ffi.new("int32_t[]", tokens),
        ffi.from_buffer("float[]", last_logits(llm)),
    ]
    session = ffi.new("struct headkv_session *", fields)
    session.model_id, session.model_path, session.header, session.tokens, session.logits = kept
    session.n_tokens = len(tokens)
    check(call["headkv_session_save"](context(llm), str(path).encode(), session, ffi.sizeof(session[0])))


class Opened:
    """A session, as a C program has it."""

    def __init__(self, path: Path) -> None:
        handle = ffi.new("struct headkv_session_file **")
        check(call["headkv_session_open"](str(path).encode(), handle))
        self.file, self.session = handle[0], ffi.new("struct headkv_session *")
        self.get()

    def get(self) -> None:
        check(call["headkv_session_get"](self.file, self.session, ffi.sizeof(self.session[0])))

    def load(self, llm: Llama, model: Path) -> list[int]:
        check(call["headkv_session_load"](context(llm), self.file, identity(model)))
        self.get()
        held = list(self.session.tokens[0 : self.session.n_tokens])
        llm.input_ids[: len(held)], llm.n_tokens = held, len(held)
        return held

    def close(self) -> None:
        call["headkv_session_close"](self.file)


def opened(llm: Llama, path: Path, model: Path) -> list[int]:
    session = Opened(path)
    try:
        return session.load(llm, model)
    finally:
        session.close()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind["arch"])
def test_a_prompt_and_a_turn_are_read_as_the_class_reads_them(kind: Any, tiny: Tiny, load: Load) -> None:
    """Token for token and bit for bit, sliding windows and recurrent layers too."""
    mine, theirs = (load(tiny(**kind), retention=RETENTION) for _ in range(2))
    theirs.prefill(TOKENS)
    read(mine, TOKENS, order=2)
    assert (last_logits(mine) == last_logits(theirs)).all()
    assert (mine.retention_mask() == theirs.retention_mask()).all()
    answer = greedy_logits(theirs, 5)[0]
    for token in answer:
        mine.eval([token])
    theirs.prefill(TOKENS + answer + LATER)
    read(mine, TOKENS + answer + LATER, len(TOKENS), order=2)
    assert (last_logits(mine) == last_logits(theirs)).all()
    assert (mine.retention_mask() == theirs.retention_mask()).all()


def test_budgets_follow_the_curves_of_a_file(tiny_path: Path, tmp_path: Path, load: Load) -> None:
    curves = Curves(
        np.array([0, 0.25, 1]), np.array([[[2, 1, 0.5], [0, 0, 0]], [[1, -1, 3], [0.5, 0.25, 0]]])
    )
    scores = HeadScores(scores=np.ones((2, 4)), n_head_kv=2, method="ablation", curves=curves)
    scores.to_sidecar(tmp_path / "a.headkv.gguf")
    handle = ffi.new("struct headkv_scores **")
    check(call["headkv_scores_load"](str(tmp_path / "a.headkv.gguf").encode(), handle))
    mine = load(tiny_path, retention=RETENTION)
    theirs = load(tiny_path, retention=replace(RETENTION, scores=scores))
    theirs.prefill(TOKENS)
    read(mine, TOKENS, order=2, file=ffi.gc(handle[0], call["headkv_scores_free"]))
    kept = theirs.cache_stats().kept
    assert len(set(kept.ravel().tolist())) > 1
    assert (mine.cache_stats().kept == kept).all()
    assert (mine.retention_mask() == theirs.retention_mask()).all()


def test_a_question_that_is_told(tiny_path: Path, load: Load) -> None:
    mine, theirs = (load(tiny_path, retention=RETENTION) for _ in range(2))
    theirs.prefill(TOKENS, question=slice(10, 20))
    parts = ffi.new("struct headkv_part[]", [(10, 20, 1.0)])
    read(mine, TOKENS, question=parts, n_question=1, order=1)
    assert (mine.retention_mask() == theirs.retention_mask()).all()


def test_a_part_within_another_hides_no_mark(tiny_path: Path, load: Load) -> None:
    """A draft is made for each of two questions, wherever the part ends that is told last."""
    retention = Retention(budget=16, window=4, kernel=3, sinks=2, observe=64, draft=8, fold=None)
    masks = []
    for parts in [(0, 37, 1.0)], [(0, 37, 1.0), (5, 9, 1.0)]:
        llm = load(tiny_path, flash_attn=True)
        tokens = llm.tokenize(b"He is in the town. Where is it?\nWho is he?\n", add_bos=False)
        assert len(tokens) == 37
        question = ffi.new("struct headkv_part[]", parts)
        read(llm, tokens, retention=retention, question=question, n_question=len(parts))
        masks.append(llm.retention_mask())
    assert (masks[0] == masks[1]).all()


def test_tokens_of_more_than_32_bytes_have_their_text(smollm2: Path, load: Load) -> None:
    """Lines end there in C and in Python alike; llama_cpp gives nothing for such a token."""
    mine, theirs = (load(smollm2, retention=replace(RETENTION, scores="uniform")) for _ in range(2))
    deep = "\n" + 41 * " "
    code = "".join(f"{deep}call the pilot of ship {i}" for i in range(30)) + "\n\nWhich pilots were called?"
    tokens = theirs.tokenize(code.encode(), add_bos=False)
    assert sum(len(theirs._vocabulary.pieces([token]).text) > 32 for token in tokens) > 5
    theirs.prefill(tokens)
    read(mine, tokens, order=2)
    assert (mine.retention_mask() == theirs.retention_mask()).all()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind["arch"])
@pytest.mark.parametrize("n", [1, 2, 8, 9, 31])
def test_what_fits_stays_in_the_cells(n: int, kind: Any, tiny: Tiny, load: Load) -> None:
    """As the class leaves it, bit for bit; what goes on from there is read behind it, and then compacted."""
    model = tiny(**kind)
    mine, theirs = (load(model, retention=RETENTION) for _ in range(2))
    whole = TOKENS[:n]
    info = read(mine, whole, order=2)
    theirs.prefill(whole)
    assert (info.compacts, info.n_past) == (0, 0)
    assert mine.cache_stats().prompt_tokens == theirs.cache_stats().prompt_tokens
    assert (last_logits(mine) == last_logits(theirs)).all()
    assert read(mine, whole[: n - 1] + LATER[:2], n - 1, order=2).n_past == (
        0 if kind in KINDS[2:] else n - 1
    )
    theirs.prefill(whole[: n - 1] + LATER[:2])
    assert (last_logits(mine) == last_logits(theirs)).all()
    assert read(mine, TOKENS, 0, order=2).compacts == 1
    assert mine.cache_stats().prompt_tokens == len(TOKENS)


def test_the_same_prompt_again_asks_as_before(tiny_path: Path, load: Load) -> None:
    llm = load(tiny_path, retention=RETENTION)
    read(llm, TOKENS, order=2)
    mask = llm.retention_mask()
    assert read(llm, TOKENS, len(TOKENS), order=2).n_past == len(TOKENS) - 64  # whoever asks is read
    assert (llm.retention_mask() == mask).all()


def test_a_question_that_is_edited_asks_as_in_python(tiny_path: Path, load: Load) -> None:
    """As a whole, also what of it stays; of a later turn where it is said how many tokens came with it."""
    mine, theirs = (load(tiny_path, retention=RETENTION) for _ in range(2))
    edited = [*TOKENS[:-5], *LATER[:5]]
    theirs.prefill(edited)
    read(mine, TOKENS, order=2)
    assert read(mine, edited, len(TOKENS) - 5, order=2).n_past == len(TOKENS) - 64
    assert (mine.retention_mask() == theirs.retention_mask()).all()
    for turn in (edited + LATER, edited + LATER[:-5] + TOKENS[:5]):
        theirs.prefill(turn)
        read(mine, turn, len(turn) - 5 if turn[-1] == TOKENS[4] else len(edited), n_new=len(LATER), order=2)
        assert (mine.retention_mask() == theirs.retention_mask()).all()


def test_a_prompt_of_one_token_after_a_long_one(tiny_path: Path, load: Load) -> None:
    mine, theirs = load(tiny_path, retention=RETENTION), load(tiny_path)
    mine.prefill(TOKENS)
    mine.prefill([5])
    theirs.eval([5])
    assert mine.cache_stats().prompt_tokens == 1
    assert nmse(last_logits(mine), last_logits(theirs)) < 1e-3


@pytest.mark.parametrize(("arch", "order"), [("llama", 1), ("plamo2", 0)])
def test_progress_begins_once_with_nothing_done(tiny: Tiny, load: Load, arch: str, order: int) -> None:
    """Also where the graph turns out not to be cut, which is told of each time."""
    told: list[tuple[int, int]] = []
    callback = ffi.callback(
        "void(void *, int32_t, int32_t)", lambda _, done, total: told.append((done, total))
    )
    llm, whole = load(tiny(arch=arch), retention=RETENTION), TOKENS
    for n_held in (0, len(TOKENS)):
        info = read(llm, whole, n_held, order=2, progress=callback)
        n = len(whole) - info.n_past
        assert told[0] == (0, n)
        assert told[-1] == (n, n)
        assert [done for done, _ in told] == sorted({done for done, _ in told})
        assert (info.order, info.compacts, info.n_again, info.n_left_out) == (order, 1, 0, 0)
        assert order or "no place to cut" in native.last_error()
        told.clear()
        whole = TOKENS + LATER


@pytest.mark.parametrize("arch", ["llama", "gemma2", "granitehybrid"])
def test_a_reading_that_is_refused_takes_nothing_back(arch: str, tiny: Tiny, load: Load) -> None:
    """Tokens behind those that stay go when all that can be refused is not."""
    llm, fresh = (load(tiny(arch=arch), retention=RETENTION.without_archive()) for _ in range(2))
    whole = TOKENS[:20] + LATER[:10]
    read(llm, TOKENS[:30], order=2)
    with pytest.raises(ArgumentError, match="a panel cannot have -1 tokens"):
        read(llm, whole, 20, order=2, panel=-1)
    assert native.get_numbers(int(llm.ctx)).n_tokens == 30
    assert read(llm, whole, 20, order=2).n_past == (0 if arch == "granitehybrid" else 20)
    assert native.get_numbers(int(llm.ctx)).n_tokens == 30
    read(fresh, whole, order=2)
    assert nmse(last_logits(llm), last_logits(fresh)) < 1e-6


@pytest.mark.parametrize(
    ("fields", "n_held", "text"),
    [
        ({"order": 3}, 0, "no order 3"),
        ({"message_start": 5, "message_stop": 301}, 0, "cannot ask"),
        ({"message_start": -5, "message_stop": 20}, 0, "cannot ask"),
        ({"message_start": 5, "message_stop": 5}, 0, "cannot ask"),
        ({"n_question": 1}, 0, "NULL"),
        ({"n_new": 301}, 0, "301 of 300 tokens cannot be new"),
        ({}, 1, "does not hold 1 tokens, it holds 0"),
        ({}, -1, "does not hold -1"),
    ],
)
def test_readings_that_cannot_be(
    fields: dict[str, Any], n_held: int, text: str, tiny_path: Path, load: Load
) -> None:
    llm = load(tiny_path, retention=RETENTION)
    with pytest.raises(HeadKVError, match=text):
        read(llm, TOKENS, n_held, **fields)
    with pytest.raises(HeadKVError, match="token -1 is none"):
        read(llm, [*TOKENS, -1])
    with pytest.raises(HeadKVError, match="1025 tokens cannot be read in a context of 1024"):
        read(llm, random_tokens(1025))
    read(llm, TOKENS)  # the context is as it was
    with pytest.raises(HeadKVError, match="300 of 299 tokens cannot be held"):
        read(llm, TOKENS[:299], 300)


@pytest.mark.parametrize("light", [False, True])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind["arch"])
def test_python_goes_on_from_a_session_of_c(
    kind: Any, light: bool, tiny: Tiny, load: Load, tmp_path: Path
) -> None:
    model, file = tiny(**kind), tmp_path / "c.session"
    llm = load(model, retention=RETENTION)
    read(llm, TOKENS)
    for token in LATER[:3]:
        llm.eval([token])
    save(llm, file, model, TOKENS + LATER[:3], light=light)
    assert file.stat().st_mode & 0o777 == 0o600
    with Llama.open_session(file, n_threads=1, n_threads_batch=1) as again:
        assert again.input_ids[: again.n_tokens].tolist() == TOKENS + LATER[:3]
        assert again.session_messages == HEADER["messages"]
        assert again.retention == replace(RETENTION, scores="uniform")
        assert (again.cache_stats().archive_tokens > 0) != light
        assert (again.retention_mask() == llm.retention_mask()).all()
        assert (greedy_logits(again, 5)[1] == greedy_logits(llm, 5)[1]).all()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind["arch"])
def test_c_goes_on_from_a_session_of_python(kind: Any, tiny: Tiny, load: Load, tmp_path: Path) -> None:
    model, file = tiny(**kind), tmp_path / "python.session"
    llm, again = load(model, retention=RETENTION), load(model, retention=RETENTION)
    llm.prefill(TOKENS)
    llm.eval(LATER[:3])
    llm.save_session(file, messages=[{"role": "user", "content": "Is it \ud800 or é, \U0001f600?"}])
    assert opened(again, file, model) == TOKENS + LATER[:3]
    assert again.cache_stats().archive_tokens == len(TOKENS)
    assert (last_logits(again) == last_logits(llm)).all()
    assert (again.retention_mask() == llm.retention_mask()).all()
    whole = TOKENS + LATER
    for one in (llm, again):
        read(one, whole, len(TOKENS) + 3)
    assert (last_logits(again) == last_logits(llm)).all()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind["arch"])
def test_both_go_back_to_the_prompts_end(kind: Any, tiny: Tiny, load: Load, tmp_path: Path) -> None:
    """What Python saved of it, a C program has, and what that saves, Python has again."""
    model, mine, theirs = tiny(**kind), tmp_path / "c.session", tmp_path / "python.session"
    llm, again = load(model, retention=RETENTION), load(model, retention=RETENTION)
    llm.prefill(TOKENS)
    wanted = greedy_logits(llm, 4)
    llm.save_session(theirs)

    session = Opened(theirs)
    assert session.session.tokens == ffi.NULL
    held, prompt = session.load(again, model), session.session
    assert prompt.n_prompt == prompt.n_archived == len(TOKENS)
    assert (prompt.prompt_state != ffi.NULL) == bool(llm._bounded.recurrent)
    row = np.frombuffer(ffi.buffer(prompt.prompt_logits, 4 * llm.n_vocab()), np.float32).copy()
    names = ("prompt_logits", "prompt_state", "n_prompt_state")
    save(again, mine, model, held, **{name: getattr(prompt, name) for name in names})
    state = bytes(ffi.buffer(prompt.prompt_state, prompt.n_prompt_state))
    session.close()

    memory = llama_cpp.llama_get_memory(again._ctx.ctx)
    if state:
        raw = (ctypes.c_uint8 * len(state)).from_buffer_copy(state)
        flags = llama_cpp.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY
        assert llama_cpp.llama_state_seq_set_data_ext(again._ctx.ctx, raw, len(state), 0, flags) == len(state)
    if again._bounded.reaches(len(TOKENS)):
        assert llama_cpp.llama_memory_seq_rm(memory, 0, len(TOKENS), -1)
        again.n_tokens = len(TOKENS)
        again.eval([int(row.argmax())])
        assert (last_logits(again) == wanted[1][1]).all()

    with Llama.open_session(mine, n_threads=1, n_threads_batch=1) as python:
        python.prefill(TOKENS)
        assert (last_logits(python) == row).all()
        assert greedy_logits(python, 4)[0] == wanted[0]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind["arch"])
def test_what_a_file_has_given_stays_where_it_is(kind: Any, tiny: Tiny, load: Load, tmp_path: Path) -> None:
    """Also where it is loaded into a second context."""
    model, file = tiny(**kind), tmp_path / "x.session"
    llm, *others = (load(model, retention=RETENTION) for _ in range(3))
    llm.prefill(TOKENS)
    llm.eval(LATER[:3])
    llm.save_session(file)
    session = Opened(file)
    given = []
    for other in others:
        assert session.load(other, model) == TOKENS + LATER[:3]
        assert (last_logits(other) == last_logits(llm)).all()
        names = ("tokens", "logits", "prompt_logits", "prompt_state")
        given.append([getattr(session.session, name) for name in names])
    assert given[0] == given[1]
    session.close()


def test_a_header_is_the_callers(tiny_path: Path, load: Load, tmp_path: Path) -> None:
    """Whatever text it is. Python needs none, and refuses one that is not for it."""
    file = tmp_path / "x.session"
    llm = load(tiny_path, retention=RETENTION)
    read(llm, TOKENS)
    save(llm, file, tiny_path, TOKENS, "any text: é".encode())
    session = Opened(file)
    assert ffi.string(session.session.header).decode() == "any text: é"
    save(llm, file, tiny_path, TOKENS, b"")  # the open one stays what it is
    assert session.load(llm, tiny_path) == TOKENS
    assert ffi.string(session.session.header).decode() == "any text: é"
    session.close()
    with Llama.open_session(file, n_threads=1) as plain:
        assert plain.retention is None
        assert plain.session_messages == []
        assert plain.cache_stats().compacted
        assert (last_logits(plain) == last_logits(llm)).all()
    save(llm, file, tiny_path, TOKENS, b"any text")
    with pytest.raises(SessionError, match="not for Python: its header is no JSON"):
        Llama.open_session(file)
    with pytest.raises(HeadKVError, match="a header of 67108865 bytes is longer than 67108864"):
        save(llm, file, tiny_path, TOKENS, b" " * (2**26 + 1))
    with pytest.raises(ArgumentError, match="the header is not UTF-8"):
        save(llm, file, tiny_path, TOKENS, "é".encode("latin-1"))


@pytest.mark.parametrize("model_id", [b"", b"hello", b"fnv1a-0123456789ABCDEF", b"fnv1a-0123456789abcdef0"])
def test_a_session_of_no_model_is_not_saved(
    tiny_path: Path, load: Load, tmp_path: Path, model_id: bytes
) -> None:
    """Nobody could load it."""
    llm = load(tiny_path, flash_attn=True)
    llm.eval(TOKENS)
    with pytest.raises(ArgumentError, match="model_id is not one that"):
        save(llm, tmp_path / "x.session", tiny_path, TOKENS, model_id=model_id)
    assert not (tmp_path / "x.session").exists()


def test_sessions_that_are_refused_leave_the_context(
    tiny: Tiny, tiny_path: Path, load: Load, tmp_path: Path
) -> None:
    file = tmp_path / "x.session"
    llm = load(tiny_path, retention=RETENTION)
    read(llm, TOKENS)
    save(llm, file, tiny_path, TOKENS)
    good, before = file.read_bytes(), llm.retention_mask()
    other = tiny(n_layer=3)

    def says(text: str, data: bytes = good, model: Path = tiny_path) -> None:
        file.write_bytes(data)
        with pytest.raises(HeadKVError, match=text) as caught:
            opened(llm, file, model)
        assert "\n" not in str(caught.value)
        assert (llm.retention_mask() == before).all()

    says("is of the model", model=other)
    says("has been cut short", good[:-1])
    says("checksum of its section 'cells' is wrong", good[:5000] + bytes([good[5000] ^ 1]) + good[5001:])
    says("does not begin as a session does", b"")
    says("has format 1, and", good[:16] + b"\1" + good[17:])
    session = Session.of(good)
    says("has rows of type_k=q8_0, and this context has f16", session.saying(type_k=8).to_bytes())
    for at in range(32, 64, 4):  # base and scale, YaRN's, which factors of frequencies
        rope = session.change(b"about", lambda x, at=at: x[:at] + np.float32(77).tobytes() + x[at + 4 :])
        says("other RoPE settings", rope.to_bytes())
    nan = session.change(b"about", lambda x: x[:40] + np.float32("nan").tobytes() + x[44:])
    says("'about' says what cannot be", nan.to_bytes())
    with pytest.raises(SessionError, match="is not a file"):
        opened(llm, tmp_path, tiny_path)
    with pytest.raises(SessionError, match="cannot be opened"):
        opened(llm, tmp_path / "none", tiny_path)


def goes_on_in_the_same(saved: Llama, same: Llama, differs: Llama, file: Path, path: Path, why: str) -> None:
    read(saved, TOKENS)
    save(saved, file, path, TOKENS)
    with pytest.raises(SessionError, match=why):
        opened(differs, file, path)
    assert opened(same, file, path) == TOKENS


YARN = {"rope_scaling_type": 2}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (YARN, {}),
        ({"yarn_attn_factor": 1.5}, {}),
        (YARN | {"yarn_beta_fast": 16.0}, YARN),
        (YARN | {"yarn_orig_ctx": 1000}, YARN),
    ],
)
def test_rows_that_yarn_has_rotated(
    tiny_path: Path, load: Load, tmp_path: Path, one: dict[str, Any], other: dict[str, Any]
) -> None:
    """The scale is the same, and K is not."""
    file = tmp_path / "x.session"
    saved, same, differs = (
        load(tiny_path, retention=RETENTION, rope_freq_scale=0.5, **yarn) for yarn in (one, one, other)
    )
    goes_on_in_the_same(saved, same, differs, file, tiny_path, "other RoPE settings")


def test_rows_that_are_quantized_as_they_are(
    tiny: Tiny, load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """llama.cpp rotates them before by itself, and queries with them."""
    file, path = tmp_path / "x.session", tiny(head_dim=64)
    for one, other in (("0", "1"), ("1", "0")):
        llms = []
        for value in (one, one, other):
            monkeypatch.setenv("LLAMA_ATTN_ROT_DISABLE", value)
            llms.append(load(path, retention=RETENTION, type_k=8, type_v=8))
        saved, same, differs = llms
        goes_on_in_the_same(saved, same, differs, file, path, "rotated otherwise than this context's")


def test_names_out_of_a_file_steer_no_terminal(
    tiny: Tiny, tiny_path: Path, load: Load, tmp_path: Path
) -> None:
    file = tmp_path / "x.session"
    llm = load(tiny_path, retention=RETENTION)
    read(llm, TOKENS)
    save(llm, file, tiny_path, TOKENS)
    bad = "\n\x1b]0;x\x07\x9b1m\x7fé".encode()
    evil = Session.of(file.read_bytes()).change(
        b"about", lambda x: x[:64] + b"\0".join([x[64:].split(b"\0")[0], bad, bad, b""])
    )
    file.write_bytes(evil.to_bytes())
    with pytest.raises(SessionError, match=r"is of the model \?\?\]0;x\?\?1m\?é \(") as caught:
        opened(load(tiny(n_layer=3), retention=RETENTION), file, tiny(n_layer=3))
    assert str(caught.value).isprintable()


def test_tokens_that_the_model_does_not_have(tiny_path: Path, load: Load, tmp_path: Path) -> None:
    """They would make a session that nobody can open."""
    file = tmp_path / "x.session"
    llm = load(tiny_path, retention=RETENTION)
    read(llm, TOKENS)
    save(llm, file, tiny_path, TOKENS)
    good = file.read_bytes()
    for at in (0, len(TOKENS) - 1):
        for token in (-1, llm.n_vocab(), 2**31 - 1):
            with pytest.raises(HeadKVError, match=f"^token {token} is none of the model's$"):
                save(llm, file, tiny_path, [*TOKENS[:at], token, *TOKENS[at + 1 :]])
    assert file.read_bytes() == good


def test_a_cancel_that_came_before_leaves_the_context(tiny_path: Path, load: Load, tmp_path: Path) -> None:
    file = tmp_path / "x.session"
    llm = load(tiny_path, retention=RETENTION)
    read(llm, LATER * 8)
    save(llm, file, tiny_path, LATER * 8)
    read(llm, TOKENS)
    before = llm.retention_mask()
    native.cancel(int(llm.ctx))
    with pytest.raises(Cancelled):
        opened(llm, file, tiny_path)
    native.cancel_clear(int(llm.ctx))
    assert np.array_equal(llm.retention_mask(), before)
    assert opened(llm, file, tiny_path) == LATER * 8


@pytest.mark.parametrize("kind", KINDS[1:], ids=lambda kind: kind["arch"])
def test_a_state_that_is_not_of_the_prompts_end(kind: Any, tiny: Tiny, load: Load, tmp_path: Path) -> None:
    model, file = tiny(**kind), tmp_path / "x.session"
    llm, same = (load(model, flash_attn=True, swa_full=False) for _ in range(2))
    for one in (llm, same):
        one.eval(TOKENS)
    state = llm._bounded.snapshot()
    told = {"prompt_state": ffi.from_buffer(state), "n_prompt_state": len(state)}
    for one in (llm, same):
        one.eval(LATER)
    for n_prompt in (0, 299, 301):
        with pytest.raises(HeadKVError, match=f"is of one with 300 tokens, not {n_prompt}$"):
            save(llm, file, model, TOKENS + LATER, n_prompt=n_prompt, **told)
    assert not list(tmp_path.iterdir())
    save(llm, file, model, TOKENS + LATER, n_prompt=300, **told)
    assert opened(llm, file, model) == TOKENS + LATER
    assert nmse(greedy_logits(llm, 4)[1], greedy_logits(same, 4)[1]) < 1e-6


def test_a_window_that_has_forgotten(tiny: Tiny, load: Load, tmp_path: Path) -> None:
    """What the next token looks at, where tokens were taken back so far that it comes before what is held."""
    model, file, tokens = tiny(arch="gemma2"), tmp_path / "x.session", random_tokens(600)
    llm = load(model, flash_attn=True, swa_full=False, n_ubatch=64)
    memory = llama_cpp.llama_get_memory(llm.ctx)
    llm.eval(tokens)
    for n in (590, 450, 300, 100):
        assert llama_cpp.llama_memory_seq_rm(memory, 0, n, -1)
        if llm._bounded.reaches(n) and llm._bounded.n_held == n:
            save(llm, file, model, tokens[:n])
            assert opened(llm, file, model) == tokens[:n]
            continue
        with pytest.raises(HeadKVError, match="have forgotten what the next token looks at"):
            save(llm, file, model, tokens[:n])
    assert n == 100
    assert not llm._bounded.reaches(n) or llm._bounded.n_held < n


def test_what_cannot_be_saved(tiny_path: Path, load: Load, tmp_path: Path) -> None:
    llm = load(tiny_path, retention=RETENTION)
    read(llm, TOKENS)
    file = tmp_path / "document.txt"
    file.write_text("mine")
    with pytest.raises(SessionError, match="is another file, not a session: it stays as it is"):
        save(llm, file, tiny_path, TOKENS)
    assert file.read_text() == "mine"
    with pytest.raises(SessionError, match="cannot be written: No such file"):
        save(llm, tmp_path / "none" / "x.session", tiny_path, TOKENS)
    with pytest.raises(HeadKVError, match="holds 300 tokens, not the 299"):
        save(llm, tmp_path / "x.session", tiny_path, TOKENS[:-1])
    with pytest.raises(HeadKVError, match="the prompt cannot have 299 of 300 tokens"):
        save(llm, tmp_path / "x.session", tiny_path, TOKENS, n_prompt=299)
    assert [path.name for path in tmp_path.iterdir()] == ["document.txt"]


def test_mutants_are_refused_or_right(tiny_path: Path, load: Load, tmp_path: Path) -> None:
    """Nothing ends the process, whatever a file with right checksums says."""
    file = tmp_path / "x.session"
    llm = load(tiny_path, retention=RETENTION)
    read(llm, TOKENS)
    save(llm, file, tiny_path, TOKENS)
    good, rng, n_refused = file.read_bytes(), random.Random(1), 0
    for _ in range(150):
        file.write_bytes(mutant(good, rng))
        try:
            opened(llm, file, tiny_path)
        except HeadKVError:
            n_refused += 1
        else:
            assert np.isfinite(last_logits(llm)).any()
    assert n_refused > 50
    file.write_bytes(good)
    assert opened(llm, file, tiny_path) == TOKENS
