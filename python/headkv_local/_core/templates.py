"""Chat messages as the model's template takes them: nothing of what was asked is lost on the way.

A template is known by what it writes only. So it is tried: with the messages, and with marks in place of
their texts, which must all come back.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from llama_cpp import llama_chat_format

from ..errors import ArgumentError, HeadKVError, TemplateError
from ..messages import SYSTEM
from .cancel import raise_if_cancelled

Message = dict[str, Any]
Render = Callable[[list[Message]], str]

PLAIN_TEXT: Final = "plain-text"
_PRINTED_LIST: Final = re.compile(r"['\"]type['\"]\s*:\s*['\"]text['\"]", re.IGNORECASE)
_ANSWER: Final = {"role": "assistant", "content": "Yes."}
_QUESTION: Final = {"role": "user", "content": "Why?"}
_SWITCH: Final = re.compile(r"/(?:no_?)?think")  # templates act on it, and may take it out
_FEW: Final = 256  # characters that the start of an answer may take
_MARK: Final = re.compile(r"mark[0-9]+of[0-9]+here")


class _Formatter(llama_chat_format.Jinja2ChatFormatter):  # type: ignore[misc]
    """llama_cpp's, but a template that cannot be parsed fails where a chat needs it, not while loading."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._broken: Exception | None = None
        try:
            super().__init__(*args, **kwargs)
        except Exception as error:  # of jinja2, also RecursionError
            self._broken = error

    def __call__(self, **kwargs: Any) -> Any:
        if self._broken is not None:
            raise self._broken
        return super().__call__(**kwargs)


vars(llama_chat_format)["Jinja2ChatFormatter"] = _Formatter


def own(llm: Any) -> Callable[..., Any]:
    """The chat template that the model's file has. ArgumentError for a model without one."""
    template = llm.metadata.get("tokenizer.chat_template")
    if not template:
        raise ArgumentError("the model has no chat template")
    eos, bos = (
        "" if token == -1 else llm.detokenize([token], special=True).decode("utf-8", errors="replace")
        for token in (llm.token_eos(), llm.token_bos())
    )
    return _Formatter(template=template, eos_token=eos, bos_token=bos)


def plain_text(*, messages: list[Message], **_: Any) -> Any:
    """A chat for models without a template, in no model's markup."""
    lines = []
    for message in messages:
        text = message.get("content") or ""
        if not isinstance(text, str):
            raise TypeError("plain text takes text")
        lines.append(text if message["role"] == "system" else f"{message['role'].capitalize()}: {text}")
    return llama_chat_format.ChatFormatterResponse(prompt="\n".join([*lines, "Assistant:"]), stop=["\nUser:"])


def fitted(
    given: Sequence[Mapping[str, Any]], render: Render, template: str
) -> tuple[list[Message], str, str]:
    """Messages in the first form that the template writes whole; the rendered prompt; what was changed.

    render: raises what the template raises. template: its name in errors. ArgumentError for messages that
    are none of texts, and for those that the template refuses, TemplateError where it fails or leaves
    something out.
    """
    messages = [_with_text(message) for message in given]
    _require_text(messages)
    failures: list[HeadKVError] = []
    for change, form in _forms(messages):
        raise_if_cancelled()
        try:
            prompt = render(form)
        except HeadKVError:
            raise
        except Exception as error:
            failures.append(_explained(error, template))
            continue
        lost = _lost(form, prompt, render)
        if lost is None:
            return form, prompt, change
        failures.append(
            TemplateError(
                f"{template} leaves out {lost}: the answer would be to something else than was asked"
            )
        )
    raise failures[0]


def ending(messages: list[Message], prompt: str, render: Render) -> tuple[str, str, bool]:
    """How the prompt ends and how it goes on in the next turn; whether the next turn rewrites the messages.

    The two texts begin alike, a while before the prompt and the next one differ.
    """
    try:
        later = render([*messages, _ANSWER, _QUESTION])
    except Exception:  # it takes no answer here
        return "", "", False
    n_same = _common(prompt, later)
    start = max(0, n_same - _FEW)
    text = next(iter(_texts(messages[-1])), "").strip() if messages else ""
    end_of_text = prompt.rfind(text) + len(text) if text and text in prompt else len(prompt) - _FEW
    if n_same < end_of_text:
        return "", "", True
    return prompt[start:], later[start:], False


def _common(a: str, b: str) -> int:
    """Characters that both begin with."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a[:middle] == b[:middle] else (low, middle - 1)
    return low


def _explained(error: Exception, template: str) -> HeadKVError:
    if type(error) is ValueError:  # raise_exception() of the template
        return ArgumentError(f"{template} refuses these messages: {error}")
    return TemplateError(f"{template} is broken: {type(error).__name__}: {error}")


def _texts(message: Message) -> list[str]:
    content = message.get("content")
    if isinstance(content, str):
        return [content]
    if isinstance(content, list):
        return [part["text"] for part in content if isinstance(part.get("text"), str)]
    return []


def _with_text(message: Mapping[str, Any]) -> Message:
    """With a list as a list, and an empty text for none: templates write "None", or fail."""
    content = message.get("content")
    return {**message, "content": list(content) if isinstance(content, tuple) else content or ""}


def _require_text(messages: list[Message]) -> None:
    for i, message in enumerate(messages, start=1):
        for part in message["content"] if isinstance(message["content"], list) else ():
            if part["type"] != "text":
                raise ArgumentError(
                    f"message {i} has a part of type {part['type']!r}: this model reads parts of type 'text' "
                    "only"
                )
        if any("\ud800" <= c <= "\udfff" for text in _texts(message) for c in set(text)):
            raise ArgumentError(f"message {i} has half a character, which is no text in UTF-8")


def _forms(messages: list[Message]) -> Iterator[tuple[str, list[Message]]]:
    seen: list[list[Message]] = []
    as_system = [{**m, "role": "system"} if m.get("role") in SYSTEM else m for m in messages]
    for change, said in (
        ("", messages),
        ("", as_system),
        ("the system message is put before the first question", _merged(messages)),
    ):
        for form in (said, [as_text(m) for m in said], [_with_content(m, _as_parts) for m in said]):
            if form not in seen:
                seen.append(form)
                yield change, form


def as_text(message: Message) -> Message:
    """The message with its parts as one text."""
    return _with_content(message, _as_string)


def _with_content(message: Message, change: Callable[[Any], Any]) -> Message:
    return {**message, "content": change(message["content"])} if "content" in message else message


def _as_string(content: Any) -> Any:
    return "\n".join(part["text"] for part in content) if isinstance(content, list) else content


def _as_parts(content: Any) -> Any:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _merged(messages: list[Message]) -> list[Message]:
    """Texts of system messages at the beginning of the first question."""
    as_strings = [as_text(message) for message in messages]
    system = [m["content"] for m in as_strings if m.get("role") in SYSTEM and m.get("content")]
    others = [m for m in as_strings if m.get("role") not in SYSTEM]
    first = next((i for i, m in enumerate(others) if m.get("role") == "user"), None)
    if not system or first is None:
        return messages
    question = {**others[first], "content": "\n\n".join([*system, others[first].get("content") or ""])}
    return [*others[:first], question, *others[first + 1 :]]


def _lost(messages: list[Message], prompt: str, render: Render) -> str | None:
    """What of the messages is not in the prompt, in words."""
    marks: dict[str, str] = {}
    probe = []
    for i, message in enumerate(messages, start=1):
        name = f"message {i} ({message.get('role')})"

        def marked(content: Any, name: str = name) -> Any:
            if isinstance(content, list):
                return [{**part, "text": marked(part["text"])} for part in content]
            if not isinstance(content, str) or not content.strip():
                return content
            mark = f"mark{len(marks)}of{name.split()[1]}here"
            marks[mark] = f"{name}: {_shortened(content)}"
            return mark

        # what an assistant says to a call of a tool is thinking to some templates: it may be left out later
        probe.append(message if message.get("tool_calls") else _with_content(message, marked))
    try:
        written = render(probe)
    except Exception:  # a template that reads its messages, not only writes them
        written = None
    if written is not None:
        in_parts = any(isinstance(message.get("content"), list) for message in messages)
        if in_parts and _PRINTED_LIST.search(written):
            return "the difference between text and its parts"
        found = set(_MARK.findall(written.casefold()))
        for mark, what in marks.items():
            if mark not in found:
                return what
    bare, places = _bare(prompt), dict[str, int]()
    for i, message in enumerate(messages, start=1):
        raise_if_cancelled()
        role = str(message.get("role"))
        if role in ("user", *SYSTEM):
            for text in _texts(message):
                forms = {_bare(form) for form in _as_written(text)}
                place = _first(forms, bare, places.get(role, 0))
                if place < 0:  # the template writes those of this role in another order
                    place = _first(forms, bare, 0)
                if place < 0:
                    return f"a part of message {i} ({role}): {_shortened(text)}"
                places[role] = place
    return None


def _as_written(text: str) -> Iterator[str]:
    """Also as a template writes it in JSON."""
    yield text
    yield from (json.dumps(text, ensure_ascii=ascii)[1:-1] for ascii in (True, False))


def _first(texts: set[str], within: str, start: int) -> int:
    """Where the first of the texts is, from `start` on; -1: none is there.

    It takes as long as that is away, although some may be nowhere.
    """
    n_seen = max(map(len, texts)) + _FEW
    while True:  # places before start + n_seen are seen
        end = start + n_seen
        found = [at for text in texts if (at := within.find(text, start, end + len(text))) >= 0]
        if found or end >= len(within):
            return min(found, default=-1)
        n_seen *= 2


def _bare(text: str) -> str:
    """Without what templates change: white space, capitals, and the switch for thinking."""
    return "".join(_SWITCH.sub("", text).split()).casefold()


def _shortened(text: str) -> str:
    text = " ".join(text.split())
    return repr(text if len(text) <= 40 else f"{text[:37]}...")
