"""What a run has measured so far, kept beside its output: a run that was stopped goes on from there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import DataError, ScoresError
from ..files import replacing

Settings = Mapping[str, Any]
"""All that the scores depend on, as JSON values."""

Shapes = Mapping[str, tuple[int, ...]]


class NothingFoundError(ScoresError):
    """What was measured makes no scores: the same settings would come to the same again."""


class _OtherBuildError(ValueError):
    pass


@dataclass
class Tally:
    """Sums over samples, in two halves.

    totals: (2, ...), of the scores of heads (2, n_layer, n_head). counted: samples in each of them. done:
    samples tried, counted or not.
    """

    totals: npt.NDArray[np.float64]
    done: int = 0
    counted: list[int] = field(default_factory=lambda: [0, 0])

    def add(self, half: int, score: npt.NDArray[np.float64] | None) -> None:
        """One more sample; None for one that does not count."""
        self.done += 1
        if score is not None:
            self.counted[half] += 1
            self.totals[half] += score

    @property
    def n_counted(self) -> int:
        return sum(self.counted)

    @property
    def mean(self) -> npt.NDArray[np.float64]:
        """Over the samples that counted, (n_layer, n_head) for scores; all 0 if none has."""
        mean: npt.NDArray[np.float64] = self.totals.sum(axis=0) / max(self.n_counted, 1)
        return mean


class Progress:
    """The tallies of a run, one per stage, in `OUT.partial.json`.

    The file is replaced as a whole after every sample, so that it is complete at any moment.

    shapes: of what the samples of each stage add up, by its name.
    within: losses of the sample that is being measured, where one takes long.

    Raises DataError if there is one already that is not of a run with these settings; with force it
    is dropped instead.
    """

    def __init__(self, output: Path, settings: Settings, shapes: Shapes, *, force: bool) -> None:
        self.path = output.with_name(output.name + ".partial.json")
        self._settings, self._shapes = settings, shapes
        self.within: list[float] = []
        self._tallies: dict[str, Tally] = {}
        if self.path.exists():
            try:
                self._load()
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                self._tallies, self.within = {}, []
                what = "with other settings, or is damaged"
                if isinstance(error, _OtherBuildError):
                    what = "of another build of headkv-local"
                if not force:
                    raise DataError(
                        f"{self.path} holds the progress of a run {what}: run that one again to finish it, "
                        "delete the file, or force this run"
                    ) from error
        self.save()  # tells at once whether there can be an output at all

    @property
    def is_empty(self) -> bool:
        return not self.within and all(tally.done == 0 for tally in self._tallies.values())

    def tally(self, stage: str) -> Tally:
        """What was measured in that stage; empty at first."""
        return self._tallies.setdefault(stage, Tally(np.zeros((2, *self._shapes[stage]))))

    def save(self) -> None:
        tallies = {
            stage: {"done": tally.done, "counted": tally.counted, "totals": tally.totals.tolist()}
            for stage, tally in self._tallies.items()
        }
        kept = {"settings": self._settings, "tallies": tallies, "within": self.within}
        with replacing(self.path) as temporary:
            temporary.write_text(json.dumps(kept), encoding="utf-8")

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)

    def _load(self) -> None:
        kept = json.loads(self.path.read_text(encoding="utf-8"))
        if kept["settings"] != self._settings:
            same_but_build = {**kept["settings"], "build": None} == {**self._settings, "build": None}
            raise _OtherBuildError if same_but_build else ValueError("other settings")
        self.within = list(map(float, kept["within"]))
        for stage, fields in kept["tallies"].items():
            totals = np.array(fields["totals"], dtype=np.float64)
            done, counted = fields["done"], fields["counted"]
            if totals.shape != (2, *self._shapes[stage]) or not 0 <= sum(counted) <= done:
                raise ValueError("damaged")
            self._tallies[stage] = Tally(totals, done, list(counted))
