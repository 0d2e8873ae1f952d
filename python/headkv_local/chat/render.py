"""Text for a terminal: the stats line, line breaks, and nothing that could steer the terminal."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from headkv_local.chat.options import MEMORY
from headkv_local.wording import size

if TYPE_CHECKING:
    from headkv_local.chat.turn import Answer

# C0 without tab and newline, DEL, and C1, where one character alone can open an escape sequence.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def strip_control(text: str) -> str:
    """`text` without the control characters that a terminal would act on; tab and newline stay."""
    return _CONTROL.sub("", text)


def share(value: float) -> str:
    """A share as percent with as many digits as it takes not to read 0: 100 %, 3.2 %, 0.04 %."""
    percent = 100 * value
    digits = 0 if percent >= 99.95 or percent == 0 else 1 if percent >= 1 else 2
    return f"{percent:.{digits}f} %"


def counted(n: int, what: str) -> str:
    """1 token, 2 tokens."""
    return f"{n} {what}{'s' * (n != 1)}"


def seconds(value: float) -> str:
    return f"{value:.0f} s" if value >= 9.95 else f"{value:.1f} s"


def stats_parts(answer: Answer) -> list[str]:
    """The stats line of one answer, in the pieces at which a narrow terminal may break it."""
    parts = [counted(answer.completion_tokens, "token")]
    if answer.decode_rate is not None:
        parts.append(f"{answer.decode_rate:.1f} tokens/s")
    if answer.read_tokens:
        parts.append(f"read {answer.read_tokens} in {seconds(answer.prefill_seconds)}")
    stats = answer.stats
    if stats.compacted:
        parts.append(f"cache {size(stats.full_bytes)} -> {size(stats.resident_bytes)}")
        parts.append(f"kept {share(stats.kept_share)}")
    if stats.archive_tokens:
        place = "in memory" if answer.archive == MEMORY else "in a file"
        parts.append(f"archive {size(stats.archive_bytes)} {place}")
    return parts


def join(parts: Iterable[str], width: int | None) -> str:
    """`parts`, with commas, on lines of at most `width` columns, broken between them only; None: one line."""
    lines: list[str] = []
    for part in parts:
        grown = f"{lines[-1]}, {part}" if lines else part
        if lines and width is not None and len(grown) > width - 1:
            lines[-1] += ","
            lines.append(part)
        elif lines:
            lines[-1] = grown
        else:
            lines.append(part)
    return "\n".join(lines)
