"""One answer of the model, in the thread of a job."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any, cast

from headkv_local.chat.model import ChatLlama, Meter
from headkv_local.chat.turn import Answer, FinishReason, Prefill, Text
from headkv_local.chat.worker import Job
from headkv_local.errors import Cancelled


def answer(
    llm: ChatLlama, messages: Sequence[Mapping[str, Any]], max_tokens: int, job: Job[Answer]
) -> Answer:
    """Complete the chat, and emit what happens. Cancelled is an answer too; raises HeadKVError.

    max_tokens: -1 for no limit but the context.
    """
    llm.watch_prefill = lambda done, total: job.emit(Prefill(done, total))
    llm.meter = Meter(started=time.perf_counter())  # the job may be stopped before it generates
    pieces: list[str] = []
    finish: FinishReason = "interrupt"
    try:
        stream: Any = llm.create_chat_completion(
            messages=cast(Any, messages),
            stream=True,
            max_tokens=max_tokens,
            grammar=llm.grammar,
            **llm.sampling.arguments(),
        )
        with closing(stream):
            for chunk in stream:
                choice = chunk["choices"][0]
                if piece := choice["delta"].get("content"):
                    pieces.append(piece)
                    job.emit(Text(piece))
                if choice["finish_reason"] is not None:
                    finish = choice["finish_reason"]
                elif llm.meter.loop is not None:
                    finish = "repetition"
                    break
    except Cancelled:
        finish = "interrupt"
    meter = llm.meter
    # The token that ends an answer is sampled but no part of it.
    completion = meter.sampled - (finish == "stop")
    retention = llm.retention
    return Answer(
        text="".join(pieces),
        finish_reason=finish,
        prompt_tokens=meter.prompt_tokens,
        read_tokens=meter.read_tokens,
        reread_reason=llm.reread_reason if meter.read_tokens else None,
        completion_tokens=completion,
        prefill_seconds=meter.prefill_seconds(),
        decode_rate=meter.decode_rate,
        archive=None if retention is None or retention.archive is None else str(retention.archive),
        context_full=finish == "length" and not 0 < max_tokens <= completion,
        stats=llm.cache_stats(),
    )
