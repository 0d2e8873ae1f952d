"""The heat map as a PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import files
from ..errors import UnsupportedError
from ..scores import HeadScores
from .heads import Heads, of


def write_png(scores: HeadScores, path: str, *, force: bool = False, read: Sequence[Path | str] = ()) -> None:
    """read: files that it must not replace. Raises UnsupportedError without matplotlib, ArgumentError for one
    of these, and if the file exists and force is not set."""
    target = files.target(path, force=force, inputs=read)
    figure = heat_map(scores)
    with files.replacing(target) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def require_matplotlib() -> None:
    """Raises UnsupportedError without it."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise UnsupportedError(
            "--png needs matplotlib: pip install 'headkv-local[plot]', or matplotlib by itself"
        ) from error


def heat_map(scores: HeadScores) -> Any:
    """A Figure with a row for each layer that scores are of. Raises UnsupportedError without matplotlib."""
    require_matplotlib()
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    n_layer, n_head = scores.scores.shape
    groups = {one.query // one.kv for one in of(scores) or [Heads(n_head, scores.n_head_kv)]}
    group = groups.pop() if len(groups) == 1 else None
    figure = Figure(figsize=(2 + max(n_head, 8) / 4, 1.5 + max(n_layer, 8) / 5), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(scores.scores, aspect="auto", cmap="viridis", interpolation="nearest", vmin=0)
    for edge in range(group, n_head, group) if group else ():
        axes.axvline(edge - 0.5, color="white", linewidth=0.5)
    axes.set_xlabel(f"query head ({group} per KV head)" if group else "query head")
    axes.set_ylabel("layer")
    by_row: dict[float, int] = dict(enumerate(scores.layers or range(n_layer)))  # not always the first ones
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(lambda row, _: str(by_row.get(row, "")))
    axes.set_title(f"head scores, method {scores.method!a}", fontsize="medium", parse_math=False)
    figure.colorbar(image, ax=axes, label="score")
    return figure
