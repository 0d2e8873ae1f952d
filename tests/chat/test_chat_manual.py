from __future__ import annotations

from pathlib import Path

import pytest

from headkv_local.chat.manual import fill_in, options_table

PAGE = Path(__file__).resolve().parents[2] / "docs" / "chat.md"


def test_manual_is_up_to_date() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert fill_in(text) == text, "run: python -m headkv_local.chat.manual docs/chat.md"


def test_table_shows_defaults_and_choices() -> None:
    table = options_table()
    assert "(default: 128)" in table
    assert "`--color auto\\|always\\|never`" in table
    assert "`-p PROMPT`, `--prompt PROMPT`" in table


def test_page_without_markers_is_refused() -> None:
    with pytest.raises(ValueError, match="the markers of the options table are missing"):
        fill_in("# a page")
