from __future__ import annotations

import pytest

from headkv_local.chat.thinking import Thinking, parted


@pytest.mark.parametrize(
    ("prompt", "text", "thought", "said"),
    [
        ("", "<think>\nWell.\n</think>\n\nYes. </think>", "\nWell.\n", "Yes. </think>"),
        ("<|assistant|><think>\n", "Well.</think>\nYes.", "Well.", "Yes."),
        ("", "  [THINK]a[/THINK] b", "a", "b"),
        ("<think>\n\n</think>\n\n", "Yes.", "", "Yes."),
        ("", " Yes, <think> is a mark.", "", " Yes, <think> is a mark."),
        ("", "<thinly veiled", "", "<thinly veiled"),
        ("", "<think", "", "<think"),
        ("", "<think>it never ends </thin", "it never ends </thin", ""),
    ],
)
def test_parts_of_an_answer(prompt: str, text: str, thought: str, said: str) -> None:
    for n in (1, 2, 3, 5, len(text)):
        stream = Thinking(prompt)
        parts = [*(stream.feed(text[at : at + n]) for at in range(0, len(text), n)), stream.end()]
        assert ["".join(each) for each in zip(*parts, strict=True)] == [thought, said]
    if not prompt.endswith("</think>\n\n"):
        assert parted(text) == (thought, said)
