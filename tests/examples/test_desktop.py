"""The window of examples/desktop on a virtual screen; desktop_user.py says what is done and seen there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("tkinter", reason="needs Tk: apt-get install python3-tk")
for program, package in {"Xvfb": "xvfb", "import": "imagemagick"}.items():
    if shutil.which(program) is None:
        pytest.skip(f"needs {program}: apt-get install {package}", allow_module_level=True)

DESKTOP = Path(__file__).parents[2] / "examples" / "desktop"


@pytest.fixture(scope="module")
def screen() -> Iterator[str]:
    """Its name, as in $DISPLAY."""
    command = ["Xvfb", "-displayfd", "1", "-screen", "0", "1100x760x24", "-nolisten", "tcp"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert server.stdout is not None
    yield f":{server.stdout.readline().strip()}"
    server.terminate()
    server.wait(30)


@pytest.mark.parametrize(("scenario", "model"), [("day", "smollm2"), ("mishaps", "tiny_path")])
def test_desktop(
    scenario: str, model: str, screen: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    user = Path(__file__).with_name("desktop_user.py")
    done = subprocess.run(
        [sys.executable, str(user), scenario, str(tmp_path), str(request.getfixturevalue(model))],
        env=os.environ | {"DISPLAY": screen},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert (done.returncode, done.stderr) == (0, "")


FAILING = """
import runpy, sys
sys.path.insert(0, sys.argv[1])
import app
def fail(self): raise RuntimeError("no window")
app.App._show_conversation = fail
sys.argv[1:] = ["--folder", sys.argv[2]]
runpy.run_path(sys.path[0], run_name="__main__")
"""


def test_where_the_window_cannot_be_made_the_process_ends(screen: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FAILING, str(DESKTOP), str(tmp_path)],
        env=os.environ | {"DISPLAY": screen},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stderr.endswith("RuntimeError: no window\n")


UNCLOSABLE = """
import sys
sys.path.insert(0, sys.argv[1])
from engine import Closed, Engine
class Unclosable:
    def close(self): raise RuntimeError("it stays")
engine = Engine()
engine._llm = Unclosable()
engine.close()
assert isinstance(engine.events.get(timeout=30), Closed)
"""


def test_a_model_that_cannot_be_closed_does_not_keep_the_window_open() -> None:
    done = subprocess.run(
        [sys.executable, "-c", UNCLOSABLE, str(DESKTOP)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.endswith("RuntimeError: it stays\n")


def test_without_a_screen() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "DISPLAY"}
    done = subprocess.run(
        [sys.executable, str(DESKTOP)], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert done.stderr.startswith("no window can be opened: ")
    assert done.stderr.count("\n") == 1
