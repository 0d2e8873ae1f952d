"""A chat as the messages of a session, and back.

The messages are such as create_chat_completion() takes, so Python goes on from a session of the chat, and the
chat from one of Python. Beside them they hold what a chat needs: "used" with each answer, and with the last
one, under "chat", documents that wait, settings and the time.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from headkv_local import Retention, SessionError
from headkv_local.chat.args import build_parser
from headkv_local.chat.documents import Document, decompose, require_text
from headkv_local.chat.options import AUTO, MEMORY, RETENTION, Options, budget_text
from headkv_local.chat.turn import Turn
from headkv_local.messages import require_messages
from headkv_local.sessions import Header, read_header
from headkv_local.settings import ADVANCED, DEFAULT_DRAFT, DEFAULT_FOLD, DEFAULT_OBSERVE, DEFAULTS, OFF

_SAMPLING: Final = ("temp", "top_k", "top_p", "min_p", "repeat_penalty")
_SETTINGS: Final = (*RETENTION, "archive", "ctx", "max_tokens", *_SAMPLING)
_OF_PYTHON: Final = ("reselect", "order", "panel")  # which no option says
_NO_PATHS: Final = frozenset((AUTO, MEMORY, OFF))


@dataclass(frozen=True, kw_only=True)
class SavedChat:
    """What a session says before its model is loaded.

    documents: that go with the next question. settings: fields of Options; ctx where somebody had asked for
    one. context: arguments of Llama. archived: whether its archive is in the file. when: seconds since 1970,
    None where that is not known.
    """

    turns: tuple[Turn, ...]
    documents: tuple[Document, ...]
    settings: Mapping[str, Any]
    context: Mapping[str, Any]
    model_name: str
    archived: bool
    when: float | None


def state_of(options: Options, documents: Sequence[Document]) -> dict[str, Any]:
    """What else a chat is made of."""
    given = {name: getattr(options, name) for name in _SETTINGS if name in options.sources}
    settings = {name: str(value) for name, value in given.items() if isinstance(value, str | int | float)}
    if "archive" in settings and settings["archive"] not in _NO_PATHS:
        settings["archive"] = os.path.abspath(settings["archive"])
    settings["budget"] = budget_text(options.budget)
    return {
        "settings": settings,
        "documents": [{"name": document.name, "text": document.text} for document in documents],
    }


def with_state(
    messages: Sequence[Mapping[str, Any]], turns: Sequence[Turn], state: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """For a session. messages: of `turns`, at least one, and what is before them."""
    whole = [dict(message) for message in messages]
    for turn, answer in zip(reversed(turns), whole[::-2], strict=False):  # from the last one
        answer["used"] = turn.used
    whole[-1]["chat"] = {**state, "when": time.time()}
    return whole


def read_chat(path: str) -> SavedChat:
    """Raises SessionError for a file that is no session, or one that holds no chat."""
    header = read_header(path)
    try:
        return _chat_of(header)
    except (TypeError, ValueError, KeyError, AttributeError, argparse.ArgumentTypeError) as error:
        raise SessionError(f"the session {path} holds no chat that can go on here: {error}") from error


def _chat_of(header: Header) -> SavedChat:
    messages = list(require_messages(header.messages))
    settings: dict[str, Any] = {
        "model": header.model_path,
        "system": require_text(messages.pop(0)["content"])
        if messages and messages[0]["role"] == "system"
        else None,
        **_retained(header.retention),
    }
    if not messages:
        raise ValueError("it comes without messages")
    if len(messages) % 2 or any(m["role"] != ("user", "assistant")[i % 2] for i, m in enumerate(messages)):
        raise ValueError("its messages are not questions with an answer each")
    turns = tuple(_turn(*pair, header.n_tokens) for pair in zip(messages[::2], messages[1::2], strict=True))
    state = messages[-1].get("chat", {})
    when = state.get("when")
    return SavedChat(
        turns=turns,
        documents=tuple(
            Document(require_text(each["name"]), require_text(each["text"]))
            for each in state.get("documents", ())
        ),
        settings=settings | _parsed(state.get("settings", {})),
        context=header.context,
        model_name=header.model_name,
        archived=header.n_archived > 0,
        when=float(when) if type(when) in (int, float) and 0 <= when < 2**40 else None,
    )


def _turn(question: Mapping[str, Any], answer: Mapping[str, Any], n_tokens: int) -> Turn:
    documents, text = decompose(question["content"])
    used = answer.get("used")
    return Turn(
        documents=tuple(documents),
        question=text,
        content=question["content"],
        answer=require_text(answer["content"]),
        used=used if type(used) is int and 0 < used <= n_tokens else n_tokens,
    )


def _retained(retention: Retention | None) -> dict[str, Any]:
    if retention is None:
        return {"budget": None}
    if retention.caps is not None:
        raise ValueError("it keeps given numbers of entries (caps), and a chat has a budget")
    usual = {
        "observe": DEFAULT_OBSERVE,
        "draft": DEFAULT_DRAFT,
        "fold": DEFAULT_FOLD,
    }  # as if nobody gave them
    left_open = DEFAULTS.keys() - retention._given | {n for n in usual if getattr(retention, n) == usual[n]}
    names = ("budget", *(name for name in ADVANCED if name not in left_open), *_OF_PYTHON)
    found = {name: getattr(retention, name) for name in names}
    if retention.fold is None:
        found["fold"] = OFF
    if retention.scores is not None:
        found["scores"] = retention.scores
    return found


def _parsed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Checked as on the command line."""
    actions = {action.dest: action for action in build_parser()._actions}
    parsed = {}
    for name, value in settings.items():
        if name in _SETTINGS:
            convert: Any = actions[name].type or str
            parsed[name] = convert(require_text(value))
    return parsed
