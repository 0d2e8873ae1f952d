"""Where a model of the server has its archive, and what it is loaded with."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest
from llama_cpp import LlamaGrammar, llama_chat_format

from headkv_local import ArgumentError, HeadScores, Llama, Retention, defaults, devices
from headkv_local.scores import sidecar_path
from headkv_local.server.errors import Refusal
from headkv_local.server.models import Models
from headkv_local.server.served import Asked
from headkv_local.server.settings import ModelSettings, ServerSettings
from headkv_local.server.variables import told
from helpers import needed


@contextmanager
def models(path: Path, folder: Path, most: int = 32, **given: Any) -> Iterator[Models]:
    settings: dict[str, Any] = {"model": str(path), "n_ctx": 0, "budget": 16, "n_threads": 1}
    made = Models(
        [ModelSettings(**settings | given)], ServerSettings(sessions=str(folder), max_conversations=most)
    )
    try:
        yield made
    finally:
        made.free()


def test_a_context_that_needs_an_archive_in_a_file(
    tiny_path: Path, tmp_path: Path, container: Callable[[int], None]
) -> None:
    """It is as large as with "file", and what the model keeps says where."""
    container((needed(tiny_path, "rows") + needed(tiny_path, "memory")) // 2)
    with models(tiny_path, tmp_path, archive="auto") as made:
        llm = made()
        assert llm.n_ctx() == 8192
        assert llm.retention is not None
        assert llm.retention.archive == made.archive_file
        assert Path(made.archive_file or "").exists()
        assert made.usual is not None
        assert made.usual["archive"] == made.archive_file
    assert not list(tmp_path.rglob("archive-*"))
    for given in ({"archive": "memory"}, {"n_ctx": 32768}, {"n_ctx": 32768, "budget": "full"}):
        with models(tiny_path, tmp_path, **given) as made, pytest.raises(Refusal, match="make n_ctx smaller"):
            made()
        assert not list(tmp_path.rglob("archive-*"))


def test_in_memory_while_there_is_room(
    tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for free, in_memory in ((1 << 30, True), (1000, False)):
        monkeypatch.setattr(defaults, "memory_free", lambda free=free: free)
        with models(tiny_path, tmp_path, archive="auto") as made:
            llm = made()
            assert llm.retention is not None
            assert llm.retention.archive == ("memory" if in_memory else made.archive_file)


def test_in_memory_where_nobody_can_tell_what_is_free(
    tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And without a folder for a file."""
    for module in ("defaults", "server.models"):
        monkeypatch.setattr(f"headkv_local.{module}.memory_free", lambda: None)
    with models(tiny_path, tmp_path, 0, archive="auto") as made:
        llm = made()
        assert llm.retention is not None
        assert llm.retention.archive == "memory"


@pytest.mark.parametrize("lacks", ["file", "folder"])
def test_no_room_and_no_file(
    tiny_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    lacks: str,
) -> None:
    """Nobody has asked for a file, so the model is served without an archive, and a warning says why."""
    monkeypatch.setattr(defaults, "memory_free", lambda: 1000)
    most = 0 if lacks == "folder" else 2
    with models(tiny_path, tmp_path, most, archive="auto") as made:
        if lacks == "file":
            mine = tmp_path / tiny_path.name.removesuffix(".gguf") / f"archive-{os.getpid()}"
            mine.mkdir(parents=True)
        llm = made()
        assert llm.retention is not None
        assert made.usual is not None
        assert (llm.retention.archive, made.usual["archive"]) == (None, None)
    (said,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "has no archive: " in said
    if lacks == "file":
        with (
            models(tiny_path, tmp_path, archive="file") as made,
            pytest.raises(Refusal, match="cannot be made"),
        ):
            made()


def test_no_archive_where_logits_of_all_tokens_are_kept(tiny_path: Path, tmp_path: Path) -> None:
    with models(tiny_path, tmp_path, archive="auto", logits_all=True, n_ctx=256) as made:
        llm = made()
        assert llm.retention is not None
        assert (llm.retention.archive, made.usual) == (None, {"budget": 16, "scores": None, "archive": None})


def test_what_a_template_is_told_hides_nothing_of_it(tiny: Callable[..., Path], tmp_path: Path) -> None:
    """Turns go on, parts are text, and what the template would leave out is refused."""
    template = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'].split('</think>')[-1] }}\n{% endfor %}"
        "assistant:{% if not enable_thinking %}<think></think>{% endif %}"
    )
    variables = {"enable_thinking": False}
    with models(tiny(chat_template=template), tmp_path, chat_template_kwargs=variables) as made:
        llm = made()
        messages: list[Any] = []
        reads: list[int] = []
        llm.on_prefill = lambda done, total: reads.append(total) if done == 0 else None
        for question in ("Why was it said? " * 10, "And then?", "And in the end?"):
            messages.append({"role": "user", "content": [{"type": "text", "text": question}]})
            reply = llm.create_chat_completion(messages, max_tokens=4, temperature=0.0)
            messages.append({"role": "assistant", "content": reply["choices"][0]["message"]["content"]})
            prompt = llm.detokenize(llm.input_ids[: llm.n_tokens].tolist()).decode(errors="replace")
            assert f"user: {question}\nassistant:<think></think>" in prompt
        assert reads[0] > 100
        assert max(reads[1:]) < 60
        messages.append({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]})
        with pytest.raises(ArgumentError, match="image_url"):
            llm.create_chat_completion(messages, max_tokens=4)


def test_log_probabilities_of_the_prompt_too(tiny_path: Path, tmp_path: Path) -> None:
    """Also where the conversation comes back or is the one in the context."""
    text, wanted = "The harbour has much to say. " * 8, {"max_tokens": 4, "temperature": 0.0, "logprobs": 2}
    sizes: dict[str, Any] = {"n_ctx": 1024, "logits_all": True, "n_threads_batch": 1}
    alone = Llama(str(tiny_path), n_threads=1, flash_attn=True, **sizes)
    expected: Any = alone.create_completion(text, echo=True, **wanted)
    with models(tiny_path, tmp_path, budget="full", **sizes) as made:
        for prompt in (text, text, "What else is there?", text):
            with made().answered(Asked(None)):
                found = made().create_completion(prompt, echo=True, **wanted)
            if prompt == text:
                assert found["choices"] == expected["choices"]


def test_a_request_says_whether_scores_count(tiny_path: Path, tmp_path: Path) -> None:
    """Also of a conversation that was kept by the other ones before."""
    model = Path(shutil.copy(tiny_path, tmp_path / "model.gguf"))
    HeadScores(scores=np.arange(8).reshape(2, 4), n_head_kv=2, method="r2").to_sidecar(sidecar_path(model))
    text, masks = "The harbour has much to say. " * 8, []
    with models(model, tmp_path / "kept", budget=32, n_ctx=1024) as made:
        for scores in (None, "uniform", None, "uniform"):
            retention = Retention(budget=32, archive="memory", scores=scores)
            with made().answered(Asked(retention)):
                made().create_completion(text, max_tokens=2)
            assert made().cache_stats().policy == (scores or "scores")
            masks.append(made().retention_mask())
    assert (masks[0] == masks[2]).all()
    assert (masks[1] == masks[3]).all()
    assert (masks[0] != masks[1]).any()


def test_a_request_without_a_seed_gets_a_new_one(tiny_path: Path, tmp_path: Path) -> None:
    """Whatever the one before had. With a seed of the model answers are the same again after a restart."""

    def answers(**given: Any) -> list[str]:
        found, long = [], LlamaGrammar.from_string('root ::= [a-z]+ " " root')  # none is as short as another
        with models(tiny_path, tmp_path, n_ctx=512, **given) as made:
            for seed in (7, None, 7, None):
                with made().answered(Asked(None)):
                    reply = made().create_completion(
                        "hello", max_tokens=16, temperature=5.0, seed=seed, grammar=long
                    )
                found.append(reply["choices"][0]["text"])
        return found

    drawn = [*answers(), *answers(seed=-1)]
    assert len({drawn[n] for n in (0, 2, 4, 6)}) == 1
    assert len(set(drawn)) == 5
    assert answers(seed=3) == answers(seed=3)


@pytest.mark.skipif(bool(devices.gpus()), reason="there is a GPU")
def test_a_gpu_that_cannot_be_used_is_told(
    tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "libggml-cuda.so").write_bytes(b"no library")  # a build for CUDA has one
    monkeypatch.setattr(devices, "library_dir", lambda: tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for asked in (None, -1):
        caplog.clear()
        with models(tiny_path, tmp_path, n_ctx=512, n_gpu_layers=asked) as made:
            made()
        (said,) = (message for message in caplog.messages if "on the CPU" in message)
        assert devices.why_no_gpu() in said


def test_each_name_has_a_folder_of_its_own(tiny_path: Path, tmp_path: Path) -> None:
    names = ["a_b", "a b", "a/b", ".a_b", "..", "x" * 100, "x" * 101, "x" * 102, "界" * 100, "界" * 101]
    many = [ModelSettings(model=str(tiny_path), model_alias=name, n_ctx=512, n_threads=1) for name in names]
    made = Models(many, ServerSettings(sessions=str(tmp_path)))
    for name in names:
        made(name)
    made.free()
    found = {path.name for path in tmp_path.iterdir()}
    assert len(found) == len(names)
    assert found > {"a_b", "x" * 100}
    assert all((tmp_path / name / "lock").is_file() for name in found)


def test_two_apps_load_at_the_same_time(tiny_path: Path, tmp_path: Path) -> None:
    """Each with its own retention, and llama_cpp has its own class afterwards."""
    stock, budgets = llama_cpp.Llama, [16, 24, 32, 40]
    with ExitStack() as stack, ThreadPoolExecutor(4) as threads:
        apps = [stack.enter_context(models(tiny_path, tmp_path / str(n), budget=n)) for n in budgets]
        found = [llm.retention for llm in threads.map(lambda app: app(), apps)]
    assert [each.budget for each in found if each is not None] == budgets
    assert llama_cpp.Llama is stock


def test_a_request_has_variables_of_its_own(tiny: Callable[..., Path], tmp_path: Path) -> None:
    """For its template alone, over those of the model; chats without a template have none."""
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}|{{ mood }}|{{ pace }}|"
    with models(tiny(chat_template=template), tmp_path, chat_template_kwargs={"mood": "calm"}) as made:
        llm = made()
        found = []
        for variables in (None, {"mood": "wild", "pace": 3}, {}, None):
            with told(llm, variables):
                llm.create_chat_completion([{"role": "user", "content": "Why?"}], max_tokens=1)
            found.append(llm.detokenize(llm.input_ids[: llm.n_tokens].tolist()).decode(errors="replace"))
        assert [text.split("Why?")[1].split("|")[1:3] for text in found] == [
            ["calm", ""],
            ["wild", "3"],
            ["calm", ""],
            ["calm", ""],
        ]
        before, llm.chat_handler = llm.chat_handler, llama_chat_format.chatml_function_calling
        with pytest.raises(ArgumentError, match="no template with variables"), told(llm, {"mood": "wild"}):
            pass
        llm.chat_handler = before
