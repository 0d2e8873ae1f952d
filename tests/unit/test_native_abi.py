"""The binding fits the header and the library, and anything else is refused with a sentence."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

from headkv_local import HeadKVError, LibraryConflictError
from headkv_local._core import library, native
from headkv_local._core.native.memory import get_layer_devices, get_memory

ROOT = Path(__file__).parents[2]
HEADERS = ROOT / "native" / "include"
BUILD_ABI = ROOT / "python" / "headkv_local" / "_core" / "native" / "build_abi.py"


def build(headers: Path, output: Path) -> ModuleType:
    subprocess.run([sys.executable, str(BUILD_ABI), str(headers), str(output)], check=True, timeout=60)
    spec = spec_from_file_location("headkv_test_abi", output)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_binding_has_what_the_header_declares(tmp_path: Path) -> None:
    found = build(HEADERS, tmp_path / "_abi.py")
    assert {"headkv_prefill", "headkv_get_caps", "headkv_read"} < set(found.SURFACE)
    assert set(found.SURFACE) == set(native._functions)
    ffi = found.ffi
    assert tuple(name for name, _ in ffi.typeof("struct headkv_stats").fields) == native.NativeStats._fields
    codes = ffi.typeof("enum headkv_const").relements
    assert native.lib.headkv_abi_version() == codes["HEADKV_ABI_VERSION"]
    assert set(native._ERRORS) == {code for name, code in codes.items() if name.startswith("HEADKV_ERR")}


def test_the_changelog_names_the_abi() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    now = str(native.lib.HEADKV_ABI_VERSION)
    assert re.findall(r"^\| (\d+) \|", text, re.MULTILINE)[-1] == now
    assert re.findall(r"the ABI of `headkv.h` is (\d+)", text)[0] == now


def test_a_library_of_another_abi_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(HEADERS, tmp_path / "include")
    header = tmp_path / "include" / "headkv.h"
    text, n = re.subn(r"(HEADKV_ABI_VERSION\s*=\s*)\d+", r"\g<1>99", header.read_text(encoding="utf-8"))
    assert n == 1
    header.write_text(text, encoding="utf-8")
    made = build(header.parent, tmp_path / "_abi.py")
    monkeypatch.setitem(sys.modules, "headkv_local._core.native._abi", made)
    with pytest.raises(LibraryConflictError, match="this package needs ABI 99"):
        native._open()


def test_a_library_without_our_functions_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    name = library.library_path().name.replace("llama", "ggml-base")
    monkeypatch.setattr(native, "library_path", lambda: library.library_dir() / name)
    with pytest.raises(LibraryConflictError, match="headkv_abi_version"):
        native._open()


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "library_dir", lambda: tmp_path)
    with pytest.raises(LibraryConflictError, match=f"{tmp_path}.* is missing"):
        native._open()


def test_calls_on_no_context_are_refused_with_a_sentence() -> None:
    with pytest.raises(HeadKVError, match=r"\w+ \w+"):
        native.supported(0)
    for call in (get_memory, get_layer_devices):
        with pytest.raises(HeadKVError, match=r"a pointer is NULL|the context is NULL"):
            call(0)
