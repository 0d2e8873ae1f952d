"""Shows one answer: progress while the prompt is read, text as it comes, the stats line at the end."""

from __future__ import annotations

import json
from collections.abc import Callable

from headkv_local.chat.console import Console, OutputError
from headkv_local.chat.progress import PrefillBar
from headkv_local.chat.render import stats_parts
from headkv_local.chat.session import Session, Show
from headkv_local.chat.turn import Answer, Event, Notice, Prefill, Text
from headkv_local.chat.view import View
from headkv_local.chat.wording import no_room
from headkv_local.errors import ContextFullError


def show_answer(
    session: Session, ask: Callable[[Show], Answer], console: Console, *, in_chat: bool
) -> Answer:
    """Ask, show, and return the answer. Raises HeadKVError, OutputError, BrokenPipeError.

    ask: of the session. in_chat: another question can follow.
    """
    options = session.options
    stream = options.stream and not options.json
    view = View(console, options, lambda: session.llm.meter.opening, in_chat=in_chat)

    with PrefillBar(console) as bar:
        lost: list[OutputError | BrokenPipeError] = []
        begun = False  # a line of the answer may be open

        def show(event: Event | None) -> None:
            if not lost:
                try:
                    draw(event)
                except (OutputError, BrokenPipeError) as error:
                    lost.append(error)
                    session.llm.cancel()  # what was answered stays in the chat

        def draw(event: Event | None) -> None:
            nonlocal begun
            if console.warned and not begun:
                bar.close()
                console.warnings()
            if isinstance(event, Prefill):
                bar.update(event.done, event.total)
            elif isinstance(event, Text):
                bar.close()
                if stream:
                    begun = True
                    view.feed(event.text)
            elif isinstance(event, Notice):
                bar.close()
                console.note(event.text)
            else:
                bar.tick()
                view.tick()

        try:
            answer = ask(show)
            if lost:
                raise lost[0]
        except BaseException as error:
            view.end()
            console.warnings()
            if isinstance(error, ContextFullError):
                raise ContextFullError(no_room(session, in_chat)) from error
            raise

    if options.json:
        console.answer(
            console.printable(json.dumps(answer.as_json(), ensure_ascii=not console.unicode)) + "\n"
        )
    elif not stream:
        view.feed(answer.text)
    view.end()
    console.warnings()
    console.figures(stats_parts(answer))
    if answer.reread_reason is not None:
        console.note(f"The prompt was read as a whole: {answer.reread_reason}.")
    if note := _note(answer, session, in_chat):
        console.note(note)
    return answer


def _note(answer: Answer, session: Session, in_chat: bool) -> str:
    """What the reader should know about how the answer ended, "" if it is simply complete."""
    if answer.finish_reason == "interrupt":
        if not in_chat:
            return "Stopped." if answer.completion_tokens else "Stopped while the prompt was read."
        if answer.completion_tokens:
            return "Stopped; the answer so far is part of the chat."
        if session.documents:
            return "Stopped while the prompt was read; its documents go with the next question."
        return "Stopped while the prompt was read."
    if answer.finish_reason == "repetition":
        kept = " The chat keeps the repeated text once." if in_chat else ""
        return f"Stopped: the answer had begun to repeat itself without end.{kept}"
    if answer.context_full:
        anew = "/clear starts anew." if in_chat else "A larger --ctx makes room."
        return f"The answer is cut off: the context of {answer.stats.n_ctx} tokens is full. {anew}"
    if answer.finish_reason == "length":
        return f"The answer is cut off after {session.options.max_tokens} tokens (--max-tokens)."
    return ""
