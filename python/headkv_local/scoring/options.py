"""What a measurement is told, and whom it tells."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from .dataset import Kind

Tell = Callable[[str], None]
Bar = Callable[[str, int, int, str], None]
"""Called with the stage, how much of it is done, how much there is, and of what: "sample", "run"."""

Method = Literal["r", "r2", "icl", "truth", "ablation"]


@dataclass(frozen=True)
class Options:
    """n_threads: None is one per physical core. examples: None stands for the project's own.

    kinds, points, bases: of the method "ablation". kinds: of examples; none for all of a user's, else
    retrieval and reasoning. points: percent of the prompt beyond the window that one head keeps; bases:
    percent that the others keep meanwhile.
    advice: beta, window, kernel and sinks to recommend with the scores; else Retention's. Without a beta, one
    is chosen on examples that are held out.
    """

    model: str
    output: Path
    method: Method = "r2"
    teacher_forced: bool = False
    plain: bool = False
    n_samples: int = 40
    lengths: tuple[int, ...] = (700, 1400)
    seed: int = 0
    examples: str | None = None
    kinds: tuple[Kind, ...] = ()
    points: tuple[float, ...] = (0, 3, 10, 30)
    bases: tuple[float, ...] = (5,)
    n_threads: int | None = None
    n_gpu_layers: int = 0
    force: bool = False
    advice: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_ablation(self) -> bool:
        return self.method == "ablation"
