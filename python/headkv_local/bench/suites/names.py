"""The suites and their tasks by name. Nothing is imported here: --help waits for no library."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

BABILONG, RULER, LONGBENCH, LOOGLE = "babilong", "ruler", "longbench", "loogle"

RULER_QA: Final = ("qa_1", "qa_2")
"""RULER's tasks from files of other sets."""

TASKS: Final[Mapping[str, tuple[str, ...]]] = {
    BABILONG: tuple(f"qa{i}" for i in range(1, 11)),
    RULER: (
        *(f"niah_{kind}_{i}" for kind in ("single", "multikey") for i in (1, 2, 3)),
        "niah_multivalue",
        "niah_multiquery",
        "vt",
        "cwe",
        "fwe",
        *RULER_QA,
    ),
    LONGBENCH: (
        "narrativeqa",
        "qasper",
        "multifieldqa_en",
        "multifieldqa_zh",
        "hotpotqa",
        "2wikimqa",
        "musique",
        "dureader",
        "gov_report",
        "qmsum",
        "multi_news",
        "vcsum",
        "trec",
        "triviaqa",
        "samsum",
        "lsht",
        "passage_count",
        "passage_retrieval_en",
        "passage_retrieval_zh",
        "lcc",
        "repobench-p",
    ),
    LOOGLE: ("shortdep_qa", "longdep_qa", "shortdep_cloze", "longdep_summarization"),
}

LENGTHS: Final[Mapping[str, int]] = {
    f"{n}{unit}": n * size
    for unit, size, counts in (
        ("k", 1 << 10, (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512)),
        ("M", 1 << 20, (1, 10)),
    )
    for n in counts
}
"""What BABILong calls its lengths, in tokens."""

PEER, PEER_FULL = "kvpress ", "kvpress full-torch"
"""How the names of docs/results/peers.py's policies begin, and the one of these that keeps everything."""

WITH, BEFORE, ANEW = "with", "before", "anew"
CHOSEN: Final = (WITH, BEFORE, ANEW)
"""When what is kept of a document is chosen: with the question in the prompt; before the question is known;
and before it, then anew from an archive when it comes."""
