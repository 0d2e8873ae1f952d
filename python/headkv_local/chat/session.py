"""The conversation: turns, attached documents, the model, and what a question does to them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final

from headkv_local import CacheStats
from headkv_local.chat.answering import answer
from headkv_local.chat.archive import Archive, load_with_archive, move_archive, retain
from headkv_local.chat.documents import Document, DocumentError, compose
from headkv_local.chat.model import ChatLlama, load_model
from headkv_local.chat.options import FLAG, Options
from headkv_local.chat.repetition import LoopDetector
from headkv_local.chat.saved import SavedChat
from headkv_local.chat.thinking import opened_by
from headkv_local.chat.turn import Answer, Event, Notice, Turn
from headkv_local.chat.wording import no_room_for
from headkv_local.chat.worker import Job
from headkv_local.defaults import may_be_of_archive
from headkv_local.errors import ArchiveError, ContextFullError, StateError
from headkv_local.models import chosen_model

Show = Callable[[Event | None], None]

_ASKING_TOKENS: Final = 64  # for the template, a short question and the beginning of an answer


def open_session(options: Options, chat: SavedChat | None = None) -> Session:
    """A chat with the model that `options` name, or the default one. Raises HeadKVError.

    chat: whose context it has, but for the number of tokens that the command line asks for.
    """
    context = dict(chat.context) if chat is not None else {}
    if options.sources.get("ctx") == FLAG:
        context.pop("n_ctx", None)
    path = chosen_model(options.model)
    llm, archive = load_with_archive(lambda where: load_model(path, options, where, context), options)
    return Session(llm, options, archive)


class Session:
    """One chat. Every failed turn leaves the conversation as it was before it.

    llm: closed with the session. options: what holds now. archive: that prompts of `llm` are read with.
    """

    def __init__(self, llm: ChatLlama, options: Options, archive: Archive) -> None:
        self.llm = llm
        self.options = options
        self.archive = archive
        self.documents: list[Document] = []
        self._retained = options  # what `llm` keeps of prompts; other options wait for clear()
        self._turns: list[Turn] = []

    def close(self) -> None:
        self.llm.close()

    @property
    def turns(self) -> int:
        return len(self._turns)

    @property
    def answered(self) -> tuple[Turn, ...]:
        return tuple(self._turns)

    @property
    def used_tokens(self) -> int:
        """Positions of the context that the chat takes."""
        return self._turns[-1].used if self._turns else 0

    @property
    def system_tokens(self) -> int:
        """That the system message takes; about, if they are more than the context."""
        tokens, _ = self.llm.count_tokens(self.options.system or "", self.llm.n_ctx())
        return tokens

    @property
    def _room(self) -> int:
        """Positions that the chat, what is attached and a short question leave; below 0 if they do not."""
        n_ctx = int(self.llm.n_ctx())
        attached = sum(self.llm.count_tokens(each.text, n_ctx)[0] for each in self.documents)
        used = self.used_tokens or self.system_tokens
        return n_ctx - min(_ASKING_TOKENS, n_ctx // 4) - used - attached

    @property
    def in_force(self) -> Options:
        """`options`, without those that wait for clear()."""
        return self.options.keeping_as(self._retained)

    def waits(self, name: str) -> bool:
        """Whether this field of `options` holds after clear() only."""
        return bool(getattr(self.options, name) != getattr(self.in_force, name))

    def stats(self) -> CacheStats:
        return self.llm.cache_stats()

    def attach(self, documents: Iterable[Document]) -> int:
        """Put `documents` before the next question; their tokens.

        Raises DocumentError for the first one that there is no room for, and takes no other one from
        `documents`; none of them is attached then.
        """
        room, total, taken = max(self._room, 0), 0, list[Document]()
        for document in documents:
            left = room - total
            tokens, exact = self.llm.count_tokens(document.text, left)
            if tokens > left:
                name = f"'{document.shown}'"
                raise DocumentError(no_room_for(name, tokens, exact, left, self, len(taken)))
            total += tokens
            taken.append(document)
        self.documents += taken
        return total

    def instruct(self, text: str | None, source: str) -> None:
        """Have this system message, None for none. Raises ContextFullError for one that leaves no room."""
        before = self.system_tokens
        room = max(self._room + before, 0)
        tokens, exact = self.llm.count_tokens(text or "", room)
        if tokens > room:
            raise ContextFullError(no_room_for("the system message", tokens, exact, room, self))
        self._turns = [replace(turn, used=turn.used + tokens - before) for turn in self._turns]
        self.options = self.options.having({"system": text}, source)

    def clear(self) -> None:
        """Forget turns and documents; the next prompt starts with the whole context."""
        self.documents.clear()
        self._turns.clear()
        self.llm.reset()
        if self.in_force != self.options:
            self._retain(self.options)

    def retain(self, options: Options) -> None:
        """Keep of the prompts to come what `options` say, after clear() where what is kept is chosen already.

        Raises ArgumentError and ArchiveError, and nothing is changed then.
        """
        with suppress(StateError):
            self._retain(options)
        self.options = options

    def _retain(self, options: Options) -> None:
        self.archive = retain(self.llm, self.archive, options)
        self._retained = options

    def go_on_with(self, llm: ChatLlama, archive: Archive, options: Options) -> None:
        """With another model: the chat is text for it, and read anew with the next question.

        archive: of `llm`; from there it moves to the file that the model before it has, if one is named.
        Raises ContextFullError for a chat that its context has no room for; nothing is changed then, and the
        caller has to close `llm`.
        """
        used, turns = llm.count_tokens(self.options.system or "", llm.n_ctx())[0], []
        for turn in self._turns:
            texts = [*(document.text for document in turn.documents), turn.question, turn.answer]
            used += sum(llm.count_tokens(text, llm.n_ctx())[0] for text in texts)
            turns.append(replace(turn, used=used))  # about: the template's own are not known yet
        if used > llm.n_ctx():
            raise ContextFullError(
                f"the chat has about {used} tokens for {llm.file_name}, and its context has room for "
                f"{llm.n_ctx()}: the chat goes on with {self.llm.file_name}"
            )
        is_named = self.archive.is_named
        self.llm.close()  # with its archive
        self.llm, self.options, self._turns = llm, options, turns
        self._retained = options
        self.archive = move_archive(llm, options) if is_named else archive

    def ask(self, question: str, show: Show) -> Answer:
        """Answer `question`, preceded by the attached documents; runs `show` on every event.

        The turn is kept, also where it was stopped halfway: the next one goes on from the cache that it
        left. Stopped before its first token it leaves nothing but the documents, still attached.
        An answer that was stopped because it repeats itself is kept with the repeated text once.
        Raises HeadKVError; the turn is gone then, and the documents are still attached.
        """
        documents = tuple(self.documents)
        content = compose(documents, question)
        answer, turn = self._ask(self._turns, documents, question, content, show)
        if turn is not None:
            self._turns.append(turn)
            self.documents.clear()
        return answer

    def again(self, show: Show) -> Answer:
        """Answer the last question anew; as ask(), but the former answer stays until another one has begun.

        Raises StateError where there is none, and what ask() raises.
        """
        if not self._turns:
            raise StateError("there is no answer yet")
        last = self._turns[-1]
        answer, turn = self._ask(self._turns[:-1], last.documents, last.question, last.content, show)
        if turn is not None:
            self._turns[-1] = turn
        return answer

    def undo(self) -> Turn:
        """Take back the last question and its answer; its documents are attached again.

        Returns it. Raises StateError where there is none.
        """
        if not self._turns:
            raise StateError("there is no question to take back")
        turn = self._turns.pop()
        self.documents[:0] = turn.documents
        return turn

    def resume(self, path: str, chat: SavedChat) -> str:
        """Go on with `chat`, whose session is in the file `path`, in place of what is here.

        Returns what the user should know, "" for nothing. Raises SessionError, and the chat is as it was.
        """
        notice = self._load(path)
        if self.in_force != self.options:  # what was set holds from here on
            self.llm.reset()
            with suppress(ArchiveError):  # it waits on
                self._retain(self.options)
            notice = self._load(path) or notice
        if "seed" in self.options.sources:
            self.llm.seed_anew(self.options.seed)
        self.options = self.options.having({"system": chat.settings["system"]}, path)
        self._turns, self.documents = list(chat.turns), list(chat.documents)
        return notice

    def _load(self, path: str) -> str:
        """What the user should know of it, "" for nothing."""
        try:
            self.llm.load_session(path)
        except (ArchiveError, MemoryError) as error:
            if not self._without_archive(error):
                raise
            self.llm.load_session(path)
            return self.archive.told
        return ""

    def _ask(
        self,
        before: Sequence[Turn],
        documents: tuple[Document, ...],
        question: str,
        content: str | list[dict[str, Any]],
        show: Show,
    ) -> tuple[Answer, Turn | None]:
        """The answer, and the turn that it makes; None where it was stopped before its first token."""
        n_ctx = self.llm.n_ctx()
        if self.llm.count_tokens(question, n_ctx)[0] > n_ctx:  # before all of it is tokenized
            raise ContextFullError(f"the question does not fit into the context of {n_ctx} tokens")
        messages = [*self.messages(before), {"role": "user", "content": content}]

        def run() -> Answer:
            self.llm.loops = LoopDetector(question, self._text_of)
            max_tokens = self.options.max_tokens
            return Job[Answer](lambda job: answer(self.llm, messages, max_tokens, job)).run(show)

        try:
            found = run()
        except (ArchiveError, MemoryError) as error:
            if not self._without_archive(error):
                raise
            show(Notice(self.archive.told))
            found = run()
        if self.archive.where is not None and self.llm.retention is not None and found.archive is None:
            self.archive.give_up("the answer could not be added to it")
            show(Notice(self.archive.told))
        if found.finish_reason == "interrupt" and found.completion_tokens == 0:
            return found, None
        loop = self.llm.meter.loop
        kept = loop.cut(found.text) if loop is not None else found.text
        used, opened = int(self.llm.n_tokens), opened_by(self.llm.meter.opening)
        return found, Turn(
            documents=documents, question=question, content=content, answer=kept, used=used, opened=opened
        )

    def messages(self, turns: Sequence[Turn]) -> list[dict[str, Any]]:
        """What the model reads of them, with the system message."""
        messages: list[dict[str, Any]] = []
        if self.options.system:
            messages.append({"role": "system", "content": self.options.system})
        for turn in turns:
            messages += [
                {"role": "user", "content": turn.content},
                {"role": "assistant", "content": turn.answer},
            ]
        return messages

    def _without_archive(self, error: Exception) -> bool:
        """Give up the archive, if it may be what has failed. Whether it was."""
        if not may_be_of_archive(error, self.llm.retention):
            return False
        why = str(error) if isinstance(error, ArchiveError) else "there is not enough memory for it"
        self.archive.give_up(why)
        self.llm.retention = self._retained.retention()
        return True

    def _text_of(self, tokens: Sequence[int]) -> str:
        return self.llm.detokenize(list(tokens)).decode("utf-8", errors="ignore")
