"""The chat at / in a real browser: send, see the answer come, stop it, ask again."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest
from browser import browser, found
from serving import serving, until

pytestmark = pytest.mark.skipif(
    found() is None, reason="needs Chromium: apt install chromium, or Google Chrome"
)
LAST = "[...document.querySelectorAll('.assistant')].at(-1)"
NOTE = "[...document.querySelectorAll('.note')].at(-1)"
# no answer comes to its own end meanwhile
ENDLESS = """
window.sent = window.fetch;
window.fetch = (url, options) => sent(url, options.body ? {
  ...options, body: JSON.stringify({ ...JSON.parse(options.body), grammar: 'root ::= [a-z]+ " " root' }),
} : options);
"endless"
"""
AS_EVER = "window.fetch = window.sent; 'as ever'"


def test_a_chat_in_a_browser(smollm2: Path, tmp_path: Path) -> None:
    with serving(tmp_path, smollm2, "--ctx", 4096) as server, browser(tmp_path) as page:
        page.open(f"{server.url}/")
        page.until("document.querySelector('#model')?.value")
        assert page.value("document.activeElement.id") == "text"

        assert page.value(ENDLESS) == "endless"
        page.type("Write a long story about a lighthouse, a storm and a lost ship.")
        page.press_enter()
        page.until(f"{NOTE}?.textContent === 'answering'")
        seen = [page.value(f"{LAST}.textContent")]
        while len(seen) < 4:
            seen.append(page.until(f"{LAST}.textContent.length > {len(seen[-1])} && {LAST}.textContent"))
        assert all(later.startswith(before) for before, later in pairwise(seen))
        assert page.value("document.querySelector('#text').value") == ""

        page.click("#stop")
        page.until(f"{NOTE}.textContent === 'stopped'")
        until(lambda: server.metric("headkv_requests_running") == 0, "the server has stopped too", 20)
        stopped = page.value(f"{LAST}.textContent")
        assert stopped.startswith(seen[-1])
        assert page.value("document.querySelector('#stop').hidden")

        assert page.value(AS_EVER) == "as ever"
        page.type("Answer with one word: what colour is the sky?")
        page.click("#send")
        said = page.until(rf"/answered/.test({NOTE}.textContent) && {NOTE}.textContent")
        asked, held, answered = map(int, re.findall(r"(\d+)(?= tokens| of them| answered)", said))
        assert 0 < held < asked
        assert answered > 0
        texts = page.value("[...document.querySelectorAll('.message')].map((one) => one.textContent)")
        assert len(texts) == 4
        assert texts[1] == stopped
        assert texts[3].strip()

        page.click("#anew")
        assert page.value("document.querySelectorAll('.message').length") == 0
        assert page.errors == []
