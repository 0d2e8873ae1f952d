"""Random sequences of prompts, turns, cuts, answers, cancels, saves and failures.

Each runs on three Llamas: one does all of it; its twin only what must lead to the same, and agrees bit for
bit; a stock one, which never compacts, says what logits follow a prompt that was read against the archive.
A later sequence goes on with them: making them takes as long as all the rest.

    HEADKV_SEQUENCES=1000 HEADKV_FIRST_SEQUENCE=5000 pytest tests/model/test_random_sequences.py

runs others than the suite does. The message of a failure has the fewest steps that fail on new Llamas.
"""

from __future__ import annotations

import os
import random
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headkv_local import (
    ArchiveError,
    Cancelled,
    ContextFullError,
    HeadKVError,
    Llama,
    Retention,
    SessionError,
)
from headkv_local._core.prompts import n_same
from headkv_local._core.question import checked
from headkv_local._core.turns import Turn
from headkv_local.settings import KV_TYPES
from helpers import cancelled_after, ends, last_logits, nmse, no_room_on_disk

N_SEQUENCES = int(os.environ.get("HEADKV_SEQUENCES", "30"))
FIRST = int(os.environ.get("HEADKV_FIRST_SEQUENCE", "0"))
SMALL = {"width": 64, "n_ff": 64}
MODELS = tuple({"arch": arch, **SMALL} for arch in ("llama", "gemma3", "qwen35"))
LENGTHS = (1, 2, 31, 32, 33, 40, 63, 64, 65, 96, 127, 128, 129, 200, 255, 256, 257, 300)
SHORT = LENGTHS[:11]
NOISE = 5e-5
"""NMSE of logits. Other batch sizes move those of the stock cache by 1e-5 at most, one other token by 3e-4 at
least (40 prompts for each model, f16 and q8_0)."""
TILE = 64
"""Flash attention on the CPU takes so many tokens at once in another way, and products with a matrix single
ones: of 2 to 63 tokens each has the same bits, however many are beside it."""

WEIGHTS = {
    "prompt": 3,
    "turn": 5,
    "cut": 4,
    "again": 2,
    "answer": 4,
    "long_answer": 2,
    "tokens": 2,
    "cancel": 4,
    "cancel_token": 2,
    "light": 1,
    "stream": 2,
    "refused": 2,
    "session": 3,
    "reopen": 1,
    "state": 2,
    "give_up": 1,
    "shorten": 1,
    "full_disk": 1,
    "settings": 2,
}

Step = tuple[str, int]
"""What to do, and the seed of how."""

Idle = dict[tuple[Any, ...], tuple[Llama, Llama, Llama]]
"""Llamas that no sequence uses now, by what they were made with."""


def steps_of(seed: int) -> list[Step]:
    rng = random.Random(seed)
    names = rng.choices(list(WEIGHTS), list(WEIGHTS.values()), k=rng.randint(4, 12))
    return [(name, rng.randrange(10**6)) for name in ("prompt", *names)]


def tokens_of(rng: random.Random, n: int) -> list[int]:
    return [rng.randrange(256) for _ in range(n)]


class Trio:
    """The three Llamas of a sequence."""

    def __init__(self, seed: int, path: Path, folder: Path, idle: Idle) -> None:
        rng = random.Random(seed)
        self.path, self.folder, self.n_files = path, folder, 0
        n_batch = rng.choice((64, 37))
        n_ubatch = rng.choice((n_batch, n_batch, 23))
        self.arguments: dict[str, Any] = {
            "n_ctx": 512,
            "n_batch": n_batch,
            "n_ubatch": n_ubatch,
            "n_threads": 1,
            "n_threads_batch": 1,
            **dict.fromkeys(("type_k", "type_v"), KV_TYPES[rng.choice(("f16", "f16", "q8_0"))]),
        }
        self.kind, retentions = (path, *self.arguments.values()), self.retentions(rng)
        if self.kind in idle:
            self.llm, self.twin, self.stock = idle.pop(self.kind)
            self.llm.retention, self.twin.retention = retentions
        else:
            self.llm, self.twin = (Llama(path, retention=each, **self.arguments) for each in retentions)
            self.stock = Llama(path, flash_attn=True, swa_full=False, **self.arguments)
        self.batches: list[tuple[int, int, bool]] = []
        """In which the rows in the archive were computed: from and to a position, and whether it is known
        that these give the same bits."""
        self.n_exact: float = np.inf  # first rows in the archive that were not computed over kept rows
        self.compared: list[tuple[bool, float]] = []

    def close(self) -> None:
        for llm in (self.llm, self.twin, self.stock):
            llm.close()

    def leave_to(self, idle: Idle) -> None:
        self.start_again()
        self.llm.retention = self.twin.retention = None  # files of archives go
        idle[self.kind] = self.llm, self.twin, self.stock

    def run(self, steps: list[Step]) -> None:
        for name, seed in steps:
            getattr(self, name)(random.Random(seed))
            self.check()

    def check(self) -> None:
        """What must hold after every step."""
        llm, twin = self.llm, self.twin
        found = []
        for each in (llm, twin):
            stats = each.cache_stats()
            assert len(set(ends(each))) == 1, f"ends: {ends(each)}"
            assert stats.archive_tokens in (0, stats.prompt_tokens) or (
                each._bounded and stats.archive_tokens < stats.prompt_tokens
            )
            counts = (stats.prompt_tokens, stats.tail_tokens, stats.archive_tokens, stats.compacted)
            found.append((*counts, stats.policy, stats.kept.tolist()))
        assert found[0] == found[1]
        assert llm.input_ids[: llm.n_tokens].tolist() == twin.input_ids[: twin.n_tokens].tolist()
        assert np.array_equal(llm.retention_mask(), twin.retention_mask()), "other masks"
        if llm.n_tokens > 0 and not (llm._requires_eval or twin._requires_eval):
            assert np.array_equal(last_logits(llm), last_logits(twin)), "other logits"
        n_read = self.batches[-1][1] if self.batches else 0
        if llm.cache_stats().archive_tokens > n_read:  # by folding
            self.n_exact = min(self.n_exact, n_read)

    # what is used by steps

    @property
    def moves_windows(self) -> bool:
        """Whether llama.cpp puts what sliding windows hold into other cells when it reads a state."""
        return self.llm._bounded.window > 0

    def file(self, name: str) -> Path:
        self.n_files += 1
        return self.folder / f"{self.n_files}-{name}"

    def retentions(self, rng: random.Random) -> tuple[Retention, Retention]:
        """The same for both, but for the file."""
        where = rng.choice(("memory", "memory", "file", "file", None))
        kept: dict[str, Any] = {
            "budget": rng.choice((16, 32, 48)),
            "observe": rng.choice((16, 64)),
            "fold": rng.choice((64, 100, None)),
            "order": rng.choice((None, None, "tokens", "layers")),
            "panel": rng.choice((None, None, 50, 128)),
            "reselect": rng.choice((None, None, False)) if where else None,
        }
        one, two = (self.file("rows") if where == "file" else where for _ in range(2))
        return Retention(archive=one, **kept), Retention(archive=two, **kept)

    @property
    def held(self) -> list[int]:
        tokens: list[int] = self.llm.input_ids[: self.llm.n_tokens].tolist()
        return tokens

    def next_prompt(self, rng: random.Random) -> list[int]:
        """Another one, a turn, or one that begins alike."""
        held = self.held
        kind = rng.randrange(4) if held else 0
        if kind == 0:
            return tokens_of(rng, rng.choice(LENGTHS))
        n = len(held)
        if kind > 1:
            n = rng.choice((rng.randrange(n), rng.choice([b for b in (0, *LENGTHS) if b <= n])))
        return [*held[:n], *tokens_of(rng, rng.choice(SHORT))]

    @staticmethod
    def question_of(rng: random.Random, n: int) -> slice | None:
        if n < 8 or rng.random() < 0.7:
            return None
        start = rng.randrange(n - 2)
        return slice(start, min(n, start + rng.randint(1, min(20, n // 2))))

    def is_all_or_nothing(self, tokens: list[int]) -> bool:
        """Whether a prompt is read against the archive."""
        same = n_same(self.llm.input_ids[: self.llm.n_tokens], tokens)
        return self.llm._contents.reads_anew(min(same, len(tokens) - 1), len(tokens))

    def both(self, action: Callable[[Llama], None]) -> bool:
        """Whether it works; by both or none."""
        raised: list[HeadKVError | None] = []
        for llm in (self.llm, self.twin):
            try:
                action(llm)
                raised.append(None)
            except HeadKVError as error:
                raised.append(error)
        assert type(raised[0]) is type(raised[1]), f"{raised[0]!r}, {raised[1]!r}"
        return raised[0] is None

    def start_again(self) -> None:
        for llm in (self.llm, self.twin):
            llm.reset()
        self.batches, self.n_exact = [], np.inf

    def read(self, rng: random.Random, tokens: list[int]) -> None:
        question = self.question_of(rng, len(tokens))
        n_open = 0 if question else rng.choice([n for n in (0, 0, 1, 3) if n < len(tokens)])
        if n_open > 0 and tokens == self.held[: len(tokens)]:  # as it was compacted
            n_open = max(0, len(tokens) - self.llm.cache_stats().prompt_tokens)
        read: list[int] = []

        def action(llm: Llama) -> None:
            turn = Turn(question=checked(question, len(tokens)))
            turn.n_stable = len(tokens) - n_open
            with llm._using():
                llm._reader.prefill(tokens, turn)

        self.llm.on_prefill = lambda _, total: read.append(total)
        done = self.both(action)
        self.llm.on_prefill = None
        if not (done and read):
            return
        n_again = question.stop - question.start if question and question.stop < len(tokens) - 32 else 0
        n_again = min(n_again, self.llm.n_ctx() - len(tokens))
        n_past = max(0, len(tokens) - read[0] + n_again)
        logits, stats = last_logits(self.llm), self.llm.cache_stats()
        if n_open > 0 and stats.compacted:  # the others went behind what was kept
            tokens, logits = tokens[: stats.prompt_tokens], self.llm._prompts.record.logits
        if len(tokens) > n_past:
            self.compare_with_stock(tokens, n_past, logits)

    def compare_with_stock(self, tokens: list[int], n_past: int, logits: Any) -> None:
        """Logits after a prompt of which all but the first n_past tokens were read now."""
        stats = self.llm.cache_stats()
        if stats.compacted and stats.archive_tokens < len(tokens):
            return  # it was read over kept rows
        self.batches = [
            (start, min(stop, n_past), known and (stop <= n_past or self.cuts_alike(start, n_past, stop)))
            for start, stop, known in self.batches
            if start < n_past
        ]
        at = self.batches[-1][1] if self.batches else 0
        if at < n_past:  # read by steps that were not noted
            self.batches.append((at, n_past, False))
        self.batches += self.batches_of(n_past, len(tokens))
        if n_past > self.n_exact:
            return
        self.n_exact = np.inf
        self.stock.reset()
        for start, stop, _ in self.batches:
            self.stock.eval(tokens[start:stop])
        exact = all(known for *_, known in self.batches)
        off = nmse(logits, last_logits(self.stock))
        self.compared.append((exact, off))
        assert off <= (0 if exact else NOISE), f"logits are {off:.1e} away from the stock cache's"

    def cuts_alike(self, start: int, at: int, stop: int) -> bool:
        """Whether the first tokens of a batch have the same bits without the others."""
        return stop - start < TILE and (at - start) % self.arguments["n_ubatch"] != 1

    def batches_of(self, start: int, stop: int) -> Iterator[tuple[int, int, bool]]:
        """In which a prompt is read from one position to another."""
        kept = self.llm.retention
        panel = kept.panel if kept and self.llm.cache_stats().compacted else None
        for first in range(start, stop, panel or stop):
            last = min(stop, first + (panel or stop))
            for i in range(first, last, self.arguments["n_batch"]):
                yield i, min(last, i + self.arguments["n_batch"]), True

    # steps of both

    def prompt(self, rng: random.Random) -> None:
        self.read(rng, tokens_of(rng, rng.choice(LENGTHS)))

    def turn(self, rng: random.Random) -> None:
        self.read(rng, [*self.held, *tokens_of(rng, rng.choice(SHORT))])

    def cut(self, rng: random.Random) -> None:
        self.read(rng, self.next_prompt(rng))

    def again(self, rng: random.Random) -> None:
        n = self.llm.cache_stats().prompt_tokens
        if n > 0:
            self.read(rng, self.held[: n + rng.choice((0, 1, 3))])

    def answer(self, rng: random.Random) -> None:
        self.answer_of(rng, rng.choice((1, 2, 5)))

    def long_answer(self, rng: random.Random) -> None:
        self.answer_of(rng, rng.randint(30, 110))

    def answer_of(self, rng: random.Random, n: int) -> None:
        for _ in range(n):
            has_logits = self.llm.n_tokens > 0 and not self.llm._requires_eval
            token = int(last_logits(self.llm).argmax()) if has_logits else rng.randrange(256)
            if not self.both(lambda llm, token=token: llm.eval([token])):  # type: ignore[misc]
                break

    def tokens(self, rng: random.Random) -> None:
        tokens = tokens_of(rng, rng.choice((1, 3, 40, 70)))
        self.both(lambda llm: llm.eval(tokens))

    def light(self, rng: random.Random) -> None:
        """The archive is left out."""

        def action(llm: Llama) -> None:
            path = self.file("session")
            llm.save_session(path, light=True)
            llm.load_session(path)
            path.unlink()

        if self.llm.n_tokens > 0:
            self.both(action)

    def stream(self, rng: random.Random) -> None:
        """A prompt and its answer by generate(). One is set aside, again and again."""
        tokens, n = self.next_prompt(rng), rng.choice((1, 4, 70))
        self.batches, self.n_exact = [], 0
        others = [self.next_prompt(rng) for _ in range(rng.choice((0, 0, 1, 2, 3)))]

        def action(llm: Llama) -> None:
            stream = llm.generate(tokens, temp=0)
            deque(islice(stream, n))
            for other in others:
                if llm is self.llm or self.moves_windows:
                    with suppress(HeadKVError):
                        llm.prefill(other)
                deque(islice(stream, 1))
            deque(islice(stream, 2))
            stream.close()

        self.both(action)

    def between(self, rng: random.Random) -> None:
        """What is undone, as far as others can see."""
        for _ in range(rng.randrange(3)):
            with suppress(HeadKVError):
                if rng.random() < 0.5:
                    self.llm.prefill(self.next_prompt(rng))
                else:
                    self.llm.eval(tokens_of(rng, rng.choice((1, 40))))

    def settings(self, rng: random.Random) -> None:
        self.start_again()
        for llm, retention in zip((self.llm, self.twin), self.retentions(rng), strict=True):
            llm.retention = retention

    # steps of one, that leave nothing behind

    def cancel(self, rng: random.Random) -> None:
        """Nothing is left of a prompt that is read against the archive; of another what was decoded."""
        llm, tokens, at = self.llm, self.next_prompt(rng), rng.random()
        nothing = self.is_all_or_nothing(tokens)
        within = rng.random() < 0.5  # a batch
        if not within:
            llm.on_prefill = lambda done, total: llm.cancel() if done >= at * total else None
        try:
            with cancelled_after(llm, rng.randrange(400) if within else np.inf):
                llm.prefill(tokens, self.question_of(rng, len(tokens)))
        except Cancelled:
            if nothing:
                return
            assert len(set(ends(llm))) == 1
        except HeadKVError:
            pass
        finally:
            llm.on_prefill = None
        with suppress(HeadKVError):
            llm.eval([0])  # it may be this that is cancelled
        self.start_again()

    def cancel_token(self, rng: random.Random) -> None:
        """Before its graph, or within; not within one that changes a recurrent state, which is finished."""
        at = 0 if self.llm._bounded.recurrent else rng.choice((0, rng.randrange(60)))
        with cancelled_after(self.llm, at), suppress(ContextFullError):
            if at == 0:
                self.llm.cancel()
            before = self.llm.n_tokens
            try:
                self.llm.eval([rng.randrange(256)])
            except Cancelled:
                assert self.llm.n_tokens == before
                self.twin._folding.fold_if_due(1)  # as the other one did before the token, if that was due
                self.twin._requires_eval = True  # as the other one, which has no logits now
            else:
                self.twin.eval(self.held[-1:])

    def refused(self, rng: random.Random) -> None:
        """No token, one that there is not, no room, a question that is too long."""
        tokens = self.next_prompt(rng)
        question = None
        kind = rng.randrange(4)
        if kind == 0:
            tokens = [*tokens, 9999]
        elif kind == 1:
            tokens = [*tokens, *tokens_of(rng, 513)]
        elif kind == 2:
            tokens = []
        else:
            question = slice(0, len(tokens))
        with pytest.raises(HeadKVError):
            self.llm.prefill(tokens, question)

    def session(self, rng: random.Random) -> None:
        """What is done between saving and loading is undone."""
        if self.llm.n_tokens == 0:
            return
        path = self.file("session")
        if rng.random() < 0.2:
            with no_room_on_disk(rng.randrange(20000)), suppress(SessionError):
                self.llm.save_session(path)
                path.unlink()
            assert not path.exists()
            return
        self.llm.save_session(path)
        self.between(rng)
        self.llm.load_session(path)
        path.unlink()

    def state(self, rng: random.Random) -> None:
        """As session(); with its rows, or with these in the archive."""
        state = self.llm.save_state(hold=rng.random() < 0.5)
        self.between(rng)
        self.llm.load_state(state)
        if self.moves_windows:
            self.twin.load_state(self.twin.save_state())
        self.twin._requires_eval = True  # as of a state

    def reopen(self, rng: random.Random) -> None:
        if self.llm.n_tokens == 0:
            return
        path = self.file("session")
        self.llm.save_session(path)
        self.llm.close()
        self.llm = Llama.open_session(path, **self.arguments)
        path.unlink()

    def give_up(self, rng: random.Random) -> None:
        """The archive; the conversation goes on from what is kept."""
        del rng
        for llm in (self.llm, self.twin):
            assert llm.retention
            llm.retention = llm.retention.without_archive()

    def shorten(self, rng: random.Random) -> None:
        """The archive's file, by others."""
        if self.archive_size == 0:
            return
        os.truncate(self.archive, int(rng.random() * 0.99 * self.archive_size))
        if rng.random() < 0.5:
            self.answer_of(rng, rng.randint(1, 110))  # what is folded then gives it up
            self.give_up(rng)
            return
        tokens = [*self.held, *tokens_of(rng, 20)]
        nothing = self.is_all_or_nothing(tokens)
        try:
            self.llm.prefill(tokens)
        except HeadKVError:
            assert nothing
            self.give_up(rng)
        else:
            self.start_again()

    def full_disk(self, rng: random.Random) -> None:
        """While a prompt is read, or an answer folded."""
        tokens = self.next_prompt(rng)
        if self.archive_size == 0:
            return
        n_bytes = rng.randrange(self.archive_size + 1)
        if rng.random() < 0.5:
            with no_room_on_disk(n_bytes):
                self.answer_of(rng, rng.randint(1, 110))
            self.give_up(rng)
        elif self.is_all_or_nothing(tokens):
            with no_room_on_disk(n_bytes), suppress(ArchiveError, ContextFullError):
                self.llm.prefill(tokens)
                self.start_again()

    @property
    def archive(self) -> str:
        return str(self.llm.retention.archive) if self.llm.retention else ""

    @property
    def archive_size(self) -> int:
        """Bytes of the file, where there is one with rows in it."""
        has_rows = self.llm.cache_stats().archive_tokens > 0 and self.archive != "memory"
        return os.stat(self.archive).st_size if has_rows else 0


def why_it_fails(seed: int, steps: list[Step], path: Path, folder: Path, idle: Idle) -> str | None:
    trio = Trio(seed, path, folder, idle)
    try:
        trio.run(steps)
        trio.leave_to(idle)
    except Exception as error:
        trio.close()
        return f"{type(error).__name__}: {error}"
    return None


def alone(seed: int, steps: list[Step], path: Path, folder: Path) -> str | None:
    """As why_it_fails(), on new Llamas."""
    idle: Idle = {}
    try:
        return why_it_fails(seed, steps, path, folder, idle)
    finally:
        for llm in chain(*idle.values()):
            llm.close()


def shortest(steps: list[Step], fails: Callable[[list[Step]], str | None]) -> tuple[list[Step], str]:
    """The fewest steps that fail, and how; all of them if they do not fail again."""
    said = fails(steps)
    if said is None:
        return steps, "nothing fails on new Llamas"
    i = 0
    while i < len(steps):
        fewer = [*steps[:i], *steps[i + 1 :]]
        again = fails(fewer)
        if again is None:
            i += 1
        else:
            steps, said = fewer, again
    return steps, said


@pytest.fixture(scope="module")
def idle() -> Iterator[Idle]:
    llamas: Idle = {}
    yield llamas
    for llm in chain(*llamas.values()):
        llm.close()


@pytest.mark.parametrize("seed", range(FIRST, FIRST + N_SEQUENCES))
def test_a_sequence(tiny: Callable[..., Path], tmp_path: Path, idle: Idle, seed: int) -> None:
    path = tiny(**MODELS[seed % len(MODELS)])
    steps = steps_of(seed)
    said = why_it_fails(seed, steps, path, tmp_path, idle)
    if said is not None:
        few, last = shortest(steps, lambda fewer: alone(seed, fewer, path, tmp_path))
        pytest.fail(f"{said}\nseed {seed}, {few}: {last}")
