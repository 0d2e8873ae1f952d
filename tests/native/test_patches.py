"""The patches to llama.cpp: small, idempotent, and refused by a tree that is not the pinned one."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CMAKE_DIR = ROOT / "native" / "cmake"
PATCHES = sorted((ROOT / "native" / "patches").glob("*.patch"))
CMAKE = shutil.which("cmake", path=str(Path(sys.executable).parent)) or shutil.which("cmake")

CHANGED_LINES_MAX = 150


@pytest.fixture
def tree(pinned_tree: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pinned_tree, tmp_path / "llama.cpp"))


def apply(tree: Path) -> subprocess.CompletedProcess[str]:
    patches = ";".join(map(str, PATCHES))
    script = CMAKE_DIR / "apply-patches.cmake"
    return subprocess.run(
        [str(CMAKE), f"-DTREE={tree}", f"-DPATCHES={patches}", "-P", str(script)],
        capture_output=True,
        text=True,
    )


def digest(tree: Path) -> str:
    sha = hashlib.sha256()
    for path in sorted(p for p in tree.rglob("*") if p.is_file()):
        sha.update(str(path.relative_to(tree)).encode())
        sha.update(path.read_bytes())
    return sha.hexdigest()


def changed_lines(patch: Path) -> int:
    lines = patch.read_text().splitlines()
    body = lines[lines.index("---") + 1 :]
    return sum(line[:1] in "+-" and not line.startswith(("+++ ", "--- ")) for line in body if line)


def test_patches_change_few_upstream_lines() -> None:
    counts = {patch.name: changed_lines(patch) for patch in PATCHES}
    assert counts
    assert 0 < sum(counts.values()) < CHANGED_LINES_MAX, counts


@pytest.mark.parametrize("patch", PATCHES, ids=lambda p: p.name)
def test_each_patch_says_why_it_must_exist(patch: Path) -> None:
    header = patch.read_text().split("\n---\n")[0]
    assert re.search(r"^Description: \S.*\n( .*\n)+", header, re.M)
    assert re.search(r"^Forwarded: \S", header, re.M)


def test_applying_twice_changes_nothing(tree: Path) -> None:
    first = apply(tree)
    assert first.returncode == 0, first.stderr
    after_first = digest(tree)
    second = apply(tree)
    assert second.returncode == 0, second.stderr
    assert digest(tree) == after_first
    assert "HEADKV_ATTN" in (tree / "ggml" / "include" / "ggml.h").read_text()


def test_the_rest_is_applied_to_a_tree_that_has_the_first(tree: Path) -> None:
    assert apply(tree).returncode == 0
    whole = digest(tree)
    subprocess.run(
        ["git", "apply", "--reverse", str(PATCHES[-1])], cwd=tree, check=True, env={"GIT_DIR": "none"}
    )
    assert digest(tree) != whole
    assert apply(tree).returncode == 0
    assert digest(tree) == whole


@pytest.mark.parametrize("patch", PATCHES, ids=lambda p: p.name)
def test_a_tampered_tree_is_refused_by_the_patch_name(tree: Path, patch: Path) -> None:
    lines = patch.read_text().splitlines()
    name = next(line for line in lines if line.startswith("+++ b/")).removeprefix("+++ b/")
    hunk = lines[next(i for i, line in enumerate(lines) if line.startswith("@@")) + 1 :]
    context = next(line for line in hunk if line.startswith(" ") and line.strip())[1:]
    file = tree / name
    text = file.read_text()
    assert context in text
    file.write_text(text.replace(context, "tampered"))
    result = apply(tree)
    assert result.returncode != 0
    assert patch.name in result.stderr
    assert "does not apply" in re.sub(r"\s+", " ", result.stderr)


def tile_table_stores(tree: Path, folder: Path) -> set[int]:
    """Offsets in the table of the tile configuration that are written right before it is loaded."""
    cpu = tree / "ggml" / "src" / "ggml-cpu"
    target = folder / "mmq.o"
    command = [
        "g++",
        "-std=c++17",
        "-O3",
        "-march=sapphirerapids",
        "-c",
        cpu / "amx" / "mmq.cpp",
        "-o",
        target,
    ]
    for include in (tree / "ggml" / "include", cpu.parent, cpu):
        command += ["-I", include]
    subprocess.run(command, check=True)
    listing = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", target], check=True, capture_output=True, text=True
    ).stdout.splitlines()
    at = next(i for i, line in enumerate(listing) if "ldtilecfg" in line)
    place = re.search(r"ldtilecfg\s+(0x\w+)?\((%\w+)\)", listing[at])
    assert place, listing[at]
    table = int(place[1] or "0", 16)
    stores = set()
    for line in listing[at - 40 : at]:
        # wider registers clear the whole table before; its constants are narrower
        store = re.search(rf"\bv?mov\w*\s+(?:%(?:xmm|r)\w*|\$0x\w+),(0x\w+)?\({place[2]}\)", line)
        if store:
            stores.add(int(store[1] or "0", 16) - table)
    return stores


@pytest.mark.skipif(not (shutil.which("g++") and shutil.which("objdump")), reason="needs g++ and objdump")
def test_the_tile_configuration_is_stored_before_it_is_loaded(pinned_tree: Path, tree: Path) -> None:
    """A machine without AMX can show no more; GCC 13 and newer store it without the patch as well."""
    assert apply(tree).returncode == 0
    columns, rows = 16, 48  # where the 64 bytes hold what each tile has of them
    assert {columns, rows} <= tile_table_stores(tree, tree)
    version = subprocess.run(["g++", "-dumpversion"], capture_output=True, text=True).stdout
    if version.startswith("12"):
        assert not {columns, rows} & tile_table_stores(pinned_tree, tree)
