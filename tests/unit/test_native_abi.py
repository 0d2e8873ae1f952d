"""The binding fits the header: the same functions, the same struct, and every error code has a class."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

from headkv_local import LibraryConflictError, ScoresError, _library, _native

ROOT = Path(__file__).parents[2]
HEADER = ROOT / "native" / "include" / "headkv.h"
BUILD_ABI = ROOT / "python" / "headkv_local" / "_native" / "build_abi.py"


def build(header: Path, output: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BUILD_ABI), str(header), str(output)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def load(path: Path) -> ModuleType:
    spec = spec_from_file_location("headkv_test_abi", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def abi(tmp_path: Path) -> ModuleType:
    done = build(HEADER, tmp_path / "_abi.py")
    assert done.returncode == 0, done.stderr
    return load(tmp_path / "_abi.py")


def test_the_list_of_names_is_the_whole_native_surface() -> None:
    declared = re.findall(r"^HEADKV_API .*?(headkv_\w+)\(", HEADER.read_text(encoding="utf-8"), re.MULTILINE)
    assert tuple(declared) == _native.SURFACE


def test_every_name_of_the_list_is_used() -> None:
    source = Path(str(_native.__file__)).read_text(encoding="utf-8")
    for name in _native.SURFACE:
        assert source.count(f'"{name}"') >= 2, name


def test_the_struct_has_the_fields_of_the_header(abi: ModuleType) -> None:
    fields = abi.ffi.typeof("struct headkv_stats").fields
    assert tuple(name for name, _ in fields) == _native.NativeStats._fields
    assert abi.ffi.sizeof("struct headkv_stats") == 8 * len(fields)


def test_every_code_has_a_class_of_its_own(abi: ModuleType) -> None:
    codes = {
        v: k for k, v in abi.ffi.typeof("enum headkv_const").relements.items() if k.startswith("HEADKV_ERR")
    }
    assert set(codes) == set(_native._ERRORS)
    of_files = {
        code for code, name in codes.items() if name.startswith(("HEADKV_ERR_SCORES", "HEADKV_ERR_FILE"))
    }
    for code in of_files:  # they differ by their sentences
        assert issubclass(_native._ERRORS[code], ScoresError)
    others = set(codes) - of_files
    assert len({_native._ERRORS[code] for code in others}) == len(others)


def test_the_library_has_the_abi_of_the_header(abi: ModuleType) -> None:
    wanted = abi.ffi.typeof("enum headkv_const").relements["HEADKV_ABI_VERSION"]
    assert _native.abi_version() == wanted


def test_a_header_without_markers(tmp_path: Path) -> None:
    bad = tmp_path / "bad.h"
    bad.write_text("int f(void);\n")
    done = build(bad, tmp_path / "_abi.py")
    assert done.returncode == 1
    assert "// cdef begin" in done.stderr
    assert not (tmp_path / "_abi.py").exists()


def test_a_library_of_another_abi_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    header = tmp_path / "headkv.h"
    text, n = re.subn(r"(HEADKV_ABI_VERSION\s*=\s*)\d+", r"\g<1>99", HEADER.read_text(encoding="utf-8"))
    assert n == 1
    header.write_text(text, encoding="utf-8")
    assert build(header, tmp_path / "_abi.py").returncode == 0
    monkeypatch.setitem(sys.modules, "headkv_local._native._abi", load(tmp_path / "_abi.py"))
    with pytest.raises(LibraryConflictError, match="this package needs ABI 99"):
        _native._open()


def test_a_library_without_our_functions_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    name = _library.library_path().name.replace("llama", "ggml-base")
    monkeypatch.setattr(_native, "library_path", lambda: _library.library_dir() / name)
    with pytest.raises(LibraryConflictError, match="headkv_abi_version"):
        _native._open()


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_library, "library_dir", lambda: tmp_path)
    with pytest.raises(LibraryConflictError, match=f"{tmp_path}.* is missing"):
        _native._open()


def test_calls_on_no_context_are_refused_with_a_sentence() -> None:
    from headkv_local import HeadKVError

    with pytest.raises(HeadKVError, match=r"\w+ \w+"):
        _native.supported(0)
