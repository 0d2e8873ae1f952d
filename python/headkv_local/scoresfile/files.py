"""Which file a name on the command line means, and what may be written."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from ..errors import ScoresAbsentError
from ..scores import HeadScores, sidecar_path


class Found(NamedTuple):
    scores: HeadScores
    path: Path
    """The file that holds them."""
    beside: Path | None
    """The model that was named, if they are in a sidecar beside it."""


def find(path: str) -> Found:
    """The scores of a sidecar, of a model that carries them, or of the sidecar beside a model."""
    found = HeadScores.find(path)
    if found is None:
        raise ScoresAbsentError(f"{path} holds no head scores, and there is no {sidecar_path(path)}")
    scores, where = found
    return Found(scores, where, None if where == Path(path) else Path(path))
