"""/set: settings that can change while a chat runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from headkv_local.chat.args import build_parser
from headkv_local.chat.config import parse_value, settings_of
from headkv_local.chat.options import RETENTION, budget_text
from headkv_local.chat.sampling import choose_sampling
from headkv_local.errors import ArgumentError
from headkv_local.settings import DEFAULTS

if TYPE_CHECKING:
    from headkv_local.chat.session import Session

SOURCE: Final = "/set"
_SAMPLING: Final = ("temp", "top-k", "top-p", "min-p", "repeat-penalty")
_OUTPUT: Final = ("json-schema", "grammar")
NAMES: Final = (*_SAMPLING, "seed", "max-tokens", *RETENTION, *_OUTPUT, "markdown", "thinking", "stream")
_DEFAULT: Final = "default"


def choices(name: str) -> tuple[str, ...]:
    """What can be typed after `/set NAME`, as far as that is known."""
    action = settings_of(build_parser()).get(name)
    found = () if action is None or action.choices is None else tuple(action.choices)
    return (*found, _DEFAULT)


def change(session: Session, name: str, text: str) -> str:
    """Set `name`; "default" leaves it open again. Returns what holds now.

    Raises ArgumentError, and ArchiveError where the budget changes; nothing is changed then.
    """
    _require(name)
    action = settings_of(build_parser())[name]
    if text == _DEFAULT:
        options = session.options.without(action.dest)
    else:
        options = session.options.having({action.dest: parse_value(action, text)}, SOURCE)
    when = ""
    if name in RETENTION:
        archive = session.archive
        session.retain(options)
        if not session.waits(action.dest):
            when = ", from the next prompt on"
        if session.archive != archive and session.archive.reason:
            when += f". {session.archive.told}"
    elif name in _SAMPLING:
        session.llm.use(choose_sampling(options, session.llm.metadata))
    elif name == "seed":
        session.llm.seed_anew(options.seed)
    elif name in _OUTPUT:
        session.llm.grammar = session.llm.compile(options)
    session.options = options
    return f"{told(session, name)}{when}"


def told(session: Session, name: str) -> str:
    """A setting, its value and where that comes from."""
    _require(name)
    field = name.replace("-", "_")
    value, source = getattr(session.options, field), session.options.sources.get(field)
    if value is None and name in _SAMPLING:
        value = getattr(session.llm.sampling, field)
    if value is None and field in DEFAULTS:
        if session.llm.scores_from is None:
            value = DEFAULTS[field]
        else:
            source = "as the head scores recommend"
    shown = budget_text(value) if name == "budget" else _text(value)
    waits = name in RETENTION and session.waits(field)
    when = ", after /clear (this chat's prompt is compacted already)" if waits else ""
    return f"{name}: {shown} ({source or _DEFAULT}){when}"


def listed(session: Session) -> Iterator[str]:
    return (told(session, name) for name in NAMES)


def _require(name: str) -> None:
    if name not in NAMES:
        raise ArgumentError(f"/set knows no '{name}', but {', '.join(NAMES)}")


def _text(value: Any) -> str:
    if value is None:
        return "open"
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)
