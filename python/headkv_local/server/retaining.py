"""What is kept of a request's prompts: settings of the model, and what the request says otherwise."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Final, Literal

from llama_cpp.server import settings as stock
from pydantic import Field, StrictFloat, StrictInt, StrictStr

from .. import Retention, models
from ..errors import ArgumentError
from ..settings import ALL, AUTO, OFF, given, parse_budget
from ..wording import shown

Budget = StrictInt | StrictStr
Scores = Literal["model", "uniform"] | list[list[StrictFloat | StrictInt]]
Where = Literal["memory", "file", "off"]

OfBudget = Annotated[
    Budget | None,
    Field(description='Entries per KV head (128), a share ("5%"), memory for all ("64MiB"), or "full".'),
]
OfScores = Annotated[
    Scores | None,
    Field(description='"model" for the scores that come with it, "uniform", or a number per layer and head.'),
]
OfArchive = Annotated[Where | None, Field(description='Where all rows stay: "memory", "file" or "off".')]


def check_budget(budget: int | str, scores: object = None, archive: str | None = None, **more: Any) -> None:
    """ArgumentError for what can never be a budget, or has no place beside it. more: of ADVANCED."""
    parsed = parse_budget(budget)
    if parsed is None:
        if scores is not None or archive not in (None, AUTO, OFF):
            raise ArgumentError('budget "full" keeps everything: it has neither scores nor an archive')
        if more:
            raise ArgumentError(f'budget "full" keeps everything: {next(iter(more))} has no part in it')
        return
    if isinstance(parsed, int) and parsed < 1:
        raise ArgumentError(f"budget must be more than nothing, not {parsed}")
    Retention(budget=parsed, **({"window": 1} | more))  # whatever window the scores' file recommends


_ELSEWHERE: Final = ("chat_template.", "hf-")
"""How names of chat formats begin that the model has, or another file."""

Settings = dict[str, Any]
"""Arguments of Retention: those that are not given are left to the head scores' file."""


def usual_settings(settings: Any, archive_file: str | None) -> Settings | None:
    """What a model's settings say; None to keep everything. archive_file: where "file" is.

    The archive of "auto" is in memory here, until the model says what it takes; none where the logits of all
    tokens are kept, which go with none, or prompts choose as a whole, once.
    """
    budget = parse_budget(settings.budget)
    if budget is None:
        return None
    where = settings.archive
    if where == AUTO:
        without = settings.logits_all or settings.draft_model or settings.observe == ALL
        where = OFF if without else "memory"
    usual = {"budget": budget, "scores": settings.scores, "archive": _place(where, archive_file)}
    return usual | given(settings)


def require_possible(settings: Any) -> None:
    """ArgumentError for settings of a model that go with none."""
    usual = usual_settings(settings, "file")
    told = {name: getattr(settings, name) for name in stock.ModelSettings.model_fields}
    if told["chat_format"] is not None and told["chat_format"].startswith(_ELSEWHERE):
        del told["chat_format"]
    if told["kv_overrides"] is not None:
        told["kv_overrides"] = _overrides(told["kv_overrides"])
    models.require_possible(
        retention_of(None if usual is None else {"window": 1} | usual),
        {name: value for name, value in told.items() if value is not None},
    )


_TYPES: Final[Mapping[str, Callable[[str], Any]]] = {
    "bool": {"true": True, "1": True, "false": False, "0": False}.__getitem__,
    "int": int,
    "float": float,
    "str": str,
}


def _overrides(given: Sequence[str]) -> dict[str, Any]:
    """What stock makes of kv_overrides. ArgumentError for those that it passes over, or takes for others."""
    found = {}
    for one in given:
        name, _, typed = one.partition("=")
        kind, _, value = typed.partition(":")
        try:
            if "=" in value or ":" in value:  # stock splits there, too
                raise ValueError
            found[name] = _TYPES[kind](value.lower() if kind == "bool" else value)
        except (KeyError, ValueError):
            raise ArgumentError(
                f"kv_overrides has {shown(one)}: one is NAME=TYPE:VALUE, of bool, int, float or str, with no "
                "other = or :"
            ) from None
    return found


def retention_of(settings: Settings | None) -> Retention | None:
    return None if settings is None else Retention(**settings)


def settings_for(body: Any, usual: Settings | None, archive_file: str | None) -> Settings | None:
    """What a request wants: the model's usual settings, but for what it says. Raises ArgumentError."""
    if body.budget is None and body.scores is None and body.archive is None:
        return usual
    if body.budget is not None and parse_budget(body.budget) is None:
        return None
    if usual is None and body.budget is None:
        raise ArgumentError(
            "scores and archive need a budget: this model keeps everything unless told otherwise"
        )
    changed: Settings = dict(usual or {})
    if body.budget is not None:
        changed["budget"] = parse_budget(body.budget)
    if body.scores is not None:
        changed["scores"] = None if body.scores == "model" else body.scores
    if body.archive is not None:
        changed["archive"] = _place(body.archive, archive_file)
    return changed


def _place(where: str, file: str | None) -> str | None:
    if where == "file" and file is None:
        raise ArgumentError('archive "file" needs a folder: the server keeps no sessions')
    return {"memory": "memory", "file": file, "off": None}[where]


def alike(a: Retention | None, b: Retention | None) -> bool:
    """Whether they keep the same of the same prompts, wherever the archive is."""
    return _placeless(a) == _placeless(b)


def _placeless(retention: Retention | None) -> Retention | None:
    if retention is None or retention.archive is None:
        return retention
    return retention.having(archive="memory")
