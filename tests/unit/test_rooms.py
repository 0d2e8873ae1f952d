"""Who imports what: tools -> the class -> _core -> the native library. How long a file is."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "python" / "headkv_local"
TOOLS = ("bench", "chat", "cli", "demo", "doctor", "eval", "scoresfile", "scoring", "sdk", "server")
NATIVE = "_core.native"
NATIVE_SOURCES = ROOT / "native" / "src"
NATIVE_FOLDERS = (  # a file includes those of its own folder, and of folders before that
    "base",
    "text",
    "scores",
    "slice",
    "rows",
    "observe",
    "select",
    "cache",
    "prefill",
    "session",
    "capi",
)


def imported(source: str, module: str, is_package: bool = False) -> Iterator[str]:
    """What of headkv_local a module of it imports, at any place: "_core.native", "errors", ..."""
    inside = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = inside[: len(inside) - node.level + 1] if node.level else []
            start = ".".join([*above, *((node.module or "").split(".") if node.module else [])])
            names = [f"{start}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name.partition(".")[2] for name in names if name.startswith("headkv_local."))


def at_once(source: str) -> str:
    """The imports of a module that are not late."""
    lines = ast.parse(source).body
    return "\n".join(ast.unparse(line) for line in lines if isinstance(line, ast.Import | ast.ImportFrom))


def modules() -> Iterator[tuple[str, list[str]]]:
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        name = ".".join(["headkv_local", *(parts[:-1] if is_package else parts)])
        yield name.partition(".")[2], list(imported(path.read_text(encoding="utf-8"), name, is_package))


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from .. import native", [NATIVE]),
        ("from ..native import lib", [NATIVE + ".lib"]),
        ("import headkv_local._core.native as n", [NATIVE]),
        ("def f():\n    from headkv_local._core import native", [NATIVE]),
        ("from numpy import array\nimport llama_cpp", []),
    ],
)
def test_every_way_to_import_is_seen(source: str, found: list[str]) -> None:
    assert list(imported(source, "headkv_local._core.deep.module")) == found


def test_only_core_calls_the_native_library() -> None:
    callers = {name for name, found in modules() if any(f"{one}.".startswith(NATIVE + ".") for one in found)}
    assert callers
    assert {name for name in callers if not name.startswith("_core.")} == set()


def test_tools_use_public_modules_only() -> None:
    private = [
        f"{name} imports {one}"
        for name, found in modules()
        for one in found
        if name.split(".")[0] in TOOLS and one.split(".")[0] in ("_core", "_gguf")
    ]
    assert private == []


def test_nothing_below_the_tools_knows_them() -> None:
    above = [
        f"{name} imports {one}"
        for name, found in modules()
        for one in found
        if name.split(".")[0] not in TOOLS and one.split(".")[0] in TOOLS
    ]
    assert above == []


def test_no_module_imports_one_that_imports_it() -> None:
    needs: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        parts = [part for part in path.relative_to(PACKAGE).with_suffix("").parts if part != "__init__"]
        source, name = at_once(path.read_text(encoding="utf-8")), ".".join(["headkv_local", *parts])
        needs[".".join(parts)] = set(imported(source, name, path.stem == "__init__"))
    for name, found in needs.items():  # "errors.ArgumentError" is of errors
        longest = {
            max((m for m in needs if f"{one}.".startswith(f"{m}.")), key=len, default="") for one in found
        }
        needs[name] = longest - {name, ""}
    while free := [name for name, found in needs.items() if not found & needs.keys()]:
        for name in free:
            del needs[name]
    assert needs == {}


def test_native_folders_include_those_below_them() -> None:
    sources = [path for path in NATIVE_SOURCES.rglob("*") if path.is_file()]
    assert {str(path.parent.relative_to(NATIVE_SOURCES)) for path in sources} == set(NATIVE_FOLDERS)
    above = [
        f"{path.name} includes {found}/"
        for path in sources
        for found in re.findall(r'^#include "(\w+)/', path.read_text(encoding="utf-8"), re.MULTILINE)
        if found in NATIVE_FOLDERS[NATIVE_FOLDERS.index(path.parent.name) + 1 :]
    ]
    assert above == []


@pytest.mark.parametrize(
    ("folder", "suffixes", "most"),
    [("native", (".c", ".cpp", ".h", ".cu", ".cuh"), 400), ("python", (".py",), 300)],
)
def test_files_are_short(folder: str, suffixes: tuple[str, ...], most: int) -> None:
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for path in (ROOT / folder).rglob("*")
        if path.suffix in suffixes
    }
    assert lengths
    assert {name: n for name, n in lengths.items() if n > most} == {}
