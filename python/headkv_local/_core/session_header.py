"""What a session says for Python, as JSON in its header: every value is checked when it is read.

A C program may leave out any of it, or all.
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, Final, NamedTuple, get_args

import llama_cpp
import numpy as np

from ..checks import path_of, require_overrides
from ..curves import Curves
from ..errors import ArgumentError
from ..retention import Retention
from ..scores import HeadScores
from ..settings import DEFAULTS, UINT32_MAX, Policy
from ..stats import PromptRecord
from ..wording import shown
from .native.session import About

_CONTEXT: Final[dict[str, type]] = {
    "swa_full": bool,
    "rope_scaling_type": int,
    "yarn_ext_factor": float,
    "yarn_attn_factor": float,
    "yarn_beta_fast": float,
    "yarn_beta_slow": float,
    "yarn_orig_ctx": int,
    "attention_type": int,
    "kv_overrides": dict,
    "lora_path": str,
    "lora_scale": float,
}
"""Arguments of Llama that rows in a cache depend on, or where they lie in it, and that the library does not
know of."""

_UNSAID: Final = {
    name: argument.default
    for name, argument in inspect.signature(llama_cpp.Llama.__init__).parameters.items()
}

_PLAIN: Final = tuple(
    field.name for field in fields(Retention) if field.name not in (*DEFAULTS, "caps", "scores")
)


class Header(NamedTuple):
    model_id: str
    model_name: str
    model_path: str
    context: dict[str, Any]
    """Arguments of Llama."""
    adapter: str | None
    """The identity of the adapter's weights."""
    retention: Retention | None
    seed: int
    n_tokens: int
    n_archived: int
    """Tokens of the prompt whose rows are in the session; 0 where none are."""
    prompt: PromptRecord
    """Without its arrays."""
    messages: list[Any]

    @classmethod
    def of(cls, about: About) -> Header:
        """ArgumentError for what none of ours can say."""
        found = _parsed(about.header)
        context, prompt = _value(found, "context", dict, {}), _value(found, "prompt", dict, {})
        retention = _value(found, "retention", dict, None)
        policy = _value(prompt, "policy", str, "uniform")
        if policy not in get_args(Policy):
            raise ArgumentError(f"policy cannot be {policy!r}")
        own = _checked(context)
        return cls(
            model_id=about.model_id,
            model_name=about.model_name,
            model_path=about.model_path,
            context={"flash_attn": True, **about.context, **own},
            adapter=_value(found, "adapter", str, None),
            retention=None if retention is None else _retention_from_json(retention),
            seed=_count(found, "seed", 0, UINT32_MAX, UINT32_MAX),  # none: llama.cpp chooses
            n_tokens=about.n_tokens,
            n_archived=about.n_archived,
            prompt=PromptRecord(
                n_tokens=about.n_prompt or None,
                turns=_turns(prompt, about.n_tokens),
                question=_question(prompt, about.n_tokens),
                policy=policy,
                scores_from=_value(prompt, "scores_from", str, None),
                prefill_seconds=_value(prompt, "prefill_seconds", float, 0.0),
                fits=_value(prompt, "fits", bool, False),
                due=_due(prompt),
                stays=_count(prompt, "stays", 0, UINT32_MAX, 0),
            ),
            messages=_value(found, "messages", list, []),
        )


def to_json(
    context: Mapping[str, Any],
    adapter: str | None,
    retention: Retention | None,
    seed: int,
    prompt: PromptRecord,
    messages: Sequence[Any],
) -> bytes:
    """ArgumentError for messages that JSON cannot hold, and for settings that Header.of() would refuse."""
    said = _written(messages, "messages must be a list that JSON can hold")
    try:
        _checked(context)
    except ArgumentError as error:
        raise ArgumentError(f"this Llama was made with what a session cannot hold: {error}") from error
    header = {
        "context": context,
        "adapter": adapter,
        "retention": None if retention is None else _retention_to_json(retention),
        "seed": seed,
        "prompt": {
            "turns": prompt.turns,
            "question": prompt.question,
            "policy": prompt.policy,
            "scores_from": prompt.scores_from,
            "prefill_seconds": prompt.prefill_seconds,
            "fits": prompt.fits,
            "due": prompt.due,
            "stays": prompt.stays,
        },
    }
    settings = _written(header, "this Llama was made with what a session cannot hold")
    return f'{settings[:-1]}, "messages": {said}}}'.encode("ascii")


def _written(value: object, problem: str) -> str:
    try:
        return json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ArgumentError(f"{problem}: {error}") from error


def context_of(llm: Any) -> dict[str, Any]:
    """Those arguments of a Llama."""
    given = {name: value for name, value in llm.__getstate__().items() if value is not None}
    found = {name: kind(given[name]) for name, kind in _CONTEXT.items() if name in given}
    if "lora_path" in found:
        found["lora_path"] = path_of(found["lora_path"])
    return found


def difference(
    saved: Mapping[str, Any], was: str | None, context: Mapping[str, Any], adapter: str | None
) -> str:
    """What rows depend on and is another where they were saved than here, with both values; "" for nothing.

    saved, context: arguments of the Llama that saved and of this one; was, adapter: the weights of their
    adapters. Where an adapter is now does not matter.
    """
    theirs, ours = _of_rows(saved), _of_rows(context)
    known = None not in (was, adapter)
    if known and was == adapter:
        theirs["lora_path"] = ours["lora_path"]
    for name, value in theirs.items():
        is_same = value == ours[name] or (value != value and ours[name] != ours[name])  # NaN is not itself
        if not is_same:
            return f"{name}={shown(value, 400)}, and this Llama has {shown(ours[name], 400)}"
    if known and was != adapter:
        return f"lora_path={ours['lora_path']!r} with the weights {was}, which has {adapter} now"
    return ""


def _of_rows(context: Mapping[str, Any]) -> dict[str, Any]:
    """Without where the rows of sliding windows lie, which are put where they belong."""
    found = {name: context.get(name, _UNSAID[name]) for name in _CONTEXT if name != "swa_full"}
    if found["lora_path"] is None:
        del found["lora_scale"]
    return found | {"kv_overrides": found["kv_overrides"] or None}


def _parsed(text: bytes) -> dict[str, Any]:
    try:
        found = json.loads(text.decode("utf-8"), parse_constant=_refuse) if text else {}
    except (ValueError, RecursionError, MemoryError) as error:
        raise ArgumentError(f"its header is no JSON of ours: {error}") from error
    if not isinstance(found, dict):
        raise ArgumentError("its header is no JSON object")
    return found


def _checked(context: Mapping[str, Any]) -> dict[str, Any]:
    """What is there of _CONTEXT."""
    found = {name: _value(context, name, kind) for name, kind in _CONTEXT.items() if name in context}
    require_overrides(found.get("kv_overrides", {}))
    return found


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no number")


def _value(found: Mapping[str, Any], name: str, kind: type, *default: Any) -> Any:
    if default and found.get(name) is None:
        return default[0]
    value: Any = found.get(name)
    if kind is float and type(value) is int and abs(value) < 2**53:
        value = float(value)
    usable = type(value) is kind
    if usable and kind is int:
        usable = -1 <= value <= UINT32_MAX
    elif usable and kind is float:
        usable = math.isfinite(value)
    if not usable:
        raise ArgumentError(f"{name} cannot be {shown(value)}")
    return value


def _count(found: Mapping[str, Any], name: str, least: int, most: int, default: int) -> int:
    value: int = _value(found, name, int, default)
    if not least <= value <= most:
        raise ArgumentError(f"{name} cannot be {value}")
    return value


def _turns(found: Mapping[str, Any], n_tokens: int) -> tuple[tuple[int, int], ...]:
    turns = _value(found, "turns", list, [])
    for turn in turns:
        whole = type(turn) is list and [type(n) for n in turn] == [int, int]
        if not whole or not 0 <= turn[1] <= turn[0] <= n_tokens:
            raise ArgumentError(f"turns cannot hold {shown(turn)}")
    return tuple((end, n_new) for end, n_new in turns)


def _due(found: Mapping[str, Any]) -> tuple[int, int] | None:
    due = _value(found, "due", list, None)
    whole = due is None or ([type(n) for n in due] == [int, int] and 0 <= due[0] <= due[1] <= UINT32_MAX)
    if not whole:
        raise ArgumentError(f"due cannot hold {shown(due)}")
    return None if due is None else (due[0], due[1])


def _question(found: Mapping[str, Any], n_tokens: int) -> tuple[tuple[int, int, float], ...] | None:
    parts = _value(found, "question", list, None)
    for part in parts or ():
        whole = type(part) is list and [type(n) for n in part] == [int, int, float]
        if not whole or not 0 <= part[0] < part[1] <= n_tokens or not 0 <= part[2] <= 1:
            raise ArgumentError(f"question cannot hold {shown(part)}")
    return None if parts is None else tuple((start, stop, weight) for start, stop, weight in parts)


def _retention_to_json(retention: Retention) -> dict[str, Any]:
    plain: dict[str, Any] = {name: getattr(retention, name) for name in _PLAIN}
    given = {name: getattr(retention, name) for name in DEFAULTS if name in retention._given}
    caps: Any = retention.caps
    scores: Any = retention.scores
    if isinstance(scores, HeadScores):
        scores = {
            "scores": scores.scores.tolist(),
            "n_head_kv": scores.n_head_kv,
            "method": scores.method,
            "layers": None if scores.layers is None else list(scores.layers),
            "source": dict(scores.source),
            "curves": None if scores.curves is None else scores.curves.to_json(),
            **{name: getattr(scores, name) for name in DEFAULTS},
        }
    elif isinstance(scores, Curves):
        scores = scores.to_json()
    elif isinstance(scores, np.ndarray):
        scores = scores.tolist()
    return plain | given | {"caps": None if caps is None else np.asarray(caps).tolist(), "scores": scores}


def _retention_from_json(found: Mapping[str, Any]) -> Retention:
    settings = dict(found)
    unknown = settings.keys() - {*_PLAIN, *DEFAULTS, "caps", "scores"}
    if unknown:
        raise ArgumentError(f"a retention has no {shown(sorted(unknown))}")
    try:
        scores = settings.get("scores")
        if isinstance(scores, dict) and "shares" in scores:
            settings["scores"] = Curves(**scores)
        elif isinstance(scores, dict):
            curves = scores.get("curves")
            settings["scores"] = HeadScores(**scores | {"curves": curves and Curves(**curves)})
        return Retention(**settings)
    except (TypeError, ValueError, OverflowError, AttributeError) as error:
        raise ArgumentError(f"its retention cannot be: {error}") from error
