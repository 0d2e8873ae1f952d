"""Every script of examples/ runs and prints what it promises; the tiny model's answers are noise."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
PRINTS = {
    "document_questions.py": [
        r"full cache, as turns: \d of 3 right, cache ",
        r"64 entries per KV head, each on its own: \d of 3 right, cache ",
    ],
    "stream_and_cancel.py": [
        r"^(read (0|512|977|1009) of 1009 tokens\n){4}stopped after 'The text says that the lighthouse ",
        r"\nread (\d\d) of \1 tokens\nthen '.*lighthouse .*1871",
    ],
    "session.py": [
        r"^answer: '.*1871.*'\n",
        r"session: [\d.]+ MiB, light: [\d.]+ MiB\n",
        r"read after opening: 30 of 10\d\d tokens\n",
    ],
    "retention_mask.py": [r"2 layers, 2 KV heads, \d+ prompt tokens\n", r"mean 64\n", r"kept by most"],
}
DEFAULT = {"stream_and_cancel.py", "session.py"}
"""With the default model, whose answers say something."""


def test_every_example_is_tested() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} - {"material.py"} == set(PRINTS)


@pytest.mark.parametrize("name", PRINTS)
def test_example(name: str, tiny_path: Path) -> None:
    model = [] if name in DEFAULT else [str(tiny_path)]
    run = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *model], capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr
    for pattern in PRINTS[name]:
        assert re.search(pattern, run.stdout), run.stdout


OF_A_FOLDER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from conversations import Conversations
print(Conversations(Path(sys.argv[2])).all)
"""


def test_what_the_window_cannot_open_stays_in_the_folder(tmp_path: Path) -> None:
    (tmp_path / "folder.session").mkdir()
    (tmp_path / "other.session").write_bytes(b"no session")
    (tmp_path / "link.session").symlink_to(tmp_path / "nowhere")
    run = subprocess.run(
        [sys.executable, "-c", OF_A_FOLDER, str(EXAMPLES / "desktop"), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (run.returncode, run.stdout) == (0, "[]\n"), run.stderr
    assert sorted(re.findall(r"/(\w+)\.session cannot be opened: ", run.stderr)) == [
        "folder",
        "link",
        "other",
    ]
    assert len(list(tmp_path.glob("*.session"))) == 3
