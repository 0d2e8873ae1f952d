"""docs/models.md: a line for each architecture of the pinned llama.cpp, and what it says of it."""

from __future__ import annotations

from pathlib import Path

from architecture_table import names_of, shown

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
ROWS = [
    [cell.strip() for cell in line.split("|")[1:-1]]
    for line in PAGE.read_text(encoding="utf-8").splitlines()
    if line.startswith("| ")
][2:]  # without their head
KINDS = {"KV cache", "sliding windows", "recurrent", "none"}


def test_each_architecture_has_its_line(pinned_tree: Path) -> None:
    names = names_of(pinned_tree / "src" / "llama-arch.cpp")
    assert [row[0] for row in ROWS] == [shown(name) for name in names]


def test_a_line_says_what_there_is_to_say() -> None:
    for name, memory, compacted, by_layers, why in ROWS:
        said = (compacted, by_layers)
        assert said in {("yes", "yes"), ("yes", "no"), ("no", "")}, name
        assert (why == "") is (said == ("yes", "yes")), name
        assert set(memory.split(", ")) <= KINDS or (memory, compacted) == ("", "no"), name
