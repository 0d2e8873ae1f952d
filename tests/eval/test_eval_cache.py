"""What lm_eval keeps for later runs: answers with --use_cache, prompts with --cache_requests."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headkv_local import ArgumentError, HeadScores

FILLER = "It rained all day long, and nobody came to see the old house. " * 12

Answered = Callable[..., dict[str, Any]]


@pytest.fixture
def answered(lm_eval: Any, tiny_path: Path, tmp_path: Path) -> Answered:
    """answered(*prompts, **given): what a run says of itself that keeps its answers in one file."""
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import CachingLM

    from headkv_local.eval.model import HeadKVLM

    def run(*prompts: str, **given: Any) -> dict[str, Any]:
        model = HeadKVLM(**{"model": str(tiny_path), "n_ctx": 1024, "threads": 1, "budget": 32} | given)
        options = {"until": [], "max_gen_toks": 2}
        requests = [Instance("generate_until", {}, (text, options), 0) for text in prompts or (FILLER,)]
        CachingLM(model, str(tmp_path / "answers.db")).generate_until(requests)
        told: dict[str, Any] = model.get_model_info()["headkv"]
        return told

    return run


def test_answers_of_other_arguments_are_not_taken(answered: Answered) -> None:
    assert answered()["prompts"] == 1
    assert answered(threads=2)["prompts"] == 0
    with pytest.raises(ArgumentError, match=r"answers\.db holds answers of budget=32,.* not of budget=64"):
        answered(budget=64)


def test_answers_of_another_version_are_not_taken(
    answered: Answered, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered()
    monkeypatch.setattr("headkv_local.eval.model.__version__", "0.0.1")
    with pytest.raises(ArgumentError, match=r"answers\.db holds answers of .* not of .*version=0\.0\.1"):
        answered()


def test_answers_of_another_build_are_not_taken(
    answered: Answered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor those of a file that does not say."""
    from sqlitedict import SqliteDict

    answered()
    with monkeypatch.context() as other:
        other.setattr("headkv_local.eval.model.build_id", lambda: "another")
        with pytest.raises(ArgumentError, match=r"answers\.db holds answers of .* not of .*build=another"):
            answered()
    with SqliteDict(next(tmp_path.glob("answers*.db")), autocommit=True) as kept:
        kept["headkv"] = {name: value for name, value in kept["headkv"].items() if name != "build"}
    with pytest.raises(ArgumentError, match=r"answers of (?!.*build=.* not of ).*: give another file"):
        answered()


def test_scores_are_known_by_what_they_say(answered: Answered, tmp_path: Path) -> None:
    def scores(name: str, values: Any, **recommended: Any) -> str:
        path = tmp_path / name
        raw = np.array(values).reshape(2, 4)
        HeadScores(scores=raw, n_head_kv=2, method="r2", **recommended).to_sidecar(path, force=True)
        return str(path)

    first = scores("s.gguf", range(8))
    assert answered(scores=first)["prompts"] == 1
    assert answered(scores=shutil.copy(first, tmp_path / "moved.gguf"))["prompts"] == 0
    for values, recommended in ((range(8, 0, -1), {}), (range(8), {"beta": 2.0})):
        with pytest.raises(ArgumentError, match="give another file"):
            answered(scores=scores("s.gguf", values, **recommended))


def test_a_run_that_goes_on_says_what_was_left_out_before(answered: Answered) -> None:
    short, long = FILLER, FILLER * 4
    assert answered(long, short)["skipped"] == 1
    told = answered(long, short, long + "more")
    assert (told["skipped"], told["prompts"]) == (2, 0)
    assert answered(long, short)["skipped"] == 2


def test_prompts_of_an_earlier_run_have_no_messages_and_are_refused(
    lm_eval: Any, tiny_path: Path, babilong: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.tasks import TaskManager

    from headkv_local.eval.__main__ import TASKS

    monkeypatch.setattr("lm_eval.caching.cache.PATH", str(tmp_path / "prompts"))
    given = {"data": str(babilong), "length": "1k"}
    tasks = TaskManager(include_path=str(TASKS), include_defaults=False, metadata=given)

    def run(**options: bool) -> None:
        lm_eval.simple_evaluate(
            model="headkv",
            model_args=f"model={tiny_path},budget=10%,scores=uniform,n_ctx=2048,threads=1",
            tasks=["headkv_babilong_qa1"],
            task_manager=tasks,
            evaluation_tracker=EvaluationTracker(),
            cache_requests=True,
            **options,
        )

    run()
    run()  # texts need no messages
    run(apply_chat_template=True)
    with pytest.raises(ArgumentError, match="a prompt comes from an earlier run, without the messages"):
        run(apply_chat_template=True)
    run(apply_chat_template=True, rewrite_requests_cache=True)
