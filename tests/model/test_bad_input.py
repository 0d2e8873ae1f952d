"""Bad input: one clear sentence, and whatever was usable before is usable afterwards."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest

import gguf_factory
from headkv_local import (
    ArgumentError,
    ContextFullError,
    HeadKVError,
    HeadScores,
    Llama,
    ModelError,
    Retention,
    StateError,
    UnsupportedError,
    models,
)
from headkv_local._core import native
from headkv_local.errors import EncoderError
from helpers import compact_natively, greedy, last_logits, random_tokens

Load = Callable[..., Llama]
TOKENS = random_tokens(300)
PLAN = native.Plan(np.full((2, 2), 32, dtype=np.int32), 8, 7, 4)


def assert_usable(llm: Llama) -> None:
    llm.prefill(TOKENS)
    assert llm.cache_stats().prompt_tokens == 300
    assert llm.cache_stats().compacted is (llm.retention is not None)
    assert len(greedy(llm, 3)) == 3


def in_256_cells(load: Load, path: Path) -> Llama:
    """250 tokens in a cache that is smaller than the context."""
    llm = load(path, flash_attn=True)
    compact_natively(llm, TOKENS[:300], 32)
    llm.reset()
    native.reserve(int(llm.ctx), 250)
    llm.eval(TOKENS[:250])
    return llm


def broken(path: Path, kind: str, good: bytes) -> Path:
    contents = {
        "empty": b"",
        "text": b"this is no model\n" * 100,
        "magic only": good[:4],
        "cut in the header": good[:2000],
        "cut in the weights": good[: len(good) // 2],
        "version": good[:4] + b"\xff\xff\xff\xff" + good[8:],
        "huge counts": good[:8] + b"\xff" * 16 + good[24:],
    }
    path.write_bytes(contents[kind])
    return path


@pytest.mark.parametrize(
    "kind",
    ["empty", "text", "magic only", "cut in the header", "cut in the weights", "version", "huge counts"],
)
def test_a_broken_model_file(tmp_path: Path, tiny_path: Path, kind: str) -> None:
    path = broken(tmp_path / "broken.gguf", kind, tiny_path.read_bytes())
    with pytest.raises(ModelError, match=r"Failed to load model from file: .*broken\.gguf: \w+") as caught:
        Llama(path, retention=Retention())
    assert "\n" not in str(caught.value)


def test_head_scores_in_place_of_the_model() -> None:
    path = next((Path(__file__).parents[2] / "scores").glob("*.headkv.gguf"))
    with pytest.raises(ModelError) as caught:
        Llama(path)
    assert str(caught.value) == f"{path} holds head scores and no model: load the model that they are of"


def test_a_missing_model_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"^Model path does not exist: /.*nothing\.gguf$"):
        Llama(tmp_path / "nothing.gguf")
    with pytest.raises(ModelError, match="is not a file"):
        Llama(tmp_path)
    with pytest.raises(ValueError, match="Model path does not exist: "):  # as llama_cpp's own users catch it
        Llama(str(tmp_path / "nothing.gguf"), retention=Retention())


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"flash_attn": False, "retention": Retention()}, UnsupportedError, "flash attention only"),
        ({"embedding": True, "retention": Retention()}, UnsupportedError, "embedding=True"),
        ({"vocab_only": True, "retention": Retention()}, UnsupportedError, "vocab_only=True"),
        ({"vocab_only": True, "n_ctx": "auto"}, UnsupportedError, "no cache is kept"),
        ({"retention": 128}, ArgumentError, "Retention or None, not 128"),
        (
            {"budget": 64},
            ArgumentError,
            r"^budget is an argument of Retention: .*Retention\(budget=\.\.\.\)$",
        ),
        ({"order": "layers", "retention": Retention()}, ArgumentError, "^order is an argument of Retention"),
        ({"retention": Retention(caps=[[64]])}, ArgumentError, r"shape \(2, 2\).* not \(1, 1\)"),
        ({"retention": Retention(scores=np.ones((2, 3)))}, ArgumentError, r"\(2, 4\).*\(2, 2\).*\(2, 3\)"),
        ({"retention": Retention(budget=5000, window=5000)}, ArgumentError, "window must be from 1 to 1024"),
        ({"type_v": 2}, ArgumentError, "quantized V cache"),
        ({"type_k": 8, "type_v": 8, "flash_attn": False}, ArgumentError, "quantized V cache"),
        ({"kv_overrides": ["a"]}, ArgumentError, "^kv_overrides must be a dict"),
        # llama.cpp would have another value, or one without an end, and a session of it could not be opened
        ({"kv_overrides": {"a": 2**70}}, ArgumentError, "^kv_overrides cannot hold {'a': 1180"),
        ({"kv_overrides": {"a": "b" * 128}}, ArgumentError, "^kv_overrides cannot hold {'a': 'bb"),
        ({"kv_overrides": {"a" * 128: 1}}, ArgumentError, "^kv_overrides cannot hold {'aa"),
        ({"kv_overrides": {"": 1}}, ArgumentError, "^kv_overrides cannot hold {'': 1}"),
        ({"kv_overrides": {"a": float("nan")}}, ArgumentError, "^kv_overrides cannot hold {'a': nan}"),
        ({"kv_overrides": {"a": None}}, ArgumentError, "^kv_overrides cannot hold {'a': None}"),
    ],
)
def test_settings_that_do_not_work(
    load: Load, tiny_path: Path, arguments: dict[str, Any], error: type[HeadKVError], text: str
) -> None:
    with pytest.raises(error, match=text) as caught:
        load(tiny_path, **arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "error", "text"),
    [
        (
            "llama.block_count",
            0,
            ModelError,
            r"cannot be: llama-model.cpp:\d+: GGML_ASSERT\(hparams.n_layer_all > 0",
        ),
        ("llama.expert_count", 3, ModelError, r"cannot be: .*GGML_ASSERT"),
        ("llama.attention.layer_norm_rms_epsilon", -1.0, ModelError, "finite and not negative, not -1$"),
        ("llama.rope.dimension_count", 63, ModelError, "rope.dimension_count must be even, not 63$"),
        ("llama.full_attention_interval", 0, ModelError, "must be at least 1, not 0$"),
    ],
)
def test_metadata_that_llama_cpp_would_end_the_process_by(
    load: Load, tiny_path: Path, key: str, value: int, error: type[HeadKVError], text: str
) -> None:
    with pytest.raises(error, match=text) as caught:
        load(tiny_path, kv_overrides={key: value})
    assert "\n" not in str(caught.value)
    assert_usable(load(tiny_path, retention=Retention(budget=64)))


def test_a_size_below_the_window_is_refused(load: Load, tiny_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"budget '2KiB' keeps .* the smallest .* is '8KiB'"):
        load(tiny_path, retention=Retention(budget="2KiB"))
    llm = load(tiny_path, retention=Retention(budget=16))
    with pytest.raises(ArgumentError, match="2KiB"):
        llm.retention = Retention(budget="2KiB")
    assert_usable(llm)


def test_a_prompt_shorter_than_the_window(load: Load, tiny_path: Path) -> None:
    """It is kept whole; the C API refuses to compact it."""
    llm = load(tiny_path, retention=Retention(budget=64, window=32))
    llm.prefill(TOKENS[:10])
    assert not llm.cache_stats().compacted
    assert len(greedy(llm, 3)) == 3
    llm.reset()
    ctx = llm.ctx
    native.observe(ctx, native.OBSERVE_TOKENS, 0, 10)
    llm.eval(TOKENS[:10])
    native.observe(ctx, native.OBSERVE_OFF)
    with pytest.raises(StateError, match="window"):
        native.compact(ctx, PLAN._replace(window=32))
    assert len(greedy(llm, 3)) == 3
    llm.reset()
    assert_usable(llm)


def test_a_record_is_not_used_after_the_cache_has_grown_under_it(load: Load, tiny_path: Path) -> None:
    """Cells may have moved then."""
    llm = in_256_cells(load, tiny_path)
    ctx = int(llm.ctx)
    native.observe(ctx, native.OBSERVE_TOKENS, llm.n_tokens, 8)
    llm.eval(TOKENS[250:254])
    llm.eval(TOKENS[254:258])  # there were 256 cells
    native.observe(ctx, native.OBSERVE_OFF)
    with pytest.raises(StateError, match="observed"):
        native.compact(ctx, PLAN)
    llm.reset()
    assert_usable(llm)


def test_a_cache_does_not_grow_while_keys_wait_to_be_rotated(load: Load, tiny_path: Path) -> None:
    """The copy would have the new positions and the old keys."""
    llm = in_256_cells(load, tiny_path)
    ctx = int(llm.ctx)
    llm._ctx.kv_cache_seq_rm(0, 10, 20)
    llm._ctx.kv_cache_seq_shift(0, 20, -1, -10)
    llm.n_tokens = 240
    with pytest.raises(StateError, match="rotate"):
        native.reserve(ctx, 600)
    llm.eval(TOKENS[:1])
    native.reserve(ctx, 600)
    llm.eval(TOKENS[:100])
    llm.reset()
    assert_usable(llm)


@pytest.mark.parametrize("rotated", [False, True])
def test_a_record_is_not_used_after_positions_were_shifted(
    load: Load, tiny_path: Path, rotated: bool
) -> None:
    llm = load(tiny_path, flash_attn=True)
    ctx = int(llm.ctx)
    native.observe(ctx, native.OBSERVE_TOKENS, 260, 40)
    llm.eval(TOKENS)
    native.observe(ctx, native.OBSERVE_OFF)
    llm._ctx.kv_cache_seq_shift(0, 0, -1, -100)  # the first 100 are gone
    llm.n_tokens = 200
    if rotated:
        llm.eval(TOKENS[:1])
        assert llm._contents.truncate(200)
    with pytest.raises(StateError, match="observed" if rotated else "rotate"):
        native.compact(ctx, PLAN)
    llm.reset()
    assert_usable(llm)


def test_a_record_is_not_used_for_another_prompt(load: Load, tiny_path: Path) -> None:
    llm = load(tiny_path, flash_attn=True)
    ctx = int(llm.ctx)
    native.observe(ctx, native.OBSERVE_TOKENS, 260, 40)
    llm.eval(TOKENS)
    native.observe(ctx, native.OBSERVE_OFF)
    llm._ctx.kv_cache_seq_keep(1)  # of which there are no tokens
    llm.n_tokens = 0
    llm.eval(TOKENS[100:])
    with pytest.raises(StateError, match="observed"):
        native.compact(ctx, PLAN)
    llm.reset()
    assert_usable(llm)


def test_a_draft_model_beside_recurrent_layers(load: Load, tiny: Callable[..., Path]) -> None:
    with pytest.raises(UnsupportedError, match="draft"):
        load(tiny(arch="qwen35"), draft_model=lambda input_ids, **_: input_ids[-1:])


def test_memory_may_be_reserved_anew_while_tokens_are_observed(load: Load, tiny_path: Path) -> None:
    """As llama.cpp does it for an adapter, for a whole ubatch: nothing is observed then."""
    masks = []
    for anew in (False, True):
        llm = load(tiny_path, flash_attn=True)
        ctx = int(llm.ctx)
        llm.eval(TOKENS[:290])
        native.observe(ctx, native.OBSERVE_TOKENS, 290, 10)
        if anew:
            assert llama_cpp.llama_set_adapter_cvec(llm.ctx, None, 0, llm.n_embd(), 0, 0) == 0
        llm.eval(TOKENS[290:300])
        native.observe(ctx, native.OBSERVE_OFF)
        native.compact(ctx, PLAN)
        masks.append(llm.retention_mask())
    assert np.array_equal(*masks)


def test_calls_of_the_c_api_out_of_order(load: Load, tiny_path: Path) -> None:
    llm = load(tiny_path, flash_attn=True)
    ctx = llm.ctx
    caps = np.full((2, 2), 32, dtype=np.int32)

    def refused(error: type[HeadKVError], call: Callable[..., Any], *arguments: Any) -> None:
        with pytest.raises(error, match=r"\w+ \w+") as caught:
            call(ctx, *arguments)
        assert "\n" not in str(caught.value)

    refused(StateError, native.compact, PLAN)  # nothing decoded
    refused(StateError, native.get_mask)
    refused(StateError, native.get_attention)
    refused(ArgumentError, native.reserve, -1)
    refused(StateError, native.reserve, 1025)  # one more than the context has
    llm.eval(TOKENS[:200])
    refused(StateError, native.compact, PLAN)  # nothing observed
    refused(StateError, native.get_observe_limit, 200)
    for bad_range in ((-1, 8), (200, 0), (200, -1), (1020, 5), (2**31 - 1, 2**31 - 1)):
        refused(ArgumentError, native.observe, native.OBSERVE_TOKENS, *bad_range)
    for bad_weights in ([0, 0], [1, -1], [2, 1], [float("nan"), 1], [float("inf"), 1]):
        refused(ArgumentError, native.observe, native.OBSERVE_TOKENS, 200, 2, np.array(bad_weights))
    native.observe(ctx, native.OBSERVE_TOKENS, 200, 8)
    llm.eval(TOKENS[200:205])
    refused(StateError, native.compact, PLAN)  # not all of the range
    llm.eval(TOKENS[205:225])
    native.observe(ctx, native.OBSERVE_OFF)
    refused(StateError, native.compact, PLAN)  # the prompt goes on after it
    native.observe(ctx, native.OBSERVE_TOKENS, 225, 8)
    llm.eval(TOKENS[225:233])
    native.observe(ctx, native.OBSERVE_OFF)
    weights = native.get_attention(ctx)
    assert weights.shape == (2, 2, 233)
    assert weights.min() >= 0
    assert weights.max() <= 1
    assert (weights[:, :, :209] > 0).any(axis=2).all()
    assert (weights[:, :, 217:] == 0).all()  # less than 16 before the last one
    llm.eval(TOKENS[:1])
    refused(StateError, native.compact, PLAN)  # the observed tokens are not the last ones
    llm.prefill([*TOKENS[:225]])
    native.observe(ctx, native.OBSERVE_TOKENS, 225, 8)
    llm.eval(TOKENS[225:233])
    native.observe(ctx, native.OBSERVE_OFF)
    for window, kernel, first_tokens in ((0, 7, 4), (-1, 7, 4), (8, 6, 4), (8, 0, 4), (8, 7, -1), (33, 7, 4)):
        refused(ArgumentError, native.compact, native.Plan(caps, window, kernel, first_tokens))
    for bad in (caps[:1], np.full((3, 2), 32), caps * 0, caps - 25, -caps):
        refused(ArgumentError, native.compact, PLAN._replace(caps=bad))
    refused(ArgumentError, native.compact, PLAN._replace(ends=np.zeros(232, np.uint8)))  # one too few
    native.compact(ctx, PLAN)
    assert (native.get_stats(ctx)[1] == 32).all()
    state = llm.save_state()
    llm.eval(TOKENS[:1])
    wanted = last_logits(llm)
    llm.load_state(state)
    refused(StateError, native.compact, PLAN)  # twice
    refused(StateError, native.observe, native.OBSERVE_TOKENS, 225, 8)
    refused(StateError, native.reserve, 500)
    refused(StateError, native.get_attention)
    llm.eval(TOKENS[:1])
    assert np.array_equal(last_logits(llm), wanted)


@pytest.mark.parametrize("retention", [None, Retention(budget=32)])
def test_tokens_that_the_model_does_not_have(
    load: Load, tiny_path: Path, retention: Retention | None
) -> None:
    llm = load(tiny_path, retention=retention)
    for bad in (-1, 100_000):
        for tokens in ([bad], [*TOKENS[:20], bad], [*TOKENS[:-1], bad]):
            llm.reset()
            for call in (llm.prefill, llm.eval, lambda tokens: next(llm.generate(tokens))):
                with pytest.raises(ArgumentError, match=f"token {bad} is none of the model's"):
                    call(tokens)
            assert llm.cache_stats().prompt_tokens == llm.n_tokens == 0
    llm.reset()
    assert_usable(llm)


@pytest.mark.parametrize("retention", [None, Retention(budget=32)])
def test_an_empty_prompt(load: Load, tiny_path: Path, retention: Retention | None) -> None:
    llm = load(tiny_path, retention=retention)
    for n_tokens in (0, len(TOKENS)):  # on an empty cache and on another prompt's, which stays
        with pytest.raises(ArgumentError, match="the prompt is empty"):
            llm.prefill([])
        with pytest.raises(ArgumentError, match="the prompt is empty"):
            next(llm.generate([]))
        assert llm.n_tokens == n_tokens
        llm.prefill(TOKENS)
    assert_usable(llm)


@pytest.mark.parametrize("retention", [None, Retention(budget=32)])
def test_a_prompt_longer_than_the_context(load: Load, tiny_path: Path, retention: Retention | None) -> None:
    llm = load(tiny_path, retention=retention)
    text = "a long story " * 200
    for call in (
        lambda: llm.create_completion(text),
        lambda: next(llm.create_completion(text, stream=True)),
        lambda: llm.create_chat_completion([{"role": "user", "content": text}]),
        lambda: next(llm.create_chat_completion([{"role": "user", "content": text}], stream=True)),
        lambda: llm.prefill(random_tokens(1025)),
        lambda: next(llm.generate(random_tokens(1025))),
        lambda: llm.eval(random_tokens(1025)),
    ):
        with pytest.raises(ContextFullError, match="1024"):
            call()
        with pytest.raises(ValueError, match="1024"):  # what llama_cpp raises here
            call()
    llm.reset()
    assert_usable(llm)


METHODS: dict[str, Callable[[Llama], Any]] = {
    "generate": lambda llm: next(llm.generate(TOKENS)),
    "prefill": lambda llm: llm.prefill(TOKENS),
    "eval": lambda llm: llm.eval([1]),
    "empty eval": lambda llm: llm.eval([]),
    "sample": lambda llm: llm.sample(),
    "reset": lambda llm: llm.reset(),
    "cancel": lambda llm: llm.cancel(),
    "cache_stats": lambda llm: llm.cache_stats(),
    "retention_mask": lambda llm: llm.retention_mask(),
    "retention": lambda llm: setattr(llm, "retention", Retention()),
    "save_state": lambda llm: llm.save_state(),
    "load_state": lambda llm: llm.load_state(None),
    "completion": lambda llm: llm("hello"),
    "stream": lambda llm: next(llm.create_completion("hello", stream=True)),
    "chat": lambda llm: llm.create_chat_completion([{"role": "user", "content": "hello"}]),
    "embed": lambda llm: llm.embed("hello"),
    "tokenize": lambda llm: llm.tokenize(b"hello"),
    "detokenize": lambda llm: llm.detokenize([1]),
    "tokenizer": lambda llm: llm.tokenizer().tokenize(b"hello"),
    "n_ctx": lambda llm: llm.n_ctx(),
    "n_embd": lambda llm: llm.n_embd(),
    "n_vocab": lambda llm: llm.n_vocab(),
    "token_eos": lambda llm: llm.token_eos(),
    "token_bos": lambda llm: llm.token_bos(),
    "token_nl": lambda llm: llm.token_nl(),
    "pooling_type": lambda llm: llm.pooling_type(),
    "ctx": lambda llm: llm.ctx,
    "model": lambda llm: llm.model,
    "pickle": lambda llm: llm.__getstate__(),
    "with": lambda llm: llm.__enter__(),
}


@pytest.fixture(scope="module")
def closed(tiny_path: Path) -> Llama:
    llm = Llama(tiny_path, retention=Retention(budget=32))
    llm.prefill(TOKENS)
    llm.close()
    llm.close()
    return llm


@pytest.mark.parametrize("name", METHODS)
def test_use_after_close(closed: Llama, name: str) -> None:
    with pytest.raises(StateError, match="has been closed"):
        METHODS[name](closed)


def test_what_was_handed_out_before_the_close(tiny_path: Path) -> None:
    with Llama(tiny_path, retention=Retention(budget=32)) as llm:
        tokenizer, answer = llm.tokenizer(), llm.generate(TOKENS)
        next(answer)
    with pytest.raises(StateError, match="has been closed"):
        next(answer)
    with pytest.raises(Exception, match="argument 1"):  # ctypes refuses it; llama.cpp would crash
        tokenizer.tokenize(b"hello")


def test_a_constructor_that_fails_leaves_nothing_to_clean_up(
    tiny_path: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder, capfd: pytest.CaptureFixture[str]
) -> None:
    import gc

    for path, arguments in (
        (tmp_path / "nothing", {}),
        (tiny_path, {"flash_attn": False, "retention": Retention()}),
        (tiny_path, {"retention": Retention(caps=[[64]])}),
    ):
        with pytest.raises(HeadKVError):
            Llama(path, **arguments)
    gc.collect()
    assert not recwarn.list
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"n_ctx": 2**32}, "n_ctx must be from 0 to 2147483647, not 4294967296"),
        ({"n_ctx": None}, "n_ctx must be from 0 to 2147483647, not None"),
        ({"n_ctx": 512.5}, "n_ctx must be from 0 to 2147483647, not 512.5"),
        ({"seed": "x"}, "seed must be an int"),
        ({"n_batch": -1}, "n_batch must be from 1 to 2147483647, not -1"),
        ({"n_batch": 0}, "n_batch must be from 1"),
        ({"n_ubatch": 0}, "n_ubatch must be from 1"),
        ({"n_threads": 100000}, "n_threads must be from 0 to 512, not 100000"),
        ({"n_threads_batch": -1}, "n_threads_batch must be from 0 to 512, not -1"),
        ({"last_n_tokens_size": 2**31 - 1}, "last_n_tokens_size must be from -1 to 16777216, not 2147483647"),
        ({"last_n_tokens_size": 2**32 + 5}, "last_n_tokens_size must be"),
        ({"last_n_tokens_size": 1.5}, "last_n_tokens_size must be"),
        ({"type_k": 26}, r"type_k must be one of 0 \(f32\), 1 \(f16\), .*, not 26"),
        ({"type_k": -1}, "type_k must be one of"),
        ({"type_v": 999}, "type_v must be one of"),
    ],
    ids=str,
)
def test_numbers_that_llama_cpp_would_end_the_process_for(
    load: Load, tiny_path: Path, arguments: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ArgumentError, match=sentence):
        load(tiny_path, **arguments)


def test_a_lora_adapter_that_is_none(load: Load, tiny_path: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="LoRA adapter from lora path: .*nothing: the file does not exist"):
        load(tiny_path, lora_path=str(tmp_path / "nothing"))
    (tmp_path / "text").write_text("this is no adapter", encoding="utf-8")
    with pytest.raises(ModelError, match="LoRA adapter from lora path: .*text: "):
        load(tiny_path, lora_path=str(tmp_path / "text"))


@pytest.mark.parametrize(
    ("name", "cause"), [("m\udcff.gguf", "UTF-8"), ("m" * 5000, "File name too long")], ids=["bytes", "long"]
)
def test_a_file_name_that_cannot_be_used(tmp_path: Path, name: str, cause: str) -> None:
    with pytest.raises(ModelError, match=f"Failed to load model from file: .* cannot be opened: .*{cause}"):
        Llama(tmp_path / name)


def test_scores_that_recommend_a_window_beyond_the_budget(
    load: Load, tiny_path: Path, tmp_path: Path
) -> None:
    """The file is named, since nobody has given the window."""
    model = Path(shutil.copy(tiny_path, tmp_path / "model.gguf"))
    scores = HeadScores(scores=np.ones((2, 4)), n_head_kv=2, method="r", window=256)
    sidecar = tmp_path / "model.headkv.gguf"
    scores.to_sidecar(sidecar)
    with pytest.raises(ArgumentError, match=f"window of 256.*head scores: {sidecar}"):
        load(model, retention=Retention())
    assert load(model, retention=Retention(window=8)).scores_from == str(sidecar)


def test_where_scores_came_from_goes_with_the_retention(load: Load, smollm2: Path) -> None:
    llm = load(smollm2, n_ctx=256, retention=Retention())
    assert llm.scores_from is not None
    llm.retention = None
    assert llm.scores_from is None


def test_an_interrupt_while_a_model_is_loaded(tiny_path: Path) -> None:
    """llama.cpp's log lines arrive in a callback, where exceptions are lost: the first interrupts here."""
    program = """
import logging, os, signal, sys
from headkv_local import Llama, Retention

class Interrupting(logging.Handler):
    def emit(self, record):
        logging.getLogger("headkv_local.llama_cpp").removeHandler(self)
        os.kill(os.getpid(), signal.SIGINT)

logging.getLogger("headkv_local.llama_cpp").addHandler(Interrupting())
logging.getLogger("headkv_local.llama_cpp").setLevel(logging.DEBUG)
try:
    Llama(sys.argv[1], n_ctx=256, retention=Retention(budget=32))
except KeyboardInterrupt:
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    sys.exit(7)
"""
    command = [sys.executable, "-c", program, str(tiny_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (7, "")


@pytest.mark.parametrize("retention", [None, Retention(budget=64)])
def test_a_model_without_a_tokenizer(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, retention: Retention | None
) -> None:
    def none(writer: Any, *_: Any) -> int:
        writer.add_tokenizer_model("no_vocab")
        writer.add_vocab_size(288)
        return 288

    monkeypatch.setattr(gguf_factory, "_add_vocabulary", none)
    llm = load(gguf_factory.TinyModel().write(tmp_path / "none.gguf"), retention=retention)
    for call in (
        lambda: llm.tokenize(b"text"),
        lambda: llm.detokenize([1, 2]),
        lambda: llm("text"),
        lambda: llm.create_chat_completion([{"role": "user", "content": "text"}]),
    ):
        with pytest.raises(UnsupportedError, match="^the model has no tokenizer"):
            call()
    assert len(list(zip(llm.generate(list(range(200)), temp=0.0), range(3), strict=False))) == 3


def own() -> Any:
    yield TOKENS[0]
    raise TypeError("of my own")


NO_TOKENS = ("abc", b"abc", bytearray(b"abc"), memoryview(b"abc"), [5.5], ["a"], [[5]], [None], 5)


@pytest.mark.parametrize("tokens", NO_TOKENS)
def test_what_are_no_tokens(load: Load, tiny_path: Path, tokens: Any) -> None:
    llm = load(tiny_path)
    llm.eval(TOKENS[:3])
    for call in (llm.prefill, llm.eval, lambda tokens: next(llm.generate(tokens)), llm.detokenize):
        with pytest.raises(ArgumentError, match="^tokens must be ints, as tokenize") as caught:
            call(tokens)
        assert isinstance(caught.value, TypeError)  # as llama_cpp raises here
    assert llm.n_tokens == 3
    with pytest.raises(ArgumentError, match="^a question must be a slice of the prompt's tokens, not 5$"):
        llm.prefill(TOKENS, question=5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="of my own"):
        llm.prefill(own())
    array = (llama_cpp.llama_token * 3)(*TOKENS[:3])
    assert llm.detokenize(array) == llm.detokenize(TOKENS[:3])  # type: ignore[arg-type]
    assert_usable(llm)


def test_a_vocabulary_alone(load: Load, tiny_path: Path) -> None:
    """llama.cpp ends the process where it is asked for the heads."""
    llm = load(tiny_path, vocab_only=True)
    assert llm.detokenize(llm.tokenize(b"text")) == b"text"
    assert llm.cache_stats().full_bytes == 0
    assert llm.retention_mask().size == 0
    for call in (
        lambda: llm("Hello."),
        lambda: llm.prefill([1]),
        lambda: llm.shape,
        lambda: llm.save_session("a.session"),
        lambda: setattr(llm, "retention", Retention()),
    ):
        with pytest.raises(
            UnsupportedError, match="the model was loaded with vocab_only, so it has no weights$"
        ):
            call()


@pytest.mark.parametrize(("arch", "reason"), [("t5", "has an encoder"), ("bert", "keeps no cache")])
def test_a_model_that_generates_nothing(
    load: Load, tiny: Callable[..., Path], arch: str, reason: str
) -> None:
    """An encoder that was not called ends the process."""
    with pytest.raises(EncoderError, match=reason):
        load(tiny(arch=arch), retention=Retention(budget=16))
    llm = load(tiny(arch=arch))
    with pytest.raises(EncoderError, match=f"no text can be generated: the model {reason}"):
        llm("Hello.", max_tokens=2)
    embedding = load(tiny(arch=arch), embedding=True)
    if arch == "bert":
        assert embedding.embed("Hello.")
        return
    with pytest.raises(EncoderError, match="no text can be embedded"):
        embedding.embed("Hello.")


@pytest.mark.parametrize(
    ("name", "value", "hint"),
    [
        ("n_ctxx", 512, ": is n_ctx meant?"),
        ("f16_kv", False, ""),
        ("f16_kv", True, None),
        ("n_parts", -1, None),
        ("mul_mat_q", True, None),
    ],
)
def test_an_argument_that_llama_does_not_have_is_warned_of(
    load: Load, tiny_path: Path, caplog: pytest.LogCaptureFixture, name: str, value: object, hint: str | None
) -> None:
    """As llama_cpp takes any name, programs give it names of its past, and its server two of its own."""
    load(tiny_path, **{name: value})
    said = [] if hint is None else [f"{name} is no argument of Llama, and changes nothing{hint}"]
    assert [line for line in caplog.messages if "argument" in line] == said


@pytest.mark.parametrize("name", ["a\0b", "a\ud800b"])
def test_what_no_file_is_called(load: Load, tiny_path: Path, name: str) -> None:
    llm = load(tiny_path, retention=Retention(budget=64))
    llm.prefill(TOKENS)
    for use in (models.model_id, models.n_layers, HeadScores.from_gguf):
        with pytest.raises(ArgumentError, match="a file name cannot hold"):
            use(name)
    with pytest.raises(HeadKVError, match="a file name cannot hold"):
        llm.save_session(name)
    with pytest.raises(HeadKVError, match="a file name cannot hold"):
        llm.load_session(name)
    with pytest.raises(HeadKVError, match="."):
        Llama(name)
    assert (models.trained_context(name), models.token_bytes(name)) == (0, 0)
    assert_usable(llm)
