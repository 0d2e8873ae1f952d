"""Tab in the interactive chat: slash commands and what they take."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence

from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document


class ChatCompleter(Completer):
    """commands: each with its argument, of which an "--option", PATH, MODEL, NAME and VALUE are completed.

    names: of settings. choices: the values of one of them, as far as they are known.
    """

    def __init__(
        self,
        commands: Mapping[str, str],
        names: Sequence[str],
        choices: Callable[[str], Iterable[str]],
    ) -> None:
        self._commands, self._names, self._choices = commands, names, choices
        self._paths = PathCompleter(expanduser=True)
        self._models = PathCompleter(
            expanduser=True, file_filter=lambda path: os.path.isdir(path) or path.endswith(".gguf")
        )

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        line = document.text_before_cursor
        if not line.startswith("/") or "\n" in document.text:
            return
        name, blank, argument = line[1:].partition(" ")
        if not blank:
            for command, takes in self._commands.items():
                if command.startswith(name):
                    end = " " if takes else ""
                    yield Completion(command + end, start_position=-len(name), display=f"/{command}")
            return
        *options, takes = self._commands.get(name, "").replace("[", "").replace("]", "").split(" ")
        typed = argument.lstrip()
        if takes == "VALUE":
            setting, blank, value = typed.partition(" ")
            found = self._choices(setting) if blank else (f"{each} " for each in self._names)
            typed = value if blank else setting
            yield from _beginning(typed, found)
            return
        yield from _beginning(typed, (f"{option} " for option in options if typed))
        for option in options:
            typed = typed.removeprefix(option + " ").lstrip()
        completers = {"PATH": self._paths, "MODEL": self._models}
        if takes in completers:
            yield from completers[takes].get_completions(Document(typed, len(typed)), complete_event)


def _beginning(typed: str, words: Iterable[str]) -> Iterable[Completion]:
    return (Completion(word, start_position=-len(typed)) for word in words if word.startswith(typed))
