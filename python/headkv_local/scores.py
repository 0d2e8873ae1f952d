"""HeadScores: how much each attention head matters, measured once per model, kept in GGUF metadata.

docs/gguf-metadata.md is the format; it is read, and checked, by the native library alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from . import files
from ._core.gguf import load_scores, model_id
from ._core.plans import match_scores
from ._gguf import reading, writing
from .budgets import ModelShape
from .checks import beta_of, floats, int_of
from .curves import Curves
from .errors import ArgumentError, ScoresAbsentError, ScoresError, UnsupportedError
from .settings import DEFAULTS, UINT32_MAX

SUFFIX = ".headkv.gguf"

SHIPPED = Path(__file__).parent / "shipped_scores"  # scores/ of the project


@dataclass(frozen=True, kw_only=True, eq=False)
class HeadScores:
    """Raw scores of all query heads of a model, and where they come from.

    scores: float32 (n_layer, n_head), finite, not negative, not all zero. Where layers differ in their heads,
        n_head is that of the layer that has most, and the others' rows end in zeros.
    layers: the model's layers that the rows are of, ascending; None for the first n_layer. Of a model with
        sliding-window or recurrent layers those count whose attention reaches to all positions.
    n_head_kv: KV heads per layer; a GQA group's scores are summed when budgets are made.
    method: how they were measured: "r2" (retrieval with a reasoning step), "r" (retrieval), "icl" (in-context
        learning), "truth" (truthfulness), with "-teacher-forced" where the answer was given and not
        generated; "ablation"; or the name of an import.
    beta, window, kernel, sinks: what is recommended with these scores, None where nothing is.
    source: provenance: model, model_id, data, samples, seed, date, licence, tool, ...
    curves: of the method "ablation": the loss by budget of each KV head. Where there are some, budgets are
        made of them (docs/method.md), else of the scores.

    Raises ArgumentError for scores, or a number of KV heads, that no model can have.
    """

    scores: npt.NDArray[np.float32]
    n_head_kv: int
    method: str
    beta: float | None = None
    window: int | None = None
    kernel: int | None = None
    sinks: int | None = None
    source: Mapping[str, str | int] = field(default_factory=dict)
    layers: tuple[int, ...] | None = None
    curves: Curves | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "n_head_kv", int_of("n_head_kv", self.n_head_kv, 1))
        for name in DEFAULTS:
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, beta_of(value) if name == "beta" else int_of(name, value, 0))
        if not isinstance(self.method, str):
            raise ArgumentError(f"method must be a text, not {self.method!r}")
        if not isinstance(self.source, Mapping):
            raise ArgumentError(f"source must be names with values, not {self.source!r}")
        object.__setattr__(self, "source", {key: _plain(value) for key, value in self.source.items()})
        scores = floats("scores", self.scores)
        if scores.ndim != 2 or scores.size == 0:
            raise ArgumentError(f"scores must have the shape (n_layer, n_head), not {scores.shape}")
        if not np.isfinite(scores).all() or scores.min() < 0 or scores.max() == 0:
            raise ArgumentError("scores must be finite, not negative and not all zero")
        if scores.shape[1] % self.n_head_kv != 0:
            raise ArgumentError(
                f"n_head_kv must divide the {scores.shape[1]} query heads, {self.n_head_kv} does not"
            )
        layers = tuple(range(len(scores))) if self.layers is None else _ints("layers", self.layers)
        if len(layers) != len(scores) or list(layers) != sorted(set(layers)):
            raise ArgumentError(f"layers must be {len(scores)} different ones, ascending, not {self.layers}")
        object.__setattr__(self, "layers", layers)
        if not isinstance(self.curves, Curves | None):
            raise ArgumentError(f"curves must be Curves, not {self.curves!r}")
        if self.curves is not None and self.curves.losses.shape[:2] != (len(scores), self.n_head_kv):
            raise ArgumentError(
                f"curves must be of {len(scores)} layers of {self.n_head_kv} KV heads, as the scores are, "
                f"not of {self.curves.losses.shape[:2]}"
            )
        scores.setflags(write=False)
        object.__setattr__(self, "scores", scores)

    @classmethod
    def from_gguf(cls, path: str | os.PathLike[str]) -> HeadScores:
        """Read a sidecar, or a model with embedded scores.

        Raises ScoresAbsentError for a GGUF without scores, ScoresError for anything else that is wrong.
        """
        raw = load_scores(os.fspath(path))
        method = raw.texts.pop("headkv.method")
        prefix = "headkv.source."
        source = {key.removeprefix(prefix): text for key, text in raw.texts.items()}
        recommended = {name: value for name, value in raw.recommended.items() if value >= 0}
        return cls(
            scores=raw.scores,
            layers=raw.layers,
            n_head_kv=raw.n_head_kv,
            method=method,
            source=source,
            curves=raw.curves,
            **recommended,
        )

    @classmethod
    def find(cls, model_path: str | os.PathLike[str]) -> tuple[HeadScores, Path] | None:
        """The scores that belong to a model file, and where they were: beside it, in it, or in this package.

        The package brings scores for few models; they are taken for exactly the file they were measured on,
        whatever its name is now. None if there are none. Raises ScoresError for a sidecar that cannot be
        read: nothing takes its place.
        """
        sidecar = sidecar_path(model_path)
        if os.path.lexists(sidecar):
            return cls.from_gguf(sidecar), sidecar
        try:
            return cls.from_gguf(model_path), Path(model_path)
        except ScoresAbsentError:
            pass
        try:
            wanted = model_id(os.fspath(model_path))
        except ScoresError:
            return None  # a file without weights is no model of ours
        for shipped in sorted(SHIPPED.glob(f"*{SUFFIX}")):
            scores = cls.from_gguf(shipped)
            if scores.source.get("model_id") == wanted:
                return scores, shipped
        return None

    def for_model(self, shape: ModelShape, model_path: str | os.PathLike[str]) -> HeadScores:
        """The scores of the layers that a model retains.

        Raises ScoresError with both values if they were measured on a model of another shape, on other
        layers than it retains, or on another file.
        """
        assert self.layers is not None
        rows = match_scores(self.layers, self.scores.shape[1], self.n_head_kv, shape)
        recorded = self.source.get("model_id")
        actual = model_id(os.fspath(model_path)) if recorded is not None else None
        if recorded != actual:
            raise ScoresError(
                f"the head scores were measured on another model file: they name {recorded}, this is {actual}"
            )
        if rows == list(range(len(self.layers))):
            return self
        curves = None if self.curves is None else self.curves.of_rows(rows)
        return replace(
            self, scores=self.scores[rows], layers=tuple(self.layers[i] for i in rows), curves=curves
        )

    def to_sidecar(self, path: str | os.PathLike[str], *, force: bool = False) -> None:
        """Write a GGUF file that holds nothing else. It appears complete or not at all.

        Raises ArgumentError if the file exists and force is not set, or if something in here breaks the
        format; OSError if the file cannot be written.
        """
        target = files.target(path, force=force)
        with files.replacing(target) as temporary:
            writing.write_metadata(temporary, self._metadata())
            self._verify(temporary)

    def embed(
        self, model_path: str | os.PathLike[str], path: str | os.PathLike[str], *, force: bool = False
    ) -> None:
        """Write a copy of a model that carries these scores; other keys and all tensors stay the same.

        The copy is streamed, checked, and appears complete or not at all. Raises as to_sidecar(), and
        ScoresError if the model is no readable GGUF file, UnsupportedError if it is split into several.
        """
        target = files.target(path, force=force)
        before = model_id(os.fspath(model_path))  # also finds whatever is wrong with the file
        n_parts = reading.n_parts(model_path)
        if n_parts > 1:
            raise UnsupportedError(
                f"{os.fspath(model_path)} is one of {n_parts} files of a model, and a copy of it alone would "
                f"not load: keep the head scores in the sidecar {sidecar_path(model_path)}"
            )
        with files.replacing(target) as temporary:
            writing.write_metadata(temporary, self._metadata())
            self._verify(temporary)
            writing.copy_with_metadata(Path(model_path), temporary)
            self._verify(temporary)
            if model_id(str(temporary)) != before:
                raise ScoresError(f"the copy of {os.fspath(model_path)} is not what was to be written")

    def _metadata(self) -> dict[str, writing.Value]:
        n_layer, n_head = self.scores.shape
        values: dict[str, writing.Value] = {
            "headkv.version": 1,
            "headkv.method": self.method,
            "headkv.block_count": n_layer,
            "headkv.head_count": n_head,
            "headkv.head_count_kv": self.n_head_kv,
            "headkv.scores": self.scores.ravel(),
        }
        if self.layers != tuple(range(n_layer)):
            values["headkv.layers"] = np.array(self.layers, dtype=np.uint32)
        if self.curves is not None:
            values |= self.curves.metadata()
        if self.beta is not None:
            values["headkv.beta"] = _float32("beta", self.beta)
        for name in ("window", "kernel", "sinks"):
            if (value := getattr(self, name)) is not None:
                values[f"headkv.{name}"] = value
        return values | {f"headkv.source.{key}": _source(key, value) for key, value in self.source.items()}

    def _verify(self, path: Path) -> None:
        try:
            written = HeadScores.from_gguf(path)
        except ScoresError as error:
            raise ArgumentError(str(error).replace(str(path), "the head scores", 1)) from error
        if not np.array_equal(written.scores, self.scores):
            raise ScoresError("the head scores read back are not those that were written")


def _plain(value: Any) -> Any:
    """A number of NumPy's as Python's own: a session can hold it."""
    return value.item() if isinstance(value, np.generic) else value


def _ints(name: str, values: object) -> tuple[int, ...]:
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise ArgumentError(f"{name} must be a sequence of ints, not {values!r}")
    return tuple(int_of(name, value, 0) for value in values)


def _float32(name: str, value: float) -> float:
    with np.errstate(over="ignore"):
        if not np.isfinite(np.float32(value)):
            raise ArgumentError(f"{name} must be finite in 32 bits, not {value!r}")
    return float(value)


def _source(key: str, value: object) -> str | int:
    """Whole numbers that a u32 cannot hold become texts, as all of them are when read."""
    if isinstance(value, Integral):
        return int(value) if 0 <= int(value) <= UINT32_MAX else str(int(value))
    if isinstance(value, str):
        return value.encode("utf-8", errors="replace").decode()  # file names need not be UTF-8
    raise ArgumentError(f"the source {key!r} must be a text or a whole number, not {value!r}")


def sidecar_path(model_path: str | os.PathLike[str]) -> Path:
    """Where the scores of a model are looked for: `<stem>.headkv.gguf` beside it.

    All parts of a split model, `<stem>-00001-of-00003.gguf`, have one sidecar.
    """
    path = Path(model_path)
    if not path.name:
        raise ArgumentError(f"{os.fspath(model_path)!r} is no name for a file")
    split = reading.SPLIT.fullmatch(path.name)
    return path.with_name((split[1] if split else path.stem) + SUFFIX)
