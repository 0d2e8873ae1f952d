"""Fetching llama.cpp when it cannot be had: one sentence with the cure, nothing half-written."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "native" / "cmake" / "fetch_sdist.py"


def fetch(cache: Path, *, file_size: int | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    def limit() -> None:
        if file_size is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))

    return subprocess.run(
        [sys.executable, str(SCRIPT)],
        capture_output=True,
        text=True,
        env={**os.environ, "XDG_CACHE_HOME": str(cache), "PIP_CACHE_DIR": str(cache / "pip"), **env},
        preexec_fn=limit,
    )


def test_no_network(tmp_path: Path) -> None:
    result = fetch(tmp_path, PIP_NO_INDEX="1", PIP_FIND_LINKS="")
    assert result.returncode == 1
    assert result.stdout == ""
    assert "could not fetch llama-cpp-python" in result.stderr
    assert "-DHEADKV_LLAMA_CPP_SOURCE_DIR" in result.stderr
    assert "Traceback" not in result.stderr
    assert list((tmp_path / "headkv-local").iterdir()) == []


def test_no_room_on_the_disk(tmp_path: Path) -> None:
    result = fetch(tmp_path, file_size=16, PIP_NO_INDEX="1", PIP_FIND_LINKS="")
    assert result.returncode == 1
    assert "could not fetch llama-cpp-python" in result.stderr
    assert "Traceback" not in result.stderr
    assert list((tmp_path / "headkv-local").iterdir()) == []


def test_the_cache_folder_cannot_be_made(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    result = fetch(blocked)
    assert result.returncode == 1
    assert "could not fetch llama-cpp-python" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_file_with_another_hash_is_not_taken(tmp_path: Path) -> None:
    folder = tmp_path / "headkv-local"
    folder.mkdir()
    name = Path(fetch_from_users_cache()).name
    (folder / name).write_bytes(b"not the sdist")
    result = fetch(tmp_path, PIP_NO_INDEX="1", PIP_FIND_LINKS="")
    assert result.returncode == 1
    assert result.stdout == ""


def test_an_isolated_build_has_what_fetches() -> None:
    """What pip makes for a build has neither pip nor what is installed around it."""
    (required,) = re.findall(
        r"^requires = (.*)$", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE
    )
    for script in SCRIPT.parent.glob("*.py"):
        for module in re.findall(r'"-m", "(\w+)"', script.read_text(encoding="utf-8")):
            assert module in json.loads(required), script


def fetch_from_users_cache() -> str:
    result = subprocess.run([sys.executable, str(SCRIPT)], check=True, capture_output=True, text=True)
    return result.stdout.strip()


def test_the_users_cache_has_it_after_a_build() -> None:
    path = Path(fetch_from_users_cache())
    assert path.is_file()
    if path.stat().st_size < 10**7:
        pytest.fail(f"{path} is too small to be the sdist")
