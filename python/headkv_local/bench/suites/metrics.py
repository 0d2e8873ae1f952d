# ruff: noqa: RUF001 - Chinese
"""How suites judge an answer: from 0 to 1. Written anew from what each suite's own code computes."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import SequenceMatcher
from typing import Any

from headkv_local import UnsupportedError

from .item import Item
from .reading import literal

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_CHINESE_PUNCTUATION = set(
    "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､、〃》「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏"
)
_PUNCTUATION = set(string.punctuation)


def score(item: Item, answer: str) -> dict[str, float]:
    """By metric, in the item's order: of the expected answers the one that fits best."""
    if item.stop:
        answer = answer.lstrip(item.stop).split(item.stop)[0]
    return {name: METRICS[name](answer, item) for name in item.metrics}


def babilong(answer: str, item: Item) -> float:
    """Whether the first sentence names what is expected, and no other label but those of the question."""
    said = answer.lower().split(".")[0].split("<context>")[0].split("<example>")[0]
    labels = {label.lower() for label in item.classes}
    named = {label for label in labels if label in said and label not in item.question.lower()}
    target = item.answers[0].lower()
    expected = {one.strip() for one in target.split(",")} if len(target) > 3 else {target}
    return float(named == expected)


def match_all(answer: str, item: Item) -> float:
    """RULER's: the share of the expected texts that stand in the answer, in any case."""
    return sum(one.lower() in answer.lower() for one in item.answers) / len(item.answers)


def match_part(answer: str, item: Item) -> float:
    """RULER's: whether one of them does."""
    return float(any(one.lower() in answer.lower() for one in item.answers))


def f1(answer: str, item: Item) -> float:
    """Of words, without case, punctuation and articles."""
    return max(overlap(_words(answer), _words(one)) for one in item.answers)


def f1_chinese(answer: str, item: Item) -> float:
    return max(overlap(_chinese(answer), _chinese(one)) for one in item.answers)


def rouge_l(answer: str, item: Item) -> float:
    """F of the longest common subsequences of sentences, which end at periods."""
    return max(_f(*rouge_l_parts(answer, one)) for one in item.answers)


def rouge_l_chinese(answer: str, item: Item) -> float:
    return max(_f(*rouge_l_parts(" ".join(cut(answer)), " ".join(cut(one)))) for one in item.answers)


def rouge_l_recall(answer: str, item: Item) -> float:
    """LooGLE's: the share of the expected words that are found."""
    return max(rouge_l_parts(answer or "None", one)[1] for one in item.answers)


def classification(answer: str, item: Item) -> float:
    """1 / classes named, if the right one is among them. Names within the right one's name do not count.

    The suite misses every second of several such names, as it takes them from the list that it walks.
    """
    named = [one for one in item.classes if one in answer]
    return max(_share_of(right, [n for n in named if n == right or n not in right]) for right in item.answers)


def retrieval(answer: str, item: Item) -> float:
    """The share of the numbers in the answer that are the paragraph's."""
    return max(_share_of(_number(one), re.findall(r"\d+", answer)) for one in item.answers)


def count(answer: str, item: Item) -> float:
    return max(_share_of(one, re.findall(r"\d+", answer)) for one in item.answers)


def code_similarity(answer: str, item: Item) -> float:
    """Of the first line that is no comment and no fence, rounded to percent: difflib's ratio of characters.

    The suite's fuzzywuzzy takes it where python-Levenshtein, whose ratio is another one, is not installed.
    """
    lines = answer.lstrip("\n").split("\n")
    line = next((one for one in lines if not any(mark in one for mark in ("`", "#", "//"))), "")
    return max(round(100 * SequenceMatcher(None, line, one).ratio()) / 100 for one in item.answers)


def cloze(answer: str, item: Item) -> float:
    """The share of the masks with exactly the expected name."""
    return _masks(answer, item, lambda said, right: said == right)


def cloze_part(answer: str, item: Item) -> float:
    """The share of the masks with a word of the expected name."""
    return _masks(answer, item, lambda said, right: bool(set(said.split()) & set(right.split())))


Metric = Callable[[str, Item], float]

METRICS: Mapping[str, Metric] = {
    one.__name__: one
    for one in (
        babilong,
        match_all,
        match_part,
        f1,
        f1_chinese,
        rouge_l,
        rouge_l_chinese,
        rouge_l_recall,
        classification,
        retrieval,
        count,
        code_similarity,
        cloze,
        cloze_part,
    )
}

_NEED_JIEBA = {"f1_chinese", "rouge_l_chinese"}


def require(items: Iterable[Item]) -> None:
    """Raises UnsupportedError before anything is measured that could not be judged."""
    if any(_NEED_JIEBA & set(item.metrics) for item in items):
        cut("")


def cut(text: str) -> list[str]:
    """Chinese words. Raises UnsupportedError without jieba."""
    try:
        import jieba
    except ImportError as error:
        raise UnsupportedError(
            "Chinese answers are judged by words, which needs jieba: pip install 'headkv-local[eval]', or "
            "jieba by itself"
        ) from error
    jieba.setLogLevel("ERROR")
    return list(jieba.cut(text, cut_all=False))


def overlap(said: Sequence[str], right: Sequence[str]) -> float:
    """F1 of two bags of words."""
    same = (Counter(said) & Counter(right)).total()
    return 2 * same / (len(said) + len(right)) if same else 0.0


def rouge_l_parts(said: str, right: str) -> tuple[float, float]:
    """Precision and recall of ROUGE-L over whole texts, each word counted once, as the package rouge does.

    What is shared are the words of the longest common subsequences of each two sentences.
    """
    ours, theirs = _sentences(said), _sentences(right)
    n_ours, n_theirs = (len({word for one in text for word in one}) for text in (ours, theirs))
    if n_ours == 0 or n_theirs == 0:
        return 0.0, 0.0
    shared = {word for other in theirs for one in ours for word in common(other, one)}
    return len(shared) / n_ours, len(shared) / n_theirs


def common(a: Sequence[str], b: Sequence[str]) -> list[str]:
    """The longest common subsequence."""
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, one in enumerate(a, 1):
        for j, other in enumerate(b, 1):
            table[i][j] = table[i - 1][j - 1] + 1 if one == other else max(table[i - 1][j], table[i][j - 1])
    found, i, j = [], len(a), len(b)
    while i and j:
        if a[i - 1] == b[j - 1]:
            found.append(a[i - 1])
            i, j = i - 1, j - 1
        elif table[i - 1][j] > table[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return found[::-1]


def _words(text: str) -> list[str]:
    plain = "".join(letter for letter in text.lower() if letter not in _PUNCTUATION)
    return _ARTICLES.sub(" ", plain).split()


def _chinese(text: str) -> list[str]:
    dropped = _PUNCTUATION | _CHINESE_PUNCTUATION
    plain = ("".join(c for c in word.lower() if c not in dropped and not c.isspace()) for word in cut(text))
    return [word for word in plain if word]


def _sentences(text: str) -> list[list[str]]:
    """A piece that is blank is a sentence of one empty word there, one of length 0 is none."""
    return [one.split() or [""] for one in text.split(".") if one]


def _f(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall + 1e-8)


def _share_of(right: str, said: Sequence[str]) -> float:
    return said.count(right) / len(said) if said else 0.0


def _number(paragraph: str) -> str:
    """Of "Paragraph 7", "段落7"."""
    found = re.search(r"\d+", paragraph)
    return found.group() if found else paragraph


def _masks(answer: str, item: Item, fits: Callable[[str, str], bool]) -> float:
    right, said = literal(item.answers[0]), _named(answer)
    return sum(mask in said and fits(said[mask], name) for mask, name in right.items()) / len(right)


def _named(answer: str) -> dict[Any, str]:
    """Names by mask, as the first braces have them that hold none; empty where that is no object."""
    found = re.search(r"\{[^{}]*\}", answer)
    try:
        said = literal(found.group()) if found else {}
        return {mask: str(name) for mask, name in said.items()} if isinstance(said, dict) else {}
    except ValueError:  # of str() too, for a number that is too long
        return {}
