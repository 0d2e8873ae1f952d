"""/kept --html: a page that needs nothing but a browser."""

from __future__ import annotations

import html
import os
from itertools import groupby
from typing import Final

from headkv_local.chat.kept import LEVELS, Kept, told
from headkv_local.chat.render import strip_control
from headkv_local.errors import ArgumentError
from headkv_local.files import replacing, target

_BEGIN: Final = "<!DOCTYPE html>\n<!-- made by /kept of headkv-chat -->\n"
_PAGE: Final = """<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>What was kept</title>
<style>
:root {{ color-scheme: light dark; --text: #1a1a1a; --faint: #737373; --page: #fdfdfc; --rule: #ddd;
  --s1: #e3ecf7; --s2: #b8d0ee; --s3: #7fb0e6; --s4: #ffb454; --on: #101010; }}
@media (prefers-color-scheme: dark) {{ :root {{ --text: #e6e6e6; --faint: #8f8f8f; --page: #16181b;
  --rule: #333; --s1: #1f2c3d; --s2: #264a75; --s3: #2f74bd; --s4: #d98a1f; --on: #fff; }} }}
body {{ margin: 0 auto; max-width: 54rem; padding: 1.5rem 1rem 4rem; background: var(--page);
  color: var(--text); font: 16px/1.6 system-ui, sans-serif; }}
header {{ border-bottom: 1px solid var(--rule); margin-bottom: 1rem; padding-bottom: .75rem; }}
h1 {{ font-size: 1.25rem; margin: 0 0 .25rem; }}
p {{ margin: .25rem 0; color: var(--faint); }}
.key span {{ display: inline-block; margin: .25rem .5rem .25rem 0; padding: 0 .5rem; border-radius: 3px; }}
main {{ white-space: pre-wrap; overflow-wrap: anywhere; }}
.l0 {{ color: var(--faint); }}
.l1, .l2, .l3, .l4 {{ border-radius: 2px; color: var(--on); }}
.l1 {{ background: var(--s1); }} .l2 {{ background: var(--s2); }}
.l3 {{ background: var(--s3); }} .l4 {{ background: var(--s4); color: #101010; }}
main span:hover {{ outline: 1px solid var(--text); }}
</style>
<header>
<h1>What was kept of the prompt</h1>
<p>{told}</p>
<p>{model}. Point at a passage to see how many heads keep it.</p>
<p class="key">{key}</p>
</header>
<main>{text}</main>
</html>
"""


def write_page(path: str, kept: Kept, model: str) -> None:
    """Raises ArgumentError without a path, and for one that cannot be written or is another file's."""
    if not path:
        raise ArgumentError("/kept --html takes the path of a file")
    if os.path.exists(path) and not (os.path.isfile(path) and _is_page(path)):  # a pipe would be waited for
        raise ArgumentError(f"{path} is another file: give another name")
    names = ["no head", "a few heads", *(f"over {limit:.0%} of them" for limit in LEVELS[1:])]
    spans = []
    for heads, run in groupby(kept.pieces, key=lambda piece: piece[1]):
        text = _escaped("".join(piece for piece, _ in run))
        spans.append(f'<span class="l{kept.level(heads)}" title="{heads} of {kept.n_heads}">{text}</span>')
    page = _PAGE.format(
        told=_escaped(told(kept)),
        model=_escaped(model),
        key="".join(f'<span class="l{level}">{name}</span>' for level, name in enumerate(names)),
        text="".join(spans),
    )
    try:
        with replacing(target(path, force=True), private=True) as file:
            file.write_text(_BEGIN + page, encoding="utf-8", errors="replace")
    except OSError as error:
        raise ArgumentError(str(error)) from None


def _escaped(text: str) -> str:
    """HTML knows no control characters, however they are written."""
    return html.escape(strip_control(text))


def _is_page(path: str) -> bool:
    """One that was made here may be made anew."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read(len(_BEGIN)) == _BEGIN
    except (OSError, ValueError):
        return False
