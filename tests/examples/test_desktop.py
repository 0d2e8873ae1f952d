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


def test_without_a_screen() -> None:
    desktop = Path(__file__).parents[2] / "examples" / "desktop"
    environment = {name: value for name, value in os.environ.items() if name != "DISPLAY"}
    done = subprocess.run(
        [sys.executable, str(desktop)], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert done.stderr.startswith("no window can be opened: ")
    assert done.stderr.count("\n") == 1
