"""One library per process: ours, or an error that says why not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from headkv_local._core import library


def python(code: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if name != "LLAMA_CPP_LIB_PATH"}
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=cwd,
        env=inherited | environment,
    )


@pytest.fixture
def other_library(tmp_path: Path) -> Path:
    """A folder with a library that works as well as ours, but is not ours."""
    folder = tmp_path / "other"
    shutil.copytree(library.library_dir(), folder)
    return folder


@pytest.mark.parametrize("imports", ["headkv_local, llama_cpp", "llama_cpp", "llama_cpp, headkv_local"])
def test_llama_cpp_finds_our_library(imports: str) -> None:
    code = (
        f"import {imports}, os\n"
        "print(llama_cpp.llama_cpp._base_path, 'LLAMA_CPP_LIB_PATH' in os.environ)\n"
        "llama_cpp.llama_backend_init(); print(llama_cpp.llama_supports_mmap())"
    )
    assert python(code).stdout.split() == [str(library.library_dir()), "False", "True"]


def test_another_llama_cpp_of_the_environment_is_left_alone(tmp_path: Path) -> None:
    """Who does not import this package finds it: what is installed comes before the line of a .pth file."""
    (tmp_path / "llama_cpp.py").write_text("__version__ = 'theirs'\n")
    assert python("import llama_cpp; print(llama_cpp.__version__)", cwd=tmp_path).stdout == "theirs\n"
    ours = python("import headkv_local, llama_cpp; print(llama_cpp.__version__)", cwd=tmp_path)
    assert ours.stdout != "theirs\n", ours.stderr


def test_another_library_in_the_environment_is_set_aside(other_library: Path) -> None:
    code = (
        "import logging; logging.basicConfig()\n"
        "import headkv_local, llama_cpp.llama_cpp as c; print(c._base_path)"
    )
    done = python(code, LLAMA_CPP_LIB_PATH=str(other_library))
    assert done.stdout.strip() == str(library.library_dir())
    assert f"LLAMA_CPP_LIB_PATH={other_library} is set aside" in done.stderr


def test_llama_cpp_imported_before_with_another_library(other_library: Path) -> None:
    code = (
        "import llama_cpp\n"
        "try:\n    import headkv_local\n"
        "except ImportError as error:\n    print(type(error).__name__, error)"
    )
    done = python(code, LLAMA_CPP_LIB_PATH=str(other_library))
    assert done.stdout.startswith("LibraryConflictError llama_cpp was imported before"), done.stderr
    assert str(other_library) in done.stdout
    assert "import headkv_local first" in done.stdout


def test_llama_cpp_imported_before_with_our_library() -> None:
    code = "import llama_cpp, headkv_local; print(headkv_local.Llama.__mro__[-2].__module__)"
    done = python(code, LLAMA_CPP_LIB_PATH=str(library.library_dir()))
    assert done.stdout.strip() == "llama_cpp.llama", done.stderr


def test_the_import_is_light_and_silent() -> None:
    code = (
        "import sys, headkv_local, headkv_local.errors, headkv_local.models\n"
        "print([name for name in ('llama_cpp', 'numpy', 'cffi') if name in sys.modules])"
    )
    done = python(code)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_every_exported_name_is_there() -> None:
    code = (
        "import headkv_local\n"
        "for name in headkv_local.__all__: getattr(headkv_local, name)\n"
        "try:\n    headkv_local.nothing\n"
        "except AttributeError as error:\n    print(error)"
    )
    assert python(code).stdout.strip() == "module 'headkv_local' has no attribute 'nothing'"
