"""Head scores that other projects published, for a model that is at hand.

"headkv", "retrieval-head": JSON of the HeadKV and Retrieval_Head projects, {"layer-head": [score of each
    sample, ...], ...} with all query heads; a head's score is the mean.
"compaction": budgets of adamzweiger/compaction, JSON {"L<layer>H<KV head>": share of all entries, ...}.
    A share is shared out evenly, as in "duo".
"duo": DuoAttention's patterns, a line of tab-separated values from 0 to 1 per layer, one per KV head; a
    value is shared out evenly to the query heads of its GQA group.

What a file holds of layers that the model does not retain, those with a sliding window and recurrent ones, is
left out. JSON need not hold it.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import __version__, files
from ..bench.suites.reading import unique
from ..budgets import ModelShape
from ..errors import DataError
from ..models import model_id, n_layers, retained_shape
from ..scores import HeadScores
from . import heads

Array = npt.NDArray[np.float64]

_MOST = 1e30  # far beyond any score, and sums of them are finite in float32

_KEY = re.compile(r"(0|[1-9][0-9]{0,8})-(0|[1-9][0-9]{0,8})")
_HEAD = re.compile(r"L(0|[1-9][0-9]{0,8})H(0|[1-9][0-9]{0,8})")

_WHOLE_BETA = 1.001  # a share is of the whole budget: nothing is shared out equally before


Heads = dict[tuple[int, int], float]
"""A value by layer and head."""


def read(path: str, model: str, format_name: str) -> HeadScores:
    """Read a file of that format as scores of this model; format_name, a key of FORMATS, becomes the method.

    Raises DataError, with the key or the line, for what the file should not hold, and for heads that the
    model retains and the file lacks; ScoresError for what is no model, UnsupportedError for one that cannot
    be compacted, OSError for a file that cannot be read.
    """
    n_layer, shape = n_layers(model), retained_shape(model)
    data = files.content(path)
    try:
        content = data.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is no text, byte {error.start} is not UTF-8") from error
    scores = FORMATS[format_name](content, n_layer, shape, path).astype(np.float32)
    if not scores.max() > 0:
        raise DataError(f"{path}: all scores are zero")
    return HeadScores(
        scores=scores,
        layers=tuple(layer.il for layer in shape.layers),
        beta=_WHOLE_BETA if format_name == "compaction" else None,
        n_head_kv=shape.n_head_kv,
        method=format_name,
        source={
            "model": Path(model).name,
            "model_id": model_id(model),
            heads.NAME: heads.told(shape),
            "data": f"{Path(path).name}, sha256 {hashlib.sha256(data).hexdigest()}",
            "date": datetime.now(timezone.utc).date().isoformat(),
            "tool": f"headkv-local {__version__}",
        },
    )


def _json_lists(content: str, n_layer: int, shape: ModelShape, path: str) -> Array:
    counts = {layer.il: layer.n_head for layer in shape.layers}
    found: Heads = {}
    for key, values in _json_object(content, path).items():
        match = _KEY.fullmatch(key)
        if match is None:
            raise DataError(f"{path}: the key {key!r} is not of the form 'layer-head'")
        head = _head(match, n_layer, counts, "query", path)
        if not isinstance(values, list) or not values:
            raise DataError(f"{path}: the key {key!r} must have a list of scores")
        found[head] = float(np.mean([_score(value, path, key) for value in values]))
    wanted = [(il, head) for il, n in counts.items() for head in range(n)]
    missing = [head for head in wanted if head not in found]
    if missing:
        raise DataError(
            f"{path}: {len(missing)} of the model's {len(wanted)} query heads are missing, the first is "
            f"'{missing[0][0]}-{missing[0][1]}'"
        )
    scores = np.zeros((shape.n_layer, shape.n_head))
    for row, (il, n) in zip(scores, counts.items(), strict=True):
        row[:n] = [found[il, head] for head in range(n)]
    return scores


def _budgets(content: str, n_layer: int, shape: ModelShape, path: str) -> Array:
    counts = {layer.il: layer.n_head_kv for layer in shape.layers}
    shares: Heads = {}
    for key, value in _json_object(content, path).items():
        match = _HEAD.fullmatch(key)
        if match is None:
            raise DataError(f"{path}: the key {key!r} is not of the form 'L<layer>H<head>'")
        shares[_head(match, n_layer, counts, "KV", path)] = _score(value, path, key)
    if not shares:
        raise DataError(f"{path}: has no shares")
    if not any(shares.values()):
        raise DataError(f"{path}: all scores are zero")
    there = {il for il, _ in shares}
    for il in sorted(there & counts.keys()):
        for head in range(counts[il]):
            if (il, head) not in shares:
                raise DataError(f"{path}: the key 'L{il}H{head}' is missing, others of its layer are there")
    if missing := [il for il in counts if il not in there]:
        listed = ", ".join(map(str, missing))
        raise DataError(f"{path}: has no heads of the layers {listed}, which the model retains")
    return _shared_out(shares, shape)


def _head(
    match: re.Match[str], n_layer: int, counts: Mapping[int, int], kind: str, path: str
) -> tuple[int, int]:
    """Layer and head of a key. counts: heads of each layer that is retained; of others none is refused."""
    layer, head = int(match[1]), int(match[2])
    if layer >= n_layer or head >= counts.get(layer, head + 1):
        n_heads = counts.get(layer, max(counts.values()))
        raise DataError(
            f"{path}: the key {match[0]!r} is beyond the model's {n_layer} layers of {n_heads} {kind} heads"
        )
    return layer, head


def _shared_out(values: Heads, shape: ModelShape) -> Array:
    """Of KV heads, to the query heads of their GQA groups."""
    scores = np.zeros((shape.n_layer, shape.n_head))
    for row, layer in zip(scores, shape.layers, strict=True):
        group = layer.n_head // layer.n_head_kv
        own = np.array([values[layer.il, head] for head in range(layer.n_head_kv)])
        row[: layer.n_head] = np.repeat(own, group) / group
    return scores


def _json_object(content: str, path: str) -> dict[str, Any]:
    try:
        document = json.loads(content, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: line {error.lineno} is no JSON: {error.msg}") from error
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


def _duo_patterns(content: str, n_layer: int, shape: ModelShape, path: str) -> Array:
    lines = content.rstrip().splitlines()
    if len(lines) != n_layer:
        raise DataError(f"{path}: has {len(lines)} lines, the model has {n_layer} layers")
    found: Heads = {}
    for layer in shape.layers:
        values, number = lines[layer.il].split("\t"), layer.il + 1
        if len(values) != layer.n_head_kv:
            raise DataError(
                f"{path}: line {number} has {len(values)} values, the model has {layer.n_head_kv} KV heads"
            )
        for head, value in enumerate(values):
            found[layer.il, head] = _share(value, path, number)
    return _shared_out(found, shape)


def _share(value: str, path: str, line: int) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0 <= number <= 1:
        raise DataError(f"{path}: line {line} has {value[:40]!r}, which is not a number from 0 to 1")
    return number


FORMATS: dict[str, Callable[[str, int, ModelShape, str], Array]] = {
    "headkv": _json_lists,
    "retrieval-head": _json_lists,
    "duo": _duo_patterns,
    "compaction": _budgets,
}
