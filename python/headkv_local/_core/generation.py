"""Generations in turns: whole ones after each other, and streams that go on where others came between."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any, Final

import llama_cpp

from .. import infill
from ..errors import ArgumentError, ContextFullError, HeadKVError, StateError
from ..forms import Extensible, Guarded, require_bias, require_grammar, stops_of
from .contents import Contents
from .failures import completion_error
from .lifetime import Lifetime
from .prefill import PromptReader
from .tokens import listed
from .turns import Turn

Steps = Generator[int, Any, None]

_SIGNATURE: Final = inspect.signature(llama_cpp.Llama.generate)  # llama_cpp.Llama may be set to ours later


def completion_arguments(llm: Any, given: dict[str, Any]) -> dict[str, Any]:
    """Those of a completion as llama_cpp does right with them. ArgumentError for what it would not do."""
    if (grammar := given.get("grammar")) is not None:
        require_grammar(llm._model.vocab, grammar)
    if (bias := given.get("logit_bias")) is not None:
        require_bias(bias, llm._n_vocab)
        if (processors := given.get("logits_processor")) is not None:
            given = {**given, "logits_processor": Extensible(processors)}
    if (criteria := given.get("stopping_criteria")) is not None:
        given = {**given, "stopping_criteria": Guarded(criteria, llm._lifetime.alone)}
    if (stop := given.get("stop")) is not None:
        given = {**given, "stop": stops_of(stop)}
    if given.get("suffix") == "":  # as clients send it that always have the field
        given = {**given, "suffix": None}
    if (suffix := given.get("suffix")) is not None:
        given = {**given, "prompt": infill.prompt_of(llm, given.get("prompt", ""), suffix), "suffix": None}
    if given.get("echo") and isinstance(given.get("prompt"), list):
        raise ArgumentError("echo needs a prompt that is a text, and no suffix")
    return given


class Generations:
    """Of one Llama, `llm`. They do not mix, in whatever threads they run."""

    def __init__(self, reader: PromptReader, contents: Contents, lifetime: Lifetime) -> None:
        self._reader, self._contents, self._lifetime = reader, contents, lifetime
        self._completion: Turn | None = None  # whose generate() comes next

    def generate(
        self,
        llm: Any,
        turn: Turn,
        stock: Callable[..., Steps],
        tokens: Sequence[int],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Steps:
        """turn: that this is if it is not a part of a completion. stock: llama_cpp's generate(), which is
        called with these arguments."""
        own = not self._lifetime.turns.inside
        if not own:
            if self._completion is None:
                raise StateError("a generation cannot go on in a callback of the call that computes")
            turn, self._completion = self._completion, None
        tokens = listed(tokens)
        given: dict[str, Any] = dict(_SIGNATURE.bind(llm, tokens, *args, **kwargs).arguments)
        for name in ("self", "tokens"):
            del given[name]
        anew = given.get("reset", True)
        given["reset"] = False
        if (stop := given.get("stopping_criteria")) is not None:
            given["stopping_criteria"] = Guarded(stop, self._lifetime.alone)

        def rest() -> Iterator[int]:
            """What is to be evaluated. llama_cpp asks for it when it has made a sampler of its arguments."""
            self._reader.announce(turn, tokens, anew)
            yield from tokens[self._contents.tokens.n_tokens if anew else 0 :]

        steps = stock(rest(), **given)
        sent, answer, sampler = None, list[int](), None
        turn.prompt, turn.answer = tokens, answer
        try:
            while True:
                with self._lifetime.used(llm, turn):
                    try:
                        token = steps.send(sent)
                    except StopIteration:
                        return
                    except ContextFullError:
                        if own or not answer:
                            raise
                        # llama_cpp asks for the rest of a character beyond its max_tokens
                        turn.cut_off = llm.detokenize(answer, prev_tokens=tokens)
                        return
                    finally:
                        sampler = llm._sampler
                if not own:
                    answer.append(token)
                sent = yield token
        except ValueError as error:
            if not isinstance(error, HeadKVError):
                self._contents.require_room(
                    1
                )  # llama_cpp writes drafts behind the end of its array of tokens
            raise
        finally:
            steps.close()
            if llm._sampler is sampler:
                llm._sampler = None
            for _, custom in getattr(sampler, "custom_samplers", ()):  # it goes around in a circle, and
                custom.apply_func = None  # processors may hold the Llama
            self._reader.withdraw(turn)
            if own:
                self._lifetime.turns.leave(turn)

    def complete(
        self,
        llm: Any,
        turn: Turn,
        results: Generator[Any, None, None],
        given: Mapping[str, Any],
        offset: int,
    ) -> Generator[Any, None, None]:
        """The results of llama_cpp's generator of a completion, which belong to one turn.

        given: its arguments. offset: by how much the prompt was longer than the one that llama_cpp got, and
        counts from.
        """
        begun, stream = False, bool(given.get("stream"))
        try:
            while True:
                with self._lifetime.used(llm, turn):
                    if not begun:
                        begun, self._completion = True, turn
                    try:
                        result = next(results)
                    except StopIteration:
                        return
                    finally:
                        if self._completion is turn:
                            self._completion = None
                    if not stream and given.get("stop"):
                        _end_at_first(llm, result["choices"][0], turn, given)
                if (of_tokens := result["choices"][0]["logprobs"]) is not None:
                    of_tokens["text_offset"] = [offset + one for one in of_tokens["text_offset"]]
                if turn.cut_off and not stream:
                    result["choices"][0]["text"] += turn.cut_off.decode("utf-8", errors="ignore")
                if result["choices"][0]["finish_reason"] is not None and not (stream and llm.cache):
                    self._lifetime.turns.leave(turn)  # it needs the context no more
                    yield result
                    return
                yield result
        except ValueError as error:
            explained = completion_error(error)
            if explained is error:
                raise
            raise explained from error
        finally:
            results.close()
            self._lifetime.turns.leave(turn)


def _end_at_first(llm: Any, choice: Any, turn: Turn, given: Mapping[str, Any]) -> None:
    """Where a token ends several of the texts to stop at, the answer ends before the first in it, as that of
    a stream does; llama_cpp takes the first in the list."""
    if choice["finish_reason"] != "stop":
        return
    text = llm.detokenize(turn.answer, prev_tokens=turn.prompt)
    ends = [end for stop in given["stop"] if (end := text.find(stop.encode("utf-8"))) >= 0]
    if len(ends) > 1:
        kept = text[: min(ends)].decode("utf-8", errors="ignore")
        choice["text"] = given["prompt"] + kept if given.get("echo") else kept
