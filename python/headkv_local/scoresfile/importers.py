"""Head scores that other projects published, for a model that is at hand.

"headkv", "retrieval-head": JSON of the HeadKV and Retrieval_Head projects, {"layer-head": [score of each
    sample, ...], ...} with all query heads; a head's score is the mean.
"compaction": budgets of adamzweiger/compaction, JSON {"L<layer>H<KV head>": share of all entries, ...}.
    Layers with a sliding window are not there. A share is shared out evenly, as in "duo".
"duo": DuoAttention's patterns, a line of tab-separated values from 0 to 1 per layer, one per KV head; a
    value is shared out evenly to the query heads of its GQA group.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .. import __version__
from ..errors import DataError
from ..models import model_id, model_shape, retained_shape
from ..scores import HeadScores

Array = npt.NDArray[np.float64]

_MOST = 1e30  # far beyond any score, and sums of them are finite in float32

_KEY = re.compile(r"(0|[1-9][0-9]{0,8})-(0|[1-9][0-9]{0,8})")
_HEAD = re.compile(r"L(0|[1-9][0-9]{0,8})H(0|[1-9][0-9]{0,8})")

_WHOLE_BETA = 1.001  # a share is of the whole budget: nothing is shared out equally before


class Shape(NamedTuple):
    n_layer: int
    n_head: int
    n_head_kv: int


def read(path: str, model: str, format_name: str) -> HeadScores:
    """Read a file of that format as scores of this model; format_name, a key of FORMATS, becomes the method.

    Raises DataError, with the key or the line, for what the file should not hold, and for layers that the
    model retains and the file lacks; ScoresError for what is no model, UnsupportedError for one that cannot
    be compacted, OSError for a file that cannot be read.
    """
    shape = Shape(*model_shape(model))
    data = Path(path).read_bytes()
    try:
        content = data.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is no text, byte {error.start} is not UTF-8") from error
    scores = FORMATS[format_name](content, shape, path)
    if not np.nanmax(scores) > 0:
        raise DataError(f"{path}: all scores are zero")
    layers = np.flatnonzero(~np.isnan(scores[:, 0]))
    missing = [layer.il for layer in retained_shape(model).layers if layer.il not in layers]
    if missing:
        listed = ", ".join(map(str, missing))
        raise DataError(f"{path}: has no heads of the layers {listed}, which the model retains")
    return HeadScores(
        scores=scores[layers].astype(np.float32),
        layers=tuple(layers.tolist()),
        beta=_WHOLE_BETA if format_name == "compaction" else None,
        n_head_kv=shape.n_head_kv,
        method=format_name,
        source={
            "model": Path(model).name,
            "model_id": model_id(model),
            "data": f"{Path(path).name}, sha256 {hashlib.sha256(data).hexdigest()}",
            "date": datetime.now(timezone.utc).date().isoformat(),
            "tool": f"headkv-local {__version__}",
        },
    )


def _json_lists(content: str, shape: Shape, path: str) -> Array:
    scores = np.full((shape.n_layer, shape.n_head), np.nan)
    for key, values in _json_object(content, path).items():
        match = _KEY.fullmatch(key)
        if match is None:
            raise DataError(f"{path}: the key {key!r} is not of the form 'layer-head'")
        layer, head = int(match[1]), int(match[2])
        if layer >= shape.n_layer or head >= shape.n_head:
            raise DataError(
                f"{path}: the key {key!r} is beyond the model's {shape.n_layer} layers of {shape.n_head} "
                "query heads"
            )
        if not isinstance(values, list) or not values:
            raise DataError(f"{path}: the key {key!r} must have a list of scores")
        scores[layer, head] = np.mean([_score(value, path, key) for value in values])
    missing = np.argwhere(np.isnan(scores))
    if len(missing) > 0:
        raise DataError(
            f"{path}: {len(missing)} of the model's {scores.size} query heads are missing, the first is "
            f"'{missing[0][0]}-{missing[0][1]}'"
        )
    return scores


def _budgets(content: str, shape: Shape, path: str) -> Array:
    """Rows of layers that are not there are not a number."""
    shares = np.full((shape.n_layer, shape.n_head_kv), np.nan)
    for key, value in _json_object(content, path).items():
        match = _HEAD.fullmatch(key)
        if match is None:
            raise DataError(f"{path}: the key {key!r} is not of the form 'L<layer>H<head>'")
        layer, head = int(match[1]), int(match[2])
        if layer >= shape.n_layer or head >= shape.n_head_kv:
            raise DataError(
                f"{path}: the key {key!r} is beyond the model's {shape.n_layer} layers of {shape.n_head_kv} "
                "KV heads"
            )
        shares[layer, head] = _score(value, path, key)
    missing = np.isnan(shares)
    for layer, head in np.argwhere(missing & ~missing.all(axis=1, keepdims=True)):
        raise DataError(f"{path}: the key 'L{layer}H{head}' is missing, others of its layer are there")
    if missing.all():
        raise DataError(f"{path}: has no shares")
    group = shape.n_head // shape.n_head_kv
    return np.repeat(shares, group, axis=1) / group


def _json_object(content: str, path: str) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise DataError(f"{path}: the key {key!r} is there twice")
            found[key] = value
        return found

    try:
        document = json.loads(content, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: line {error.lineno} is no JSON: {error.msg}") from error
    except DataError:
        raise
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, lists in lists in lists
        raise DataError(f"{path}: is no JSON that can be read: {error}") from error
    if not isinstance(document, dict):
        raise DataError(f"{path}: must be a JSON object with a key for each head")
    return document


def _score(value: object, path: str, key: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= _MOST:
        shown = str(value)[:40]
        raise DataError(f"{path}: the key {key!r} has {shown!r}, which is no score from 0 to {_MOST:g}")
    return float(value)


def _duo_patterns(content: str, shape: Shape, path: str) -> Array:
    lines = content.rstrip().splitlines()
    if len(lines) != shape.n_layer:
        raise DataError(f"{path}: has {len(lines)} lines, the model has {shape.n_layer} layers")
    rows = []
    for number, line in enumerate(lines, start=1):
        values = line.split("\t")
        if len(values) != shape.n_head_kv:
            raise DataError(
                f"{path}: line {number} has {len(values)} values, the model has {shape.n_head_kv} KV heads"
            )
        rows.append([_share(value, path, number) for value in values])
    group = shape.n_head // shape.n_head_kv
    return np.repeat(np.array(rows), group, axis=1) / group


def _share(value: str, path: str, line: int) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0 <= number <= 1:
        raise DataError(f"{path}: line {line} has {value[:40]!r}, which is not a number from 0 to 1")
    return number


FORMATS: dict[str, Callable[[str, Shape, str], Array]] = {
    "headkv": _json_lists,
    "retrieval-head": _json_lists,
    "duo": _duo_patterns,
    "compaction": _budgets,
}
