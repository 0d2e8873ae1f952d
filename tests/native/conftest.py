"""What tests of the pinned llama.cpp share."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

FETCH = Path(__file__).parents[2] / "native" / "cmake" / "fetch_sdist.py"


@pytest.fixture(scope="session")
def pinned_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pinned llama.cpp as the sdist holds it, the parts that are built."""
    found = subprocess.run([sys.executable, str(FETCH)], check=True, capture_output=True, text=True)
    folder = tmp_path_factory.mktemp("sdist")
    with tarfile.open(found.stdout.strip()) as sdist:
        parts = re.compile(r"[^/]+/vendor/llama\.cpp/(ggml|include|src|\.git)(/|$)")
        members = [m for m in sdist.getmembers() if parts.match(m.name)]
        if sys.version_info >= (3, 12):
            sdist.extractall(folder, members, filter="data")
        else:
            sdist.extractall(folder, members)
    return next(folder.glob("*/vendor/llama.cpp"))
