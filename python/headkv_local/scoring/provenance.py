"""What the scores of a run depend on, and what their file says of where they come from."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from .. import __version__
from ..bench import haystack
from ..budgets import ModelShape
from ..build import build_id
from ..llama import Llama
from ..models import model_id
from ..scoresfile import heads
from . import ablation
from .dataset import Dataset
from .options import Options
from .progress import Tally

_LICENCE = "CC0-1.0"


def settings_of(
    options: Options, llm: Llama, data: Sequence[Dataset], lengths: tuple[int, ...]
) -> dict[str, Any]:
    """data: all that may be measured."""
    text = "\n".join(haystack.paragraphs())
    return {
        "version": __version__,
        "build": build_id(),
        "model": Path(options.model).name,
        "model_id": model_id(options.model),
        "method": options.method,
        "teacher_forced": options.teacher_forced,
        "plain": options.plain,
        "samples": options.n_samples,
        "lengths": list(lengths),
        "seed": options.seed,
        "examples": [one.digest for one in data],
        "threads": llm.n_threads,
        "gpu_layers": options.n_gpu_layers,
        "held_out": "beta" not in options.advice,
        "kept": ablation.settings_of(options),
        "points": list(options.points) if options.is_ablation else [],
        "bases": list(options.bases) if options.is_ablation else [],
        "plan": 2,  # which sample has which length, and what its haystack is
        "haystack": hashlib.sha256(text.encode()).hexdigest(),
    }


def source_of(
    options: Options, settings: dict[str, Any], shape: ModelShape, data: Dataset, tally: Tally
) -> dict[str, str | int]:
    source: dict[str, str | int] = {
        "model": settings["model"],
        "model_id": settings["model_id"],
        heads.NAME: heads.told(shape),
        "data": f"{data.whose} {data.name} in pydoc_data.topics of Python {platform.python_version()}",
        "kinds": ",".join(sorted({example.kind for example in data.examples})),
        "samples": tally.n_counted,
        "samples_tried": tally.done,
        "seed": options.seed,
        "lengths": ",".join(map(str, settings["lengths"])),
        "date": datetime.now(timezone.utc).date().isoformat(),
        "licence": _LICENCE,
        "tool": f"headkv-local {__version__}",
    }
    if options.is_ablation:
        source |= {
            "unit": "nats per answer token",
            "points": ",".join(f"{point:g}%" for point in options.points),
            "base": ",".join(f"{base:g}%" for base in options.bases),
        }
    return source
