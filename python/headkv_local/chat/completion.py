"""Tab in the interactive chat: slash commands, and paths after those that take one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document


class ChatCompleter(Completer):
    """commands: each with its argument; an "--option" and a PATH are completed."""

    def __init__(self, commands: Mapping[str, str]) -> None:
        self._commands = commands
        self._paths = PathCompleter(expanduser=True)

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
        path = argument.lstrip()
        for option in options:
            if path and option.startswith(path):
                yield Completion(option + " ", start_position=-len(path))
            path = path.removeprefix(option + " ").lstrip()
        if takes == "PATH":
            yield from self._paths.get_completions(Document(path, len(path)), complete_event)
