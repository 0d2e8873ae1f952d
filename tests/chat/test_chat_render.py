from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from headkv_local import CacheStats
from headkv_local.chat.render import join, seconds, share, stats_parts, strip_control
from headkv_local.chat.turn import Answer
from headkv_local.wording import size


def make_answer(**changes: object) -> Answer:
    stats = CacheStats(
        prompt_tokens=4000,
        tail_tokens=57,
        n_ctx=8192,
        compacted=True,
        policy="uniform",
        kept=np.full((30, 3), 128, dtype=np.int32),
        full_bytes=180 * 2**20,
        resident_bytes=3 * 2**20,
        pool_bytes=2 * 2**20,
        tail_bytes=2**20,
        peak_bytes=181 * 2**20,
        row_bytes=256,
        select_seconds=0.01,
        compact_seconds=0.02,
        prefill_seconds=20.0,
    )
    values = {
        "text": "Yes.",
        "finish_reason": "stop",
        "prompt_tokens": 4000,
        "read_tokens": 4000,
        "reread_reason": None,
        "completion_tokens": 57,
        "prefill_seconds": 20.08,
        "decode_rate": 61.34,
        "context_full": False,
        "archive": None,
        "stats": stats,
    }
    return Answer(**(values | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain\ttext\n", "plain\ttext\n"),
        ("\x1b[31mred\x1b[0m", "[31mred[0m"),
        ("\x1b]0;title\x07", "]0;title"),
        ("\x9b31m", "31m"),
        ("over\rwrite\b\x7f\0", "overwrite"),
        ("é 日本 🙂", "é 日本 🙂"),
    ],
)
def test_strip_control(text: str, shown: str) -> None:
    assert strip_control(text) == shown


def test_strip_control_of_every_character() -> None:
    everything = "".join(map(chr, range(0x100)))
    assert strip_control(everything) == "\t\n" + "".join(map(chr, [*range(0x20, 0x7F), *range(0xA0, 0x100)]))


@pytest.mark.parametrize(
    ("n_bytes", "shown"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "0.98 KiB"),
        (1024, "1.00 KiB"),
        (12_800, "12.5 KiB"),
        (188_743_680, "180 MiB"),
        (2**40, "1024 GiB"),
    ],
)
def test_size(n_bytes: int, shown: str) -> None:
    assert size(n_bytes) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(1.0, "100 %"), (0.9996, "100 %"), (0.0321, "3.2 %"), (0.0004, "0.04 %"), (0.0, "0 %")],
)
def test_share(value: float, shown: str) -> None:
    assert share(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"), [(0.04, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (75.2, "75 s")]
)
def test_seconds(value: float, shown: str) -> None:
    assert seconds(value) == shown


def test_stats_line() -> None:
    assert join(stats_parts(make_answer()), None) == (
        "57 tokens, 61.3 tokens/s, read 4000 in 20 s, cache 180 MiB -> 3.00 MiB, kept 3.2 %"
    )


def test_stats_line_with_an_archive() -> None:
    stats = dataclasses.replace(make_answer().stats, archive_tokens=4000, archive_bytes=94 * 2**20)
    for archive, place in (("memory", "in memory"), ("/a/path", "in a file")):
        assert stats_parts(make_answer(stats=stats, archive=archive))[-1] == f"archive 94.0 MiB {place}"


def test_stats_line_of_one_token_has_no_rate() -> None:
    line = join(stats_parts(make_answer(completion_tokens=1, decode_rate=None, read_tokens=0)), None)
    assert line == "1 token, cache 180 MiB -> 3.00 MiB, kept 3.2 %"


def test_stats_line_where_nothing_was_compacted() -> None:
    whole = dataclasses.replace(make_answer().stats, compacted=False)
    assert join(stats_parts(make_answer(stats=whole)), None) == "57 tokens, 61.3 tokens/s, read 4000 in 20 s"


def test_stats_line_at_40_columns() -> None:
    lines = join(stats_parts(make_answer()), 40).split("\n")
    assert lines == [
        "57 tokens, 61.3 tokens/s,",
        "read 4000 in 20 s,",
        "cache 180 MiB -> 3.00 MiB, kept 3.2 %",
    ]


@pytest.mark.parametrize("width", [1, 10, 39, 80, None])
def test_join_loses_nothing(width: int | None) -> None:
    parts = ["a", "bb bb", "c" * 50, "d"]
    assert join(parts, width).replace(",\n", ", ") == ", ".join(parts)


def test_json_object() -> None:
    found = make_answer().as_json()
    assert found["text"] == "Yes."
    assert found["finish_reason"] == "stop"
    assert found["usage"] == {"prompt_tokens": 4000, "completion_tokens": 57, "total_tokens": 4057}
    assert found["stats"]["resident_bytes"] == 3 * 2**20
    assert found["stats"]["kept_share"] == 0.032
    assert make_answer(decode_rate=None).as_json()["stats"]["decode_rate"] is None
