"""LooGLE (Li et al., 2023). Files as the public set has them: DIR/TASK.jsonl, with either schema.

One document a line: input, qa_pairs (a list of Q and A, as such or as Python writes it, or "none"), output.
Or one question a line: context, question, answer. Prompts are ours. QA and summaries are judged by ROUGE-L's
recall as the suite's code computes it, cloze by its exact match; F1 and the partial match stand beside them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .item import Item
from .names import LOOGLE, TASKS
from .reading import Row, first_file, found_tasks, literal, rows

_CLOZE, _SUMMARY = "shortdep_cloze", "longdep_summarization"
_MAX_TOKENS = {"shortdep_qa": 300, "longdep_qa": 500, _CLOZE: 50, _SUMMARY: 500}
_NONE = "none"


def items(folder: Path, tasks: Sequence[str] | None) -> list[Item]:
    """All questions, document by document. Raises DataError for what is missing or of another schema."""

    def path_of(task: str) -> Path | None:
        return first_file(*(at / f"{task}.jsonl" for at in (folder, folder / "data")))

    paths = found_tasks(
        folder, tuple(tasks or ()) or None, TASKS[LOOGLE], path_of, "LooGLE is looked for in DIR/TASK.jsonl"
    )
    return [item for task, path in paths.items() for item in _of_file(task, path)]


def _of_file(task: str, path: Path) -> Iterator[Item]:
    number = 0
    for row in rows(path):
        for document, question, answer in _asked(task, row):
            yield _item(task, number, document, question, answer)
            number += 1


def _asked(task: str, row: Row) -> Iterator[tuple[str, str, str]]:
    """Document, question and answer."""
    if "context" in row and "qa_pairs" not in row:
        yield row.filled("context"), "" if task == _SUMMARY else row.filled("question"), _answer(task, row)
        return
    document, pairs = row.filled("input"), row.value("qa_pairs")
    if task == _SUMMARY:
        yield document, "", row.filled("output")
        return
    if isinstance(pairs, str) and pairs != _NONE:
        try:
            pairs = literal(pairs)
        except ValueError:
            row.refuse("qa_pairs", "is no list as Python writes it")
    if not isinstance(pairs, list) or not pairs:
        row.refuse("qa_pairs", "must be a list of questions with at least one")
    for i, pair in enumerate(pairs):
        if not isinstance(pair, dict):
            row.refuse("qa_pairs", f"must hold objects with Q and A, not {pair!r}")
        one = Row(pair, f"{row.where}, question {i + 1}")
        yield document, one.filled("Q"), _answer(task, one, "A")


def _answer(task: str, row: Row, key: str = "answer") -> str:
    """A text; of a cloze, an object of names by mask as Python writes it."""
    if task != _CLOZE:
        return row.filled(key)
    value = row.value(key)
    if isinstance(value, str):
        try:
            value = literal(value)
        except ValueError:
            row.refuse(key, "is no object as Python writes it")
    if not _are_texts(value):
        row.refuse(key, "must be an object of names by mask, with at least one")
    return repr(value)


def _are_texts(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(part, str) for pair in value.items() for part in pair)
    )


def _item(task: str, number: int, document: str, question: str, answer: str) -> Item:
    if task == _SUMMARY:
        after = "\n\nSum up the text above.\nSummary:"
    elif task == _CLOZE:
        after = (
            "\n\nIn this sentence about the text above, names are masked: the same mask stands for the same "
            "name of a person, a place or an organization. Write the names alone, as in {'<mask-0>': 'Ada', "
            f"'<mask-1>': 'London'}}.\nSentence: {question}\nNames:"
        )
    else:
        after = f"\n\nAnswer this question about the text above.\nQuestion: {question}\nAnswer:"
    return Item(
        task=task,
        length="",
        number=number,
        before="",
        document=document,
        after=after,
        answers=(answer,),
        metrics=("cloze", "cloze_part") if task == _CLOZE else ("rouge_l_recall", "f1"),
        max_tokens=_MAX_TOKENS[task],
        question=question,
    )
