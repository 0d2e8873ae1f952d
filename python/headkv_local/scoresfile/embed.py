"""Putting head scores into a copy of their model."""

from __future__ import annotations

from .. import files
from ..models import retained_shape
from ..scores import HeadScores


def embed(scores: HeadScores, model: str, output: str, *, force: bool = False) -> None:
    """Check that the scores are this model's, then write the copy. Raises as HeadScores.embed() does.

    ScoresError, with both values, for another model's scores, and for those of other layers than it retains.
    """
    files.target(output, force=force)  # before the model is read
    scores.for_model(retained_shape(model), model)
    scores.embed(model, output, force=force)
