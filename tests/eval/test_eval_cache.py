"""What lm_eval keeps for later runs: prompts with --cache_requests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from headkv_local import ArgumentError


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
