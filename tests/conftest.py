"""Fixtures that several tests share."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from gguf_factory import TinyModel
from headkv_local import Llama, default_model_path, machine

# the same examples each time, however slow the machine; HYPOTHESIS_PROFILE=default searches for others
hypothesis.settings.register_profile("same", deadline=None, derandomize=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))

# a shell starts its background jobs with Ctrl-C ignored, and the commands under test would inherit that
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """tiny(arch=..., n_layer=..., ...): the path of such a model, made once per session."""
    folder = tmp_path_factory.mktemp("tiny")
    made: dict[TinyModel, Path] = {}

    def path_of(**fields: Any) -> Path:
        model = TinyModel(**fields)
        if model not in made:
            made[model] = model.write(folder / f"{len(made)}-{model.arch}.gguf")
        return made[model]

    return path_of


@pytest.fixture(scope="session")
def tiny_path(tiny: Callable[..., Path]) -> Path:
    """The tiny model with all defaults: llama, 2 layers, 4 query and 2 KV heads of 64."""
    return tiny()


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The default model, a real one."""
    return default_model_path()


@pytest.fixture
def container(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """container(n): from then on no more than n bytes may be used, for all that this process is told."""

    def limit(n_bytes: int) -> None:
        monkeypatch.setattr(machine, "limits", lambda: machine.Limits(None, n_bytes))

    return limit


@pytest.fixture
def load() -> Iterator[Callable[..., Llama]]:
    """load(path, **arguments): a Llama that is closed after the test; kind: of a class of its own.

    With one thread: tiny models gain nothing from more, and wait for each other on a busy machine.
    """
    opened: list[Llama] = []

    def opener(path: Path, kind: type[Llama] = Llama, **arguments: Any) -> Llama:
        defaults = {"n_ctx": 1024, "n_threads": 1, "n_threads_batch": 1}
        llm = kind(path, **(defaults | arguments))
        opened.append(llm)
        return llm

    yield opener
    for llm in opened:
        llm.close()
