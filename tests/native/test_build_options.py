"""What `make` hands on to CMake: all that was asked for, this time and not the last."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
CMAKE = shutil.which("cmake", path=str(Path(sys.executable).parent)) or "cmake"


def make(*arguments: str) -> str:
    """What it would do, or why it does nothing."""
    done = subprocess.run(
        ["make", "--dry-run", "-W", "CMakeLists.txt", *arguments], cwd=ROOT, capture_output=True, text=True
    )
    return done.stdout + done.stderr


def test_options_of_an_earlier_make_are_taken_back() -> None:
    """CMake remembers them in the build folder: what is not asked for has to be said too."""
    for asked, handed_on in (("", ""), ("amx", "amx"), ("amx avx512", "amx avx512")):
        words = shlex.split(make("install", f"WITHOUT={asked}", "LLAMA_CPP_DIR=/a b"))
        assert f"cmake.define.HEADKV_WITHOUT={handed_on}" in words
        assert "cmake.define.HEADKV_LLAMA_CPP_SOURCE_DIR=/a b" in words
    assert "cmake.define.HEADKV_LLAMA_CPP_SOURCE_DIR=" in shlex.split(make("wheel"))
    for target in ("install", "wheel"):
        assert "cmake.define.CMAKE_CUDA_ARCHITECTURES=86 90" in shlex.split(
            make(target, "CUDA=1", "CUDA_ARCHS=86 90")
        )
        assert "cmake.define.CMAKE_CUDA_ARCHITECTURES=" in shlex.split(make(target, "CUDA=1"))


def test_the_tools_are_those_of_the_extra_dev(tmp_path: Path) -> None:
    """Each is a word of its own to the shell, also with a < in it."""
    (tmp_path / "base.stamp").touch()
    given = [f"VENV={tmp_path}", "PIP=printf '%s\\n'", f"{tmp_path}/tools.stamp"]
    done = subprocess.run(["make", "--silent", *given], cwd=ROOT, check=True, capture_output=True, text=True)
    (line,) = re.findall(r"^dev = (.*)$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert done.stdout.split("\n")[:-1] == json.loads(line)


def test_pip_is_one_that_takes_options(tmp_path: Path) -> None:
    """The pip of a fresh environment may be older: that of Debian 12 is 23.0."""
    first, *_ = re.findall(
        r"^.*pip install.*$", make(f"VENV={tmp_path}", f"{tmp_path}/base.stamp"), re.MULTILINE
    )
    assert "pip>=23.1" in shlex.split(first)


def test_a_portable_wheel_takes_no_options_of_one_machine() -> None:
    assert "make wheel builds for every kind of CPU" in make("wheel", "WITHOUT=amx")


def test_wheels_for_the_cpu_and_for_cuda_are_told_apart() -> None:
    """Each has a build folder of its own, and pip prefers the one with a build tag."""
    folders = set()
    for gpu, tag in ((), False), (("CUDA=1",), True):
        words = shlex.split(make("wheel", *gpu))
        assert "cmake.define.HEADKV_PORTABLE=ON" in words
        assert ("cmake.define.GGML_CUDA=ON" in words) == tag
        assert ("wheel.build-tag=1cu13" in words) == tag
        folders |= {word for word in words if word.startswith("build-dir=")}
    assert len(folders) == 2


def test_all_backends_are_installed(tmp_path: Path) -> None:
    """libggml links each that is on: without one of them nothing can be imported. One turned off has gone."""
    for rpc in ("ON", "OFF"):
        command = [CMAKE, "-S", str(ROOT), "-B", str(tmp_path), f"-DGGML_RPC={rpc}"]
        subprocess.run(command, check=True, capture_output=True)
        installed = (tmp_path / "cmake_install.cmake").read_text(encoding="utf-8")
        for folder in ("/headkv_local/_vendor/llama_cpp/lib", "/lib/headkv"):
            found = re.findall(rf'{folder}" TYPE \w+ FILES "[^"]*/libggml-(\w+)\.', installed)
            assert {"base", "cpu"} <= set(found), folder
            assert ("rpc" in found) == (rpc == "ON"), folder
        assert ("ggml-rpc.h" in installed) == (rpc == "ON")


def test_an_editable_install_is_refused(tmp_path: Path) -> None:
    """It would take Python's files from the tree, where no library lies beside them."""
    command = [CMAKE, "-S", str(ROOT), "-B", str(tmp_path), "-DSKBUILD_STATE=editable"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "an editable install does not find what is built" in " ".join(done.stderr.split())
