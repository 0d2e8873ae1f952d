"""The interactive chat."""

from __future__ import annotations

import os

from prompt_toolkit import PromptSession
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.output import create_output

from headkv_local.chat.args import Options, budget_text
from headkv_local.chat.commands import Commands, Leave
from headkv_local.chat.console import Console, OutputError
from headkv_local.chat.display import answer_question
from headkv_local.chat.session import Session
from headkv_local.errors import ContextFullError, HeadKVError

_QUOTES = '"""'


def open_history(path: str | None) -> History:
    """History in memory, or in the file `path`. Raises HeadKVError if that cannot be written."""
    if path is None:
        return InMemoryHistory()
    try:
        with open(os.path.expanduser(path), "ab"):
            pass
    except (OSError, ValueError) as error:
        cause = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise HeadKVError(f"cannot write the history file '{path}': {cause}") from error
    return _FileHistory(os.path.expanduser(path))


class _FileHistory(FileHistory):
    """A line that cannot be written is not kept: prompt_toolkit would show a traceback for it."""

    failed: OSError | None = None

    def store_string(self, string: str) -> None:
        try:
            super().store_string(string)
        except OSError as error:
            self.failed = error


class Repl:
    """Reads lines until the user leaves; an error ends a turn, never the chat."""

    def __init__(self, session: Session, console: Console, options: Options) -> None:
        self._session = session
        self._console = console
        self._options = options
        self._commands = Commands(session, console)
        # The prompt is no part of the answer, so it is drawn on standard error.
        output = create_output(stdout=console.err if console.err_tty else None)
        self._input: PromptSession[str] = PromptSession(history=open_history(options.history), output=output)

    def run(self) -> int:
        """Returns the exit code: 0, or 130 after Ctrl-C twice at an empty prompt."""
        self._greet()
        interrupted = False
        while True:
            try:
                text, quoted = self._read()
                interrupted = False
                self._tell_of_history()
                self._turn(text, quoted)
            except (EOFError, Leave):
                return 0
            except KeyboardInterrupt:
                if self._input.default_buffer.text:
                    interrupted = False
                elif interrupted:
                    return 130
                else:
                    interrupted = True
                    self._console.note("Ctrl-C again or Ctrl-D leaves.")

    def _turn(self, text: str, quoted: bool) -> None:
        """Whatever goes wrong in it ends it, but for outputs that cannot be written any more."""
        try:
            text.encode()
            if text.startswith("/") and not quoted:
                self._commands.run(text)
            elif text.strip():
                self._ask(text)
        except UnicodeEncodeError:
            self._console.error("what was typed is not UTF-8")
        except (Leave, OutputError, BrokenPipeError):
            raise
        except (HeadKVError, ValueError) as error:
            self._console.error(str(error))
        except Exception as error:  # of a model's own chat template, for example
            self._console.error(f"{type(error).__name__}: {error}")

    def _tell_of_history(self) -> None:
        """Once for each failure."""
        history = self._input.history
        if isinstance(history, _FileHistory) and history.failed is not None:
            self._console.error(f"the history file could not be written: {history.failed.strerror}")
            history.failed = None

    def _greet(self) -> None:
        llm = self._session.llm
        name = llm.metadata.get("general.name") or os.path.basename(llm.model_path)
        budget = budget_text(self._session.budget)
        self._console.note(
            f"{name}, context {llm.n_ctx()} tokens, budget {budget}. /help lists the commands."
        )
        for document in self._session.documents:
            self._console.note(f"{document.name} is read with your first question.")

    def _read(self) -> tuple[str, bool]:
        """The next text, and whether it stood in triple quotes. Raises EOFError and KeyboardInterrupt."""
        line = self._input.prompt("> ").strip()
        if not line.startswith(_QUOTES):
            return line, False
        text = line.removeprefix(_QUOTES)
        while not text.rstrip().endswith(_QUOTES):
            text += "\n" + self._input.prompt("... ")
        return text.rstrip().removesuffix(_QUOTES).strip("\n"), True

    def _ask(self, text: str) -> None:
        with_documents = "; its documents went with it" if self._session.documents else ""
        first = ", and a larger --ctx at the start makes room" if not self._session.turns else ""
        try:
            answer_question(self._session, text, self._console, self._options)
        except ContextFullError as error:
            self._console.error(
                f"{error}; this question was dropped, /clear starts a new chat{first}{with_documents}"
            )
