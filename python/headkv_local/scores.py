"""HeadScores: how much each attention head matters, measured once per model, kept in GGUF metadata.

docs/gguf-metadata.md is the format; it is read, and checked, by the native library alone.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from . import _gguf, _native
from .errors import ArgumentError, ScoresAbsentError, ScoresError

SUFFIX = ".headkv.gguf"


@dataclass(frozen=True, kw_only=True, eq=False)
class HeadScores:
    """Raw scores of all query heads of a model, and where they come from.

    scores: float32 (n_layer, n_head), finite, not negative, not all zero.
    n_head_kv: KV heads per layer; a GQA group's scores are summed when budgets are made.
    method: how they were measured: "r2" (retrieval with a reasoning step), "r" (retrieval), with
        "-teacher-forced" where the answer was given and not generated; or the name of an import.
    beta, window, kernel, sinks: what is recommended with these scores, None where nothing is.
    source: provenance: model, model_id, data, samples, seed, date, licence, tool, ...
    """

    scores: npt.NDArray[np.float32]
    n_head_kv: int
    method: str
    beta: float | None = None
    window: int | None = None
    kernel: int | None = None
    sinks: int | None = None
    source: Mapping[str, str | int] = field(default_factory=dict)

    @classmethod
    def from_gguf(cls, path: str | os.PathLike[str]) -> HeadScores:
        """Read a sidecar, or a model with embedded scores.

        Raises ScoresAbsentError for a GGUF without scores, ScoresError for anything else that is wrong.
        """
        raw = _native.load_scores(os.fspath(path))
        method = raw.texts.pop("headkv.method")
        prefix = "headkv.source."
        source = {key.removeprefix(prefix): text for key, text in raw.texts.items()}
        recommended = {name: value for name, value in raw.recommended.items() if value >= 0}
        return cls(scores=raw.scores, n_head_kv=raw.n_head_kv, method=method, source=source, **recommended)

    @classmethod
    def find(cls, model_path: str | os.PathLike[str]) -> tuple[HeadScores, Path] | None:
        """The scores that belong to a model file, and where they were: beside it, else in it."""
        sidecar = sidecar_path(model_path)
        if sidecar.is_file():
            return cls.from_gguf(sidecar), sidecar
        try:
            return cls.from_gguf(model_path), Path(model_path)
        except ScoresAbsentError:
            return None

    def check_model(
        self, n_layer: int, n_head: int, n_head_kv: int, model_path: str | os.PathLike[str]
    ) -> None:
        """ScoresError with both values if they were measured on a model of another shape, or another file."""
        found, wanted = (*self.scores.shape, self.n_head_kv), (n_layer, n_head, n_head_kv)
        if found != wanted:
            raise ScoresError(
                f"the head scores are for {found[0]} layers of {found[1]} query and {found[2]} KV heads, the "
                f"model has {wanted[0]} layers of {wanted[1]} and {wanted[2]}"
            )
        recorded = self.source.get("model_id")
        actual = _native.model_id(os.fspath(model_path)) if recorded is not None else None
        if recorded != actual:
            raise ScoresError(
                f"the head scores were measured on another model file: they name {recorded}, this is {actual}"
            )

    def to_sidecar(self, path: str | os.PathLike[str], *, force: bool = False) -> None:
        """Write a GGUF file that holds nothing else. It appears complete or not at all.

        Raises ArgumentError if the file exists and force is not set, OSError if it cannot be written.
        """
        target = _gguf.target(path, force=force)
        with _gguf.replacing(target) as temporary:
            _gguf.write_metadata(temporary, self._metadata())
            self._verify(temporary)

    def embed(
        self, model_path: str | os.PathLike[str], path: str | os.PathLike[str], *, force: bool = False
    ) -> None:
        """Write a copy of a model that carries these scores; every other byte of it stays the same.

        The copy is streamed, checked, and appears complete or not at all. Raises as to_sidecar(), and
        ScoresError if the model is no readable GGUF file.
        """
        target = _gguf.target(path, force=force)
        with _gguf.replacing(target) as temporary:
            _gguf.copy_with_metadata(Path(model_path), temporary, self._metadata())
            self._verify(temporary)
            if _native.model_id(str(temporary)) != _native.model_id(os.fspath(model_path)):
                raise ScoresError(f"the copy of {os.fspath(model_path)} is not what was to be written")

    def _metadata(self) -> dict[str, _gguf.Value]:
        scores = np.ascontiguousarray(self.scores, dtype=np.float32)
        if scores.ndim != 2:
            raise ArgumentError(f"scores must have the shape (n_layer, n_head), not {scores.shape}")
        values: dict[str, _gguf.Value] = {
            "headkv.version": 1,
            "headkv.method": self.method,
            "headkv.block_count": scores.shape[0],
            "headkv.head_count": scores.shape[1],
            "headkv.head_count_kv": self.n_head_kv,
            "headkv.scores": scores.ravel(),
        }
        for name in ("beta", "window", "kernel", "sinks"):
            value = getattr(self, name)
            if value is not None:
                values[f"headkv.{name}"] = value
        return values | {f"headkv.source.{key}": value for key, value in self.source.items()}

    def _verify(self, path: Path) -> None:
        written = HeadScores.from_gguf(path)
        if not np.array_equal(written.scores, np.asarray(self.scores, dtype=np.float32)):
            raise ScoresError(f"{path} does not hold what was written to it")


def sidecar_path(model_path: str | os.PathLike[str]) -> Path:
    """Where the scores of a model file are looked for: `<stem>.headkv.gguf` beside it."""
    return Path(model_path).with_suffix("").with_name(Path(model_path).stem + SUFFIX)
