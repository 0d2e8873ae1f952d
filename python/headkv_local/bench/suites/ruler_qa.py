"""RULER's questions from other sets: SQuAD 2 and HotpotQA, their documents among others of the same file.

Files as these sets have them. Of the others come first, as in RULER, those of the same article (SQuAD), and
those that its authors set beside a question (HotpotQA). The sentences around are ours. Questions are asked in
an order that depends on the seed alone.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

from headkv_local.errors import DataError

from .names import RULER_QA
from .reading import Row, first_file, found_tasks, rows, whole
from .ruler_sample import Asked

_SQUAD, _HOTPOTQA = RULER_QA
_FILES = {
    _SQUAD: ("dev-v2.0.json", "squad.json"),
    _HOTPOTQA: ("hotpot_dev_distractor_v1.json", "hotpotqa.json"),
}
_LAYOUT = f"SQuAD is looked for in DIR/{_FILES[_SQUAD][0]}, HotpotQA in DIR/{_FILES[_HOTPOTQA][0]}"

_FIRST = "Answer a question from these documents. Give the answer alone.\n\n"
_AGAIN = "\n\nAnswer this question from the documents above. Give the answer alone."


@dataclass(frozen=True)
class _Question:
    """needed, near: numbers of documents: which hold the answer, and which come before others."""

    text: str
    answers: tuple[str, ...]
    needed: tuple[int, ...]
    near: tuple[int, ...]


@dataclass(frozen=True)
class Source:
    """A file: its documents, each once, and what is asked about them."""

    documents: Sequence[str]
    questions: Sequence[_Question]

    def asked(self, number: int, seed: int, length: int, rng: random.Random) -> Asked:
        """The question of this number, with documents for prompts of up to `length` tokens.

        A unit is a document; where the file has too few, those that are not needed come again, as in RULER.
        """
        order = list(range(len(self.questions)))
        random.Random(f"{seed}/ruler/questions").shuffle(order)
        question = self.questions[order[number]]
        own = {*question.needed, *question.near}
        far = [i for i in range(len(self.documents)) if i not in own]
        others = [
            *rng.sample(question.near, len(question.near)),
            *rng.sample(far, min(len(far), length // 8)),
        ]
        places = rng.random()

        def document(n: int) -> str:
            mixed = [*question.needed, *islice(cycle(others), max(0, n - len(question.needed)))]
            random.Random(places).shuffle(mixed)
            return "\n\n".join(f"Document {i}:\n{self.documents[at]}" for i, at in enumerate(mixed, 1))

        return Asked(
            document=document,
            before=_FIRST,
            after=f"{_AGAIN}\nQuestion: {question.text}",
            lead="The answer is:",
            answers=question.answers,
            max_tokens=32,
            metric="match_part",
        )


def sources(folder: Path, tasks: Sequence[str] | None) -> dict[str, Source]:
    """Of these tasks, or of those whose files are there. Raises DataError."""

    def path_of(task: str) -> Path | None:
        return first_file(*(folder / name for name in _FILES[task]))

    paths = found_tasks(folder, None if tasks is None else tuple(tasks), RULER_QA, path_of, _LAYOUT)
    return {task: _source(task, path) for task, path in paths.items()}


def _source(task: str, path: Path) -> Source:
    documents: dict[str, int] = {}
    questions = (_squad if task == _SQUAD else _hotpotqa)(path, documents)
    if not questions:
        raise DataError(f"{path} has no question with an answer")
    if any(len(one.needed) == len(documents) for one in questions):
        raise DataError(f"{path} has no documents beside those that a question needs")
    return Source(list(documents), questions)


def _squad(path: Path, documents: dict[str, int]) -> list[_Question]:
    """documents: numbers by text; new ones are added."""
    found = []
    for article in whole(path).rows("data", "article"):
        paragraphs = article.rows("paragraphs", "paragraph")
        numbers = [_number(documents, one.filled("context")) for one in paragraphs]
        for number, paragraph in zip(numbers, paragraphs, strict=True):
            near = tuple(dict.fromkeys(one for one in numbers if one != number))
            for asked in paragraph.rows("qas", "question"):
                text = asked.filled("question").strip()
                if not _impossible(asked):
                    answers = tuple(
                        dict.fromkeys(a.filled("text").strip() for a in asked.rows("answers", "answer"))
                    )
                    if not answers:
                        asked.refuse("answers", "is empty, where the question is not impossible")
                    found.append(_Question(text, answers, (number,), near))
    return found


def _impossible(asked: Row) -> bool:
    """SQuAD 1 has only questions with answers, and does not say so."""
    value = asked.value("is_impossible") if "is_impossible" in asked else False
    if not isinstance(value, bool):
        asked.refuse("is_impossible", f"must be true or false, not {value!r}")
    return value


def _hotpotqa(path: Path, documents: dict[str, int]) -> list[_Question]:
    found = []
    for row in rows(path):
        context, facts = row.value("context"), row.value("supporting_facts")
        if not isinstance(context, list) or not context or not all(_is_paragraph(one) for one in context):
            row.refuse("context", "must be a list of paragraphs, each a title and a list of sentences")
        if not isinstance(facts, list) or not facts or not all(_is_fact(one) for one in facts):
            row.refuse("supporting_facts", "must be a list of titles with the number of a sentence each")
        numbers = {title: _number(documents, f"{title}\n{''.join(texts)}") for title, texts in context}
        needed = tuple(dict.fromkeys(numbers.get(title, -1) for title, _ in facts))
        if -1 in needed:
            row.refuse("supporting_facts", "names a title that 'context' does not have")
        near = tuple(dict.fromkeys(one for one in numbers.values() if one not in needed))
        found.append(_Question(row.filled("question").strip(), (row.filled("answer").strip(),), needed, near))
    return found


def _is_paragraph(value: object) -> bool:
    match value:
        case [str(), [*sentences]]:
            return bool(sentences) and all(isinstance(one, str) for one in sentences)
    return False


def _is_fact(value: object) -> bool:
    match value:
        case [str(), int()]:
            return True
    return False


def _number(documents: dict[str, int], text: str) -> int:
    return documents.setdefault(text, len(documents))
