"""What was measured, sample by sample: JSON Lines that an interrupted run goes on from."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, NoReturn

from headkv_local import HeadScores
from headkv_local.errors import ArgumentError, DataError
from headkv_local.settings import given
from headkv_local.wording import shown

from ..policies import label_of
from ..report import writing
from . import metrics
from .prompts import Prompt

_FORMAT = "headkv bench quality --suite"
_VERSION = 2

PromptKey = tuple[str, str, int]
"""Task, length and number."""

Key = tuple[str, str, int, str, str]

Share = float
"""From 0 to 1."""


@dataclass(frozen=True)
class Outcome:
    """One question under one policy."""

    task: str
    length: str
    sample: int
    """Its number among those of the task and length."""
    policy: str
    budget: int | str | None
    chosen: str
    """When what is kept is chosen: names.WITH, BEFORE or ANEW."""
    prompt: str
    """Digest of the prompt's tokens, and of how an answer to it ends and is judged."""
    recipe: str
    """Digest of what the policy keeps: its settings and scores."""
    prompt_tokens: int
    removed_tokens: int
    """Cut out of the document's middle."""
    expected: tuple[str, ...]
    answer: str
    answer_tokens: int
    score: Share
    """The first of the scores."""
    scores: dict[str, Share]
    """By metric."""
    chance: Share
    kept_share: float
    kept_bytes: int
    resident_bytes: int
    archive_bytes: int
    seconds: float
    """From the copy of the full cache, or from the document's end in the archive, to the answer's end."""

    @classmethod
    def of(cls, prompt: Prompt, answer: str, **others: Any) -> Outcome:
        """Scored; others: the fields that neither the prompt nor the answer says."""
        item = prompt.item
        scores = metrics.score(item, answer)
        return cls(
            task=item.task,
            length=item.length,
            sample=item.number,
            prompt=prompt.digest,
            prompt_tokens=len(prompt.tokens),
            removed_tokens=prompt.n_removed,
            expected=item.answers,
            answer=answer,
            score=scores[item.metrics[0]],
            scores=scores,
            chance=item.chance,
            **others,
        )

    @property
    def label(self) -> str:
        return label_of(self.policy, self.budget, self.chosen)

    @property
    def key(self) -> Key:
        return self.task, self.length, self.sample, self.label, self.chosen


def digest_of(scores: HeadScores) -> str:
    """SHA-256, in hex, of what budgets are made of, wherever it lies: scores, curves and recommendations.

    Answers that other scores were used for are not taken for these.
    """
    found = hashlib.sha256(repr((scores.layers, scores.n_head_kv, given(scores))).encode())
    found.update(scores.scores.tobytes())
    if scores.curves is not None:
        found.update(scores.curves.shares.tobytes() + scores.curves.losses.tobytes())
    return found.hexdigest()


class Results:
    """The file of a run, or nothing but memory where path is None.

    header: what has to be the same for all outcomes of a file. settings: said in it, for whoever makes the
    prompts again. Raises ArgumentError for a file of another run, or damaged before its last line.
    """

    def __init__(self, path: Path | None, header: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        self._path = path
        self._done: dict[Key, Outcome] = {}
        self._prompts: dict[PromptKey, str] = {}
        if path is None:
            return
        if path.exists() and path.stat().st_size > 0:
            self._read(path, dict(header))
        else:
            first = {
                "format": _FORMAT,
                "version": _VERSION,
                "header": dict(header),
                "settings": dict(settings),
            }
            with writing(os.fspath(path)) as target:
                target.write_text(json.dumps(first, ensure_ascii=False) + "\n", encoding="utf-8")

    @property
    def prompts(self) -> Mapping[PromptKey, str]:
        """Digests of the prompts of all outcomes."""
        return self._prompts

    def budgets(self, policies: Collection[str]) -> list[int | str]:
        """That there are outcomes of these policies with."""
        found = (one.budget for one in self._done.values() if one.policy in policies)
        return list(dict.fromkeys(budget for budget in found if budget is not None))

    def require_same(self, recipes: Mapping[str, str]) -> None:
        """Raises ArgumentError for an outcome that has one of these labels, and another recipe."""
        for key, outcome in self._done.items():
            if recipes.get(key[3], outcome.recipe) != outcome.recipe:
                self._refuse(key, key[3])

    def found(self, key: Key, prompt: str) -> Outcome | None:
        """Raises ArgumentError if the file holds another prompt under this number."""
        if self._prompts.get(key[:3], prompt) != prompt:
            self._refuse(key, "prompt")
        return self._done.get(key)

    def add(self, outcome: Outcome) -> None:
        self._keep(outcome)
        if self._path is not None:
            try:
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(asdict(outcome), ensure_ascii=False) + "\n")
            except OSError as error:
                found = f"{self._path} cannot be written after {len(self._done)} answers"
                raise OSError(f"{found}: {error.strerror or error}") from error

    def _keep(self, outcome: Outcome) -> None:
        self._done[outcome.key] = outcome
        self._prompts[outcome.key[:3]] = outcome.prompt

    def _refuse(self, key: Key, what: str) -> NoReturn:
        raise ArgumentError(
            f"{self._path} holds {key[0]} {key[1]}, sample {key[2]}, with another {what}: give another "
            "--results, or the data, settings and version of that run"
        )

    def others(self, known: Sequence[Outcome]) -> list[Outcome]:
        """Outcomes of these samples under other labels than the known have: of earlier runs, or peers.

        The header says that those of earlier runs are of the same version and settings.
        """
        labels, samples = {one.label for one in known}, {one.key[:3] for one in known}
        return [one for one in self._done.values() if one.label not in labels and one.key[:3] in samples]

    def _read(self, path: Path, header: dict[str, Any]) -> None:
        *lines, last = path.read_bytes().split(b"\n")
        first = header_of(path)
        for name, value in header.items():
            theirs = first["header"].get(name)
            if name == "build" and theirs is None:
                raise ArgumentError(
                    f"{path} does not say which build of headkv-local its answers are of: give another "
                    "--results"
                )
            if theirs != value:
                raise ArgumentError(
                    f"{path} holds a run with {name} {theirs!r}, not {value!r}: give another --results"
                )
        for number, line in enumerate(lines[1:], 2):
            self._keep(_outcome(line, f"{path}, line {number}"))
        if last:  # a run was ended while it wrote
            os.truncate(path, path.stat().st_size - len(last))


def header_of(path: Path) -> dict[str, Any]:
    """The first line: format, version, header and settings. Raises ArgumentError, also for an old version."""
    with path.open("rb") as file:
        line = file.readline()
    try:
        first, is_whole = json.loads(line), line.endswith(b"\n")
        is_ours = is_whole and first["format"] == _FORMAT and isinstance(first["header"], dict)
        version = first["version"]
    except (ValueError, TypeError, KeyError, RecursionError):
        is_ours = False
    if not is_ours:
        raise ArgumentError(f"{path} holds no results of {_FORMAT}: give another --results")
    if version != _VERSION:
        raise ArgumentError(
            f"{path} has version {version} of its format, not {_VERSION}, and does not say which "
            "settings all of its answers are of: give another --results"
        )
    return dict(first)


def _is_share(value: object) -> bool:
    return type(value) in (int, float) and 0 <= value <= 1  # type: ignore[operator]


_IS: Mapping[str, Callable[[Any], bool]] = {
    "str": lambda value: isinstance(value, str),
    "int": lambda value: type(value) is int and value >= 0,
    "int | str | None": lambda value: value is None or type(value) in (int, str),
    "tuple[str, ...]": lambda value: isinstance(value, list) and all(isinstance(one, str) for one in value),
    "Share": _is_share,
    "dict[str, Share]": lambda value: isinstance(value, dict) and all(map(_is_share, value.values())),
    "float": lambda value: type(value) in (int, float) and math.isfinite(value),
}
"""By the type of a field."""


def _outcome(line: bytes, where: str) -> Outcome:
    try:
        values = json.loads(line)
        for one in fields(Outcome):
            if not _IS[str(one.type)](values[one.name]):
                raise ValueError(f"its {one.name} cannot be {shown(values[one.name], 60)}")
        found = Outcome(**{one.name: values[one.name] for one in fields(Outcome)})
        return replace(found, expected=tuple(found.expected))
    except KeyError as error:
        raise DataError(f"{where}: is no outcome: it has no {error}") from error
    except (ValueError, TypeError, RecursionError) as error:
        raise DataError(f"{where}: is no outcome: {error}") from error
