"""The model `headkv` of lm-evaluation-harness: one Llama in this process, greedy or sampled, one sequence."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import llama_cpp
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from tqdm import tqdm

from headkv_local import ArgumentError, HeadScores, UnsupportedError, __version__
from headkv_local.build import build_id
from headkv_local.models import model_id
from headkv_local.tokens import log_softmax, logits_of

from ..bench.suites.results import digest_of
from .generation import NOTHING_CUT, checked
from .reader import Reader
from .settings import NO_MATTER, parse

_logger = logging.getLogger("lm_eval.headkv")
_MADE_BY, _LEFT_OUT = "headkv", "headkv left out"  # beside the answers of --use_cache

Likelihood = tuple[tuple[str, str], list[int], list[int]]
"""Context and continuation, as texts; and the tokens of both."""


@register_model("headkv")
class HeadKVLM(TemplateLM):  # type: ignore[misc] # lm_eval has no types
    """--model_args model=FILE,budget=5%,scores=...: settings.parse() has all of them.

    Requests are answered in their order; those that share a prompt, or with chosen=anew a document, are
    cheaper one after the other. A prompt that does not fit into the context loses its middle with
    truncate=middle. Else its answer is empty, which is counted and said; continuations of it cannot be
    compared, which is an ArgumentError before any continuation is read.
    """

    def __init__(self, **given: Any) -> None:
        super().__init__()
        self._reader = Reader(parse(given))
        self._told = {name: value for name, value in sorted(given.items()) if name not in NO_MATTER}
        self._llm = self._reader.llm
        self._vocab = llama_cpp.llama_model_get_vocab(self._llm.model)
        self._random = random.Random(random.getrandbits(64))  # lm_eval has seeded it (--seed)
        self._is_chat = False
        self._messages: dict[str, list[dict[str, Any]]] = {}  # by the prompt that they were rendered to

    @property
    def eot_token_id(self) -> int:
        return int(self._llm.token_eos())

    @property
    def prefix_token_id(self) -> int:
        bos = int(self._llm.token_bos())
        return bos if bos >= 0 else self.eot_token_id

    @property
    def max_length(self) -> int:
        return int(self._llm.n_ctx())

    @property
    def max_gen_toks(self) -> int:
        return self._reader.settings.max_gen_toks

    @property
    def tokenizer_name(self) -> str:
        return Path(self._reader.model).name

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        return self._reader.tokens(string, add_bos=add_special_tokens is not False)

    def chat_template(self, chat_template: bool | str = False) -> str:
        """What lm_eval writes down before it makes prompts. Raises ArgumentError for a template's name."""
        if isinstance(chat_template, str):
            raise ArgumentError(
                f"--apply_chat_template takes no name, such as {chat_template!r}: it applies the model's own "
                "template"
            )
        self._is_chat = chat_template
        return str(self._llm.metadata.get("tokenizer.chat_template", "")) if chat_template else ""

    def apply_chat_template(
        self, chat_history: list[dict[str, Any]], add_generation_prompt: bool = True
    ) -> str:
        history = [dict(message) for message in chat_history]
        begun = "" if add_generation_prompt else str(history.pop()["content"])
        prompt = self._llm.chat_prompt(history) + begun
        self._messages[prompt] = history
        return prompt

    def set_cache_hook(self, cache_hook: Any) -> None:
        """Of --use_cache: lm_eval finds answers there by their prompts alone, so the file has to say whose.

        Raises ArgumentError for a file with answers of another model, version, build, or other arguments.
        """
        super().set_cache_hook(cache_hook)
        answers = cache_hook.dbdict
        if answers is None:
            return
        ours = {**self._told, "model": model_id(self._reader.model)}
        ours |= {"version": __version__, "build": build_id()}
        if (scores := self._llm.scores_from) is not None:
            ours["scores"] = digest_of(HeadScores.from_gguf(scores))[:16]
        if not len(answers):
            answers[_MADE_BY] = ours
        if (theirs := answers.get(_MADE_BY)) != ours:
            raise ArgumentError(
                f"--use_cache: {answers.filename} holds answers of {_written(theirs)}, not of "
                f"{_written(ours)}: give another file"
            )
        self._reader.costs.add_left_out(answers.get(_LEFT_OUT, {}))
        self._say()

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        self._require_messages(request.args[0] for request in requests)
        wanted = [checked(dict(request.args[1]), self.max_gen_toks) for request in requests]
        answers = []
        bar = tqdm(requests, desc="headkv: answers", disable=disable_tqdm)
        for request, options in zip(bar, wanted, strict=True):
            answer = self._generated(request.args[0], options)
            self._keep("generate_until", request.args, answer)
            answers.append(answer)
        self._say()
        return answers

    def _loglikelihood_tokens(
        self, requests: Sequence[Likelihood], **options: Any
    ) -> list[tuple[float, bool]]:
        self._require_messages(text for (text, _), _, _ in requests)
        groups = [list(group) for _, group in groupby(requests, lambda one: one[0][0])]
        rooms = [self._room(group) for group in groups]
        found = []
        with tqdm(
            total=len(requests), desc="headkv: likelihoods", disable=bool(options.get("disable_tqdm"))
        ) as bar:
            for group, room in zip(groups, rooms, strict=True):
                results = []
                (text, _), context, _ = group[0]
                # lm_eval has moved blanks at its end to the continuations: these are the tokens of the rest
                prompt = self._reader.prompt(context, text.rstrip(), room)
                assert prompt is not None
                for i, (_, _, continuation) in enumerate(group):
                    self._reader.read(prompt, self._messages.get(text, ()), again=i > 0)
                    results.append(self._likelihood(continuation))
                    bar.update()
                for (pair, _, _), result in zip(group, results, strict=True):  # all of a context, or none
                    self._keep("loglikelihood", pair, result)
                found += results
        self._say()
        return found

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        raise UnsupportedError(
            "the likelihood of a whole text (loglikelihood_rolling) has no prompt whose cache could be "
            "compacted: choose tasks that generate, or that compare continuations of a context"
        )

    def get_model_info(self) -> dict[str, Any]:
        """What lm_eval puts into the results, under "config"."""
        costs = self._reader.costs.summary()
        return {"headkv": {"model": self.tokenizer_name, "scores_from": self._scores_from(), **costs}}

    def _generated(self, text: str, options: dict[str, Any]) -> str:
        """options: of generation.checked()."""
        reader, n_most = self._reader, options["max_gen_toks"]
        tokens = reader.tokens(text) or [self.prefix_token_id]  # as before a continuation of nothing
        prompt = reader.prompt(tokens, text, n_most)
        if prompt is None:
            return ""
        reader.read(prompt, self._messages.get(text, ()))
        stops = [one for one in options["until"] if one]
        started, out = time.perf_counter(), []
        answer = ""
        for token in self._sampled(options):
            out.append(token)
            answer = str(self._llm.detokenize(out), "utf-8", errors="replace")
            if len(out) >= n_most or any(stop in answer for stop in stops):
                break
        reader.costs.answer_tokens += len(out)
        reader.costs.answer_seconds += time.perf_counter() - started
        for stop in stops:
            answer = answer.split(stop)[0]
        return answer

    def _sampled(self, options: dict[str, Any]) -> Iterator[int]:
        """Up to an end of generation, which is left out. options: of generation.checked()."""
        temperature = float(options.get("temperature", 1.0)) if options["do_sample"] else 0.0
        others = {name: options.get(name, value) for name, value in NOTHING_CUT.items()}
        while True:
            if temperature > 0:
                self._llm.set_seed(self._random.getrandbits(31))  # sample() begins anew with it each time
                token = int(self._llm.sample(temp=temperature, **others))
            else:
                token = int(logits_of(self._llm).argmax())
            if llama_cpp.llama_vocab_is_eog(self._vocab, token):
                return
            yield token
            self._llm.eval([token])

    def _room(self, group: Sequence[Likelihood]) -> int:
        """Tokens that the longest continuation of a context takes: all of them are behind the same tokens.

        Raises ArgumentError where they do not fit: the choices of a question that nobody has read are equal,
        and lm_eval would take the first of them for the answer.
        """
        n_context, n_most = len(group[0][1]), max(len(continuation) for _, _, continuation in group)
        if not self._reader.fits(n_context, n_most):
            cure = "" if self._reader.settings.truncate else "truncate=middle, or "
            raise ArgumentError(
                f"a prompt of {n_context} tokens and its continuation of {n_most} do not fit into the "
                f"context of {self.max_length}: give {cure}a larger n_ctx"
            )
        return n_most

    def _likelihood(self, continuation: list[int]) -> tuple[float, bool]:
        """Behind the prompt that was read."""
        total, greedy = 0.0, True
        for token in continuation:
            found = log_softmax(logits_of(self._llm))
            total += float(found[token])
            greedy = greedy and int(found.argmax()) == token
            self._llm.eval([token])
        return total, greedy

    def _require_messages(self, prompts: Iterable[str]) -> None:
        """Raises ArgumentError for prompts whose messages nobody knows: which tokens ask would be a guess.

        Some tasks put more before what the template was applied to.
        """
        made = tuple(self._messages)
        if self._is_chat and any(
            text and text not in self._messages and not text.endswith(made) for text in prompts
        ):
            raise ArgumentError(
                "--apply_chat_template: a prompt comes from an earlier run, without the messages that it was "
                "made of: leave out --cache_requests, or give --cache_requests refresh"
            )

    def _keep(self, kind: str, arguments: Any, answer: Any) -> None:
        """In the file of --use_cache: an answer, and what was left out so far, which stays true of it."""
        self.cache_hook.add_partial(kind, arguments, answer)
        if self.cache_hook.dbdict is not None:
            self.cache_hook.dbdict[_LEFT_OUT] = self._reader.costs.left_out()

    def _scores_from(self) -> str | None:
        found = self._llm.scores_from
        return None if found is None else Path(found).name

    def _say(self) -> None:
        """What was kept, how fast it was, and what was left out, in one line each."""
        costs = self._reader.costs.summary()
        if costs["prompts"]:
            _logger.info(
                "headkv: kept %.1f %% of %d prompts, %.2f MiB each; read %.0f, answered %.0f tokens/s",
                100 * costs["kept_shares"],
                costs["prompts"],
                costs["kept_bytes"] / 2**20,
                costs["prompt_tokens_per_second"] or 0,
                costs["answer_tokens_per_second"] or 0,
            )
        for name, what in (
            ("skipped", "do not fit into the context, their answers are empty: truncate=middle cuts them"),
            ("truncated", "did not fit into the context: their middle was cut out"),
            ("unsplit", "do not hold the split: they were read as a whole"),
        ):
            if costs[name]:
                _logger.warning("headkv: %d prompts %s", costs[name], what)


def _written(made_by: dict[str, Any] | None) -> str:
    if made_by is None:
        return "something else"
    return ",".join(f"{name}={value}" for name, value in made_by.items() if value is not None)
