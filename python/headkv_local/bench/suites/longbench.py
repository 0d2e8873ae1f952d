# ruff: noqa: RUF001 - Chinese
"""LongBench (Bai et al., 2024). Files as the public set has them: DIR/TASK.jsonl, or TASK_e.jsonl.

Prompts and answer lengths are those of the suite where its dataset2prompt.json and dataset2maxlen.json lie in
DIR or DIR/config; else ours. Metrics are the suite's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Formatter

from headkv_local.wording import shown

from .item import ANSWER_LINES, Item
from .names import LONGBENCH, TASKS
from .reading import Row, first_file, found_tasks, rows, whole

_CONTEXT, _INPUT = "{context}", "{input}"
PROMPTS, LENGTHS = "dataset2prompt.json", "dataset2maxlen.json"


@dataclass(frozen=True)
class _Kind:
    """chat, marks, stop: as in Item. prompt: ours."""

    metric: str
    max_tokens: int
    prompt: str
    chat: bool = True
    marks: bool = True
    stop: str = ""
    chance: float = 0.0


_SHORT = "Give the answer alone, in as few words as you can."
_ANSWER = f"{_CONTEXT}\n\nAnswer this question about the text above. {_SHORT}\nQuestion: {_INPUT}\nAnswer:"
_CHINESE = f"{_CONTEXT}\n\n请根据上文回答问题，只写答案，越短越好。\n问题：{_INPUT}\n答案："
_SUMMARY = f"{_CONTEXT}\n\nSum up the text above on one page.\nSummary:"
_CHOOSE = "Which paragraph above is this a summary of?"
_LINE = f"{_CONTEXT}{_INPUT}Next line of code:\n"
_EXAMPLES = f"{_CONTEXT}\n{_INPUT}"


def _lines(metric: str, max_tokens: int) -> _Kind:
    """Examples that the answer goes on from: no chat."""
    return _Kind(metric, max_tokens, _EXAMPLES, chat=False, stop=ANSWER_LINES)


_KINDS: Mapping[str, _Kind] = {
    "narrativeqa": _Kind("f1", 128, _ANSWER),
    "qasper": _Kind(
        "f1", 128, _ANSWER.replace(_SHORT, f'{_SHORT} If the text has none, say "unanswerable".')
    ),
    "multifieldqa_en": _Kind("f1", 64, _ANSWER),
    "multifieldqa_zh": _Kind("f1_chinese", 64, _CHINESE),
    **dict.fromkeys(("hotpotqa", "2wikimqa", "musique"), _Kind("f1", 32, _ANSWER)),
    "dureader": _Kind("rouge_l_chinese", 128, _CHINESE),
    "gov_report": _Kind("rouge_l", 512, _SUMMARY),
    "qmsum": _Kind("rouge_l", 512, _ANSWER.replace(_SHORT, "Answer in a few sentences.")),
    "multi_news": _Kind("rouge_l", 512, _SUMMARY),
    "vcsum": _Kind("rouge_l_chinese", 512, f"{_CONTEXT}\n\n请总结上面的会议内容。\n总结："),
    "trec": _lines("classification", 64),
    "triviaqa": _lines("f1", 32),
    "samsum": _lines("rouge_l", 128),
    "lsht": _lines("classification", 64),
    "passage_count": _Kind(
        "count",
        32,
        f"{_CONTEXT}\n\nSome of the paragraphs above are repeated. How many different ones are there? "
        "Give the number alone.\nNumber: ",
    ),
    "passage_retrieval_en": _Kind(
        "retrieval",
        32,
        f'{_CONTEXT}\n\n{_CHOOSE}\n\n{_INPUT}\n\nAnswer as in "Paragraph 1".\nAnswer: ',
        chance=1 / 30,
    ),
    "passage_retrieval_zh": _Kind(
        "retrieval",
        32,
        f"{_CONTEXT}\n\n下面是哪一段的摘要？\n\n{_INPUT}\n\n按“段落1”的格式回答。\n答案：",
        chance=1 / 30,
    ),
    "lcc": _Kind("code_similarity", 64, _LINE, chat=False, marks=False),
    "repobench-p": _Kind("code_similarity", 64, _LINE, chat=False, marks=False),
}


def items(folder: Path, tasks: Sequence[str] | None) -> list[Item]:
    """All questions. Raises DataError for what is not there, or has another schema."""

    def path_of(task: str) -> Path | None:
        return first_file(
            *(at / f"{task}{end}.jsonl" for end in ("", "_e") for at in (folder, folder / "data"))
        )

    paths = found_tasks(
        folder,
        tuple(tasks or ()) or None,
        TASKS[LONGBENCH],
        path_of,
        "LongBench is looked for in DIR/TASK.jsonl",
    )
    prompts, lengths = _official(folder, PROMPTS), _official(folder, LENGTHS)
    return [
        _item(task, number, row, prompt, max_tokens)
        for task, path in paths.items()
        for prompt, max_tokens in [(_prompt(prompts, task), _length(lengths, task))]
        for number, row in enumerate(rows(path))
    ]


def _prompt(official: Row, task: str) -> str | None:
    if task not in official:
        return None
    prompt = official.text(task)
    if _fields(prompt).count("context") != 1 or prompt.count(_CONTEXT) != 1:
        official.refuse(task, f"must hold {_CONTEXT} once, and beside it {_INPUT} alone")
    return prompt


def _length(official: Row, task: str) -> int | None:
    if task not in official:
        return None
    length = official.value(task)
    if type(length) is not int or length < 1:
        official.refuse(task, f"must be a number of tokens, not {shown(length, 60)}")
    return length


def _fields(prompt: str) -> list[str]:
    """What str.format() would ask for; empty for a prompt that it does not take."""
    try:
        parts = [part for part in Formatter().parse(prompt) if part[1] is not None]
    except ValueError:
        return []
    known = all(name in ("context", "input") and not (spec or kind) for _, name, spec, kind in parts)
    return [str(name) for _, name, _, _ in parts] if known else []


def has_official_prompts(folder: Path) -> bool:
    return _official_file(folder, PROMPTS) is not None


def _item(task: str, number: int, row: Row, prompt: str | None, max_tokens: int | None) -> Item:
    kind = _KINDS[task]
    if (named := row.text("dataset").removesuffix("_e")) != task:
        row.refuse("dataset", f"must be {task!r}, not {named!r}")
    asked, answers = row.text("input"), row.texts("answers")
    classes = row.texts_or_null("all_classes")
    if kind.metric == "classification" and not set(answers) <= set(classes):
        row.refuse("all_classes", "must hold the answers")
    if kind.metric in ("count", "retrieval") and not all(re.search(r"\d", one) for one in answers):
        row.refuse("answers", f"must be numbers, not {shown(list(answers), 60)}")
    if kind.metric != "code_similarity" and not any(re.search(r"\w", one) for one in answers):
        row.refuse("answers", "has no answer that could be right")
    before, _, after = (prompt or kind.prompt).partition(_CONTEXT)
    return Item(
        task=task,
        length="",
        number=number,
        before=before.format(input=asked),
        document=row.filled("context"),
        after=after.format(input=asked),
        answers=answers,
        metrics=(kind.metric,),
        max_tokens=max_tokens or kind.max_tokens,
        question=asked,
        classes=classes,
        marks=kind.marks,
        chat=kind.chat,
        stop=kind.stop,
        chance=1 / len(classes) if kind.metric == "classification" else kind.chance,
    )


def _official_file(folder: Path, name: str) -> Path | None:
    return first_file(folder / name, folder / "config" / name)


def _official(folder: Path, name: str) -> Row:
    path = _official_file(folder, name)
    return Row({}, name) if path is None else whole(path)
