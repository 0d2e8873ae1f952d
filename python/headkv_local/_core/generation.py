"""Generations in turns: whole ones after each other, and streams that go on where others came between."""

from __future__ import annotations

import re
from collections.abc import Generator, Sequence
from typing import Any

from llama_cpp.llama import LlamaState

from .. import infill
from ..errors import ArgumentError, ContextFullError, HeadKVError, StateError
from ..forms import require_bias, require_grammar
from ..stats import PromptRecord
from . import aside, states
from .chats import Chats
from .prefill import PromptReader
from .turns import Turn

_TOO_LONG = re.compile(r"Requested tokens \((\d+)\) exceed context window of (\d+)")


class Generating(PromptReader):
    """A PromptReader whose generations do not mix, in whatever threads they run."""

    _chats: Chats
    _completion: Turn | None = None  # whose generate() comes next

    def generate(self, tokens: Sequence[int], *args: Any, **kwargs: Any) -> Generator[int, Any, None]:
        """As llama_cpp.Llama.generate(); the prompt is compacted before the first token is sampled."""
        turn, own = self._completion, False
        if not self._lifetime.turns.inside:
            turn, own = Turn(), True
        elif turn is None:
            raise StateError("a generation cannot go on in a callback of the call that computes")
        else:
            self._completion = None
        assert turn is not None
        tokens = list(tokens)
        anew = kwargs.get("reset", args[6] if len(args) > 6 else True)
        if len(args) > 6:
            args = (*args[:6], False, *args[7:])
        else:
            kwargs["reset"] = False
        rest = tokens.copy()  # what is to be evaluated, once that is known
        steps = super().generate(rest, *args, **kwargs)
        sent, answer = None, list[int]()
        begun = False
        try:
            while True:
                with self._using(turn):
                    if not begun:
                        begun = True
                        self._read_for(turn, tokens, anew)
                        del rest[: self.n_tokens if anew else 0]
                    try:
                        token = steps.send(sent)
                    except StopIteration:
                        return
                    except ContextFullError:
                        if own or not answer:
                            raise
                        # llama_cpp asks for the rest of a character beyond its max_tokens
                        turn.cut_off = self.detokenize(answer, prev_tokens=tokens)
                        return
                if not own:
                    answer.append(token)
                sent = yield token
        except ValueError as error:
            if not isinstance(error, HeadKVError):
                self._require_room(1)  # llama_cpp writes drafts behind the end of its array of tokens
            raise
        finally:
            steps.close()
            if self._prompts.withdraw(turn):
                self._uncut()
            if own:
                self._lifetime.turns.leave(turn)

    def _create_completion(self, *args: Any, **kwargs: Any) -> Generator[Any, None, None]:
        with self._lifetime.still():
            self._lifetime.require_open()
            if (grammar := kwargs.get("grammar")) is not None:
                require_grammar(self._model.vocab, grammar)
            if (bias := kwargs.get("logit_bias")) is not None:
                require_bias(bias, self._n_vocab)
            if (suffix := kwargs.get("suffix")) is not None:
                kwargs |= {"prompt": infill.prompt_of(self, kwargs.get("prompt", ""), suffix), "suffix": None}
            if kwargs.get("echo") and isinstance(kwargs.get("prompt"), list):
                raise ArgumentError("echo needs a prompt that is a text, and no suffix")
        turn = self._chats.turn(kwargs.get("prompt", ()))
        return self._completed(turn, super()._create_completion(*args, **kwargs), bool(kwargs.get("stream")))

    def _completed(
        self, turn: Turn, results: Generator[Any, None, None], stream: bool
    ) -> Generator[Any, None, None]:
        """The results of llama_cpp's generator, which belong to one turn."""
        begun = False
        try:
            while True:
                with self._using(turn):
                    if not begun:
                        begun, self._completion = True, turn
                    try:
                        result = next(results)
                    except StopIteration:
                        return
                    finally:
                        if self._completion is turn:
                            self._completion = None
                if turn.cut_off and not stream:
                    result["choices"][0]["text"] += turn.cut_off.decode("utf-8", errors="ignore")
                if result["choices"][0]["finish_reason"] is not None and not (stream and self.cache):
                    self._lifetime.turns.leave(turn)  # it needs the context no more
                    yield result
                    return
                yield result
        except ValueError as error:
            found = None if isinstance(error, HeadKVError) else _TOO_LONG.search(str(error))
            if found is None:
                raise
            raise ContextFullError(
                f"{found[0]}: the prompt of {found[1]} tokens and an answer do not fit into the context of "
                f"{found[2]}"
            ) from error
        finally:
            results.close()
            self._lifetime.turns.leave(turn)

    def save_state(self, light: bool = False) -> LlamaState:
        """All that load_state() needs to go on from here, compacted or not, also in another process.

        light: leave out the archive, which takes as much memory as the full cache; also one that is in a
            file. Later turns are then read against what was kept.

        A generate() after it has to begin with the compacted prompt, else it reads its own anew. It goes on
        from what the saving Llama kept and computed, whatever retention and adapters the loading one has.
        The state says which model it is of. Raises OutOfMemoryError for an archive that memory has no room
        for: save_session() writes it to a file.
        """
        with self._using(beside=True):
            state = states.sign(self, states.capture(self, archive=not light))
            vars(state)["headkv_prompt"] = self._prompts.record
            return state

    def load_state(self, state: LlamaState) -> None:
        """Go on from a saved state.

        The context may have another n_ctx and n_batch than the one that it was saved from, if it has room:
        layers with a sliding window have as many cells as n_batch asks for. The state's archive goes to this
        Llama's; where that has none, it is left out. StateError (also a KeyError) if the state is of another
        model or does not fit. What the cache holds stays then, except where only llama.cpp finds out: the
        cache is empty then, and also with the ArchiveError of an archive that cannot be written.
        """
        with self._using():
            states.require_fitting(self, state)
            aside.restore(self, state, vars(state).get("headkv_prompt", PromptRecord()))
            self._seed = state.seed
