"""What tells one build from another."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import headkv_local
from headkv_local.build import build_id

PROGRAM = """
import importlib.util, sys, types
from pathlib import Path
root = Path(sys.argv[1])
core = types.ModuleType("p._core.library")
core.vendor_dir = lambda: root / "_vendor"
core.library_dir = lambda: root / "_vendor" / "llama_cpp" / "lib"
sys.modules |= {"p": types.ModuleType("p"), "p._core": types.ModuleType("p._core"), "p._core.library": core}
spec = importlib.util.spec_from_file_location("p.build", root / "build.py")
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
print(module.build_id())
"""


def of(root: Path) -> str:
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(root)], capture_output=True, text=True, check=True
    )
    return ran.stdout


def test_libraries_and_what_answers_count_and_nothing_else(tmp_path: Path) -> None:
    root, source = tmp_path / "a", Path(headkv_local.__file__).parent / "build.py"
    library = root / "_vendor" / "llama_cpp" / "lib" / "libllama.so"
    chat, sampling = root / "chat" / "app.py", root / "_core" / "sampling.py"
    for path in (library, chat, sampling):
        path.parent.mkdir(parents=True)
        path.write_text("1")
    shutil.copy(source, root)
    first = of(root)
    moved = shutil.copytree(root, tmp_path / "b")
    chat.write_text("2")
    (root / "_build.json").write_text("built today")
    assert of(root) == of(moved) == first
    for path in (library, sampling):
        path.write_text("2")
        other = of(root)
        assert other != first
        first = other


def test_it_is_said_in_16_digits() -> None:
    assert len(bytes.fromhex(build_id())) == 8
