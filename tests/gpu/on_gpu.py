"""A pytest plugin: models are opened with all layers on the GPU, unless a test says where: `pytest -p on_gpu`."""

from __future__ import annotations

import functools
from typing import Any

import llama_cpp
import pytest

import headkv_local
from headkv_local.devices import require_gpu


def _on_gpu(cls: type[Any], patch: pytest.MonkeyPatch) -> None:
    init = cls.__init__

    @functools.wraps(init)
    def placed(self: object, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **{"n_gpu_layers": -1} | kwargs)

    patch.setattr(cls, "__init__", placed)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    require_gpu(-1)
    patch = pytest.MonkeyPatch()
    config.add_cleanup(patch.undo)
    for cls in (llama_cpp.Llama, headkv_local.Llama):
        _on_gpu(cls, patch)
