"""The interactive chat."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from headkv_local.chat import echo
from headkv_local.chat.commands import Commands, Leave
from headkv_local.chat.console import Console, OutputError
from headkv_local.chat.display import show_answer
from headkv_local.chat.info import attached
from headkv_local.chat.keeping import Keeper, State
from headkv_local.chat.options import budget_text
from headkv_local.chat.prompt import Dropped, Prompt
from headkv_local.chat.session import Session, Show
from headkv_local.chat.turn import Answer
from headkv_local.chat.wording import sentence
from headkv_local.chat.worker import interrupts
from headkv_local.errors import HeadKVError

_LEAVING = frozenset(("exit", "quit"))


class Repl:
    """Reads lines until the user leaves; an error ends a turn, never the chat."""

    def __init__(self, session: Session, console: Console, keeper: Keeper) -> None:
        self._session = session
        self._console = console
        self._keeper = keeper
        self._failed: State | None = None  # the chat that the last try to leave could not save
        self._commands = Commands(session, console, self._answer, keeper)
        self._prompt = Prompt(console, session.options.history)

    def run(self) -> int:
        """Returns the exit code: 0, 130 after Ctrl-C twice at an empty prompt, 1 if the chat is not saved."""
        # Between prompts, commands and answers there is nothing to stop, and nothing may be torn apart.
        with interrupts(lambda: None):
            self._greet()
            try:
                return self._loop()
            except (OutputError, BrokenPipeError):
                self._keeper.leave()
                raise

    def _loop(self) -> int:
        interrupted = False
        while True:
            try:
                text, quoted = self._prompt.read()
                interrupted = False
                if failed := self._prompt.history_failure():
                    self._console.error(f"the history file could not be written: {failed.strerror}")
                self._turn(text, quoted)
            except (EOFError, Leave):
                if self._left():
                    return 0 if self._failed is None else 1
            except Dropped as dropped:
                if dropped.remembered:
                    self._console.note("Not sent. The up key brings the text back.")
                if not dropped.text and interrupted and self._left():
                    return 130 if self._failed is None else 1
                interrupted = not dropped.text
                if interrupted:
                    self._console.note("Ctrl-C again or Ctrl-D leaves.")

    def _left(self) -> bool:
        """Whether the chat may end: it is saved, or the user gives it up."""
        before, self._failed = self._failed, None
        try:
            self._keeper.leave()
        except (HeadKVError, MemoryError) as error:
            self._failed = self._keeper.state()
            self._console.error(sentence(error, self._session.options))
            if self._failed != before:
                self._console.note("/save PATH saves the chat elsewhere; leaving once more gives it up.")
                return False
        return True

    def _turn(self, text: str, quoted: bool) -> None:
        """Whatever goes wrong in it ends it, but for outputs that cannot be written any more."""
        try:
            if text.startswith("/") and not quoted:
                with interrupts(None):  # a document may be a pipe that nobody writes to
                    self._commands.run(text)
            elif text.lower() in _LEAVING and not quoted:
                raise Leave
            elif text.strip():
                text.encode()  # a command may have the name of a file that is no UTF-8
                self._answer(partial(self._session.ask, text))
        except KeyboardInterrupt:
            self._console.note("Stopped.")
        except UnicodeEncodeError:
            self._console.error("what was typed is not UTF-8")
        except (Leave, OutputError, BrokenPipeError):
            raise
        except (HeadKVError, MemoryError) as error:
            self._console.error(sentence(error, self._session.options))
        except ValueError as error:
            self._console.error(str(error))
        except Exception as error:  # of a model's own chat template, for example
            self._console.error(f"{type(error).__name__}: {error}")

    def _answer(self, ask: Callable[[Show], Answer]) -> None:
        # an answer that has come is put into the chat, whatever happens
        with interrupts(lambda: None), echo.hidden():
            show_answer(self._session, ask, self._console, in_chat=True)

    def _greet(self) -> None:
        llm = self._session.llm
        budget = budget_text(self._session.options.budget)
        self._console.note(
            f"{llm.file_name}, context {llm.n_ctx()} tokens, budget {budget}. /help lists the commands."
        )
        for note in attached(self._session):
            self._console.note(note)
