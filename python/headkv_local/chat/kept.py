"""/kept: the prompt, and how many heads keep each of its tokens."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from headkv_local.chat.console import Console
from headkv_local.chat.render import counted, share, strip_control
from headkv_local.chat.styled import painted, styled, wrapped
from headkv_local.chat.worker import interrupts
from headkv_local.errors import StateError

if TYPE_CHECKING:
    from headkv_local import Llama

LEVELS: Final = (0.0, 0.05, 0.15, 0.4)  # a level is above its share of the heads
_SHADES: Final = ("2", "38;5;231;48;5;17", "38;5;231;48;5;19", "38;5;231;48;5;26", "1;38;5;16;48;5;214")
_PLAIN_SHADES: Final = ("2", "", "4", "1;4", "7")  # without colours
_PAGER: Final = "less"


@dataclass(frozen=True)
class Kept:
    """Pieces of a prompt, in their order: each with the number of KV heads that keep it, of `n_heads`.

    share: of the entries that are kept.
    """

    pieces: Sequence[tuple[str, int]]
    n_heads: int
    n_tokens: int
    share: float

    def level(self, heads: int) -> int:
        """0 for what no head keeps, and up to len(LEVELS) the more heads do."""
        return sum(heads > limit * self.n_heads for limit in LEVELS)


def kept_text(llm: Llama) -> Kept:
    """What is kept of the prompt that was compacted last. Raises StateError where nothing was let go."""
    stats = llm.cache_stats()
    if not stats.compacted:
        raise StateError("everything is kept: no prompt has been compacted")
    mask = llm.retention_mask()  # [n_layer, n_head_kv, n_prompt]
    heads = mask.sum(axis=(0, 1))
    tokens = [int(token) for token in llm.input_ids[: len(heads)]]
    pieces: list[tuple[str, int]] = []
    held, most = b"", 0
    for token, count in zip(tokens, heads, strict=True):
        held, most = held + llm.detokenize([token], special=True), max(most, int(count))
        try:
            pieces.append((held.decode(), most))
        except UnicodeDecodeError as error:
            if error.reason == "unexpected end of data" and len(held) < 16:
                continue  # several tokens are one character
            pieces.append((held.decode(errors="replace"), most))
        held, most = b"", 0
    if held:
        pieces.append((held.decode(errors="replace"), most))
    return Kept(pieces, int(np.count_nonzero(stats.kept)), len(tokens), stats.kept_share)


def told(kept: Kept) -> str:
    of = counted(kept.n_tokens, "token")
    nobody = sum(heads == 0 for _, heads in kept.pieces)
    return (
        f"{share(kept.share)} of the entries of {of} are kept, by {kept.n_heads} KV heads; "
        f"{nobody} are kept by none."
    )


def show_kept(kept: Kept, console: Console) -> None:
    """The text in shades, in the pager where it is longer than the terminal."""
    shades = _SHADES if console.color else _PLAIN_SHADES
    names = ["no head", "a few", *(f"over {limit:.0%}" for limit in LEVELS[1:])]
    text = styled(f"{told(kept)}\nKept by:", "")
    for name, shade in zip(names, shades, strict=True):
        text += [(" ", ""), *styled(name.replace(" ", "\xa0"), shade)]
    text += styled("\n\n", "")
    for piece, heads in kept.pieces:
        text += styled(strip_control(piece), shades[kept.level(heads)])
    width = console.width
    lines = "".join(f"{painted(line)}\n" for line in wrapped(text, 10**6 if width is None else width - 1))
    if not (console.err_tty and _paged(lines, console)):
        console.raw(lines)


def _paged(text: str, console: Console) -> bool:
    """Whether a pager has shown it: that of PAGER, else less."""
    try:
        command = shlex.split(os.environ.get("PAGER") or _PAGER)
    except ValueError:  # a quote in it is open
        return False
    if not command or shutil.which(command[0]) is None:
        return False
    environment = {"LESS": "FRX", "LESSCHARSET": "utf-8", **os.environ}
    try:
        with interrupts(lambda: None):  # it is the pager's, too
            subprocess.run(command, input=text.encode(), stdout=console.err, env=environment, check=False)
    except OSError:
        return False
    return True
