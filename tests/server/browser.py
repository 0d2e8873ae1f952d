"""A page in headless Chromium, driven through the browser's own debugging pipe."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
TIMEOUT = 300


def found() -> str | None:
    return next((path for path in map(shutil.which, NAMES) if path is not None), None)


class Page:
    """Commands go out and answers come in as JSON that ends with a zero byte."""

    def __init__(self, out: int, into: int) -> None:
        self._out, self._into, self._rest = out, into, b""
        self._numbers = itertools.count(1)
        self._session: dict[str, str] = {}
        self.errors: list[str] = []
        """What the page's own console has complained of."""

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        command = {"id": number, "method": method, "params": parameters, **self._session}
        os.write(self._out, json.dumps(command).encode() + b"\0")
        while True:
            event = self._next()
            said = event.get("params", {})
            if (
                event.get("method") == "Runtime.exceptionThrown"
                or said.get("entry", {}).get("level") == "error"
            ):
                self.errors.append(json.dumps(said))
            if event.get("id") == number:
                assert "error" not in event, event
                return dict(event["result"])

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            more = os.read(self._into, 1 << 16)
            assert more, "the browser has ended"
            self._rest += more
        event, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(event))

    def open(self, url: str) -> None:
        (target,) = (t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page")
        attached = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = {"sessionId": attached["sessionId"]}
        for domain in ("Runtime", "Log"):
            self.call(f"{domain}.enable")
        self.call("Page.navigate", url=url)

    def value(self, expression: str) -> Any:
        """Of JavaScript, in the page."""
        said = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in said, said
        return said["result"].get("value")

    def until(self, expression: str) -> Any:
        end = time.monotonic() + TIMEOUT
        while not (value := self.value(expression)):
            assert time.monotonic() < end, f"not within {TIMEOUT} seconds: {expression}"
            time.sleep(0.02)
        return value

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def press_enter(self) -> None:
        key = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13}
        self.call("Input.dispatchKeyEvent", type="keyDown", text="\r", **key)
        self.call("Input.dispatchKeyEvent", type="keyUp", **key)

    def click(self, selector: str) -> None:
        """In the middle of what it shows of itself there."""
        box = self.value(
            f"(({{x, y, width, height}}) => [x + width / 2, y + height / 2, width])"
            f"(document.querySelector({selector!r}).getBoundingClientRect())"
        )
        assert box[2] > 0, f"{selector} is not shown"
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)


@contextmanager
def browser(folder: Path) -> Iterator[Page]:
    """With a profile in the folder, and no word to anybody else."""
    (theirs_in, out), (into, theirs_out) = os.pipe(), os.pipe()
    program = found()
    assert program is not None
    options = ("--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-dev-shm-usage")
    quiet = ("--disable-background-networking", "--no-first-run", "--disable-gpu", "--no-proxy-server")
    # it takes its pipes as files 3 and 4
    theirs = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (theirs_in, theirs_out)]
    shell = f'exec "$0" "$@" 3<&{theirs[0]} 4>&{theirs[1]}'
    command = ["bash", "-c", shell, program, *options, *quiet, f"--user-data-dir={folder}", "about:blank"]
    with (folder / "browser.log").open("wb") as log:
        process = subprocess.Popen(command, pass_fds=theirs, stdout=log, stderr=log)
    for end in (theirs_in, theirs_out, *theirs):
        os.close(end)
    page = Page(out, into)
    try:
        yield page
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(out)
        os.close(into)
