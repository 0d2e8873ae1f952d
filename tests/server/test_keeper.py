"""One Llama and its conversations: what is in the context, what waits in memory, what stays in the folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gguf_factory import write_adapter
from headkv_local import Cancelled, CancelToken, Llama, OutOfMemoryError, Retention
from headkv_local.server.keeper import Keeper
from headkv_local.server.served import Asked, Served
from headkv_local.server.shelf import Shelf
from headkv_local.sessions import read_header
from helpers import no_room_on_disk, random_tokens

KEPT = Retention(budget=48, archive="memory")


def sessions(folder: Path) -> set[Path]:
    return set(folder.glob("*.session"))


def read(keeper: Keeper, llm: Llama, tokens: list[int]) -> None:
    assert llm.retention is not None
    keeper.prepare(tokens, llm.retention)
    llm.prefill(tokens)


def left(folder: Path, llm: Llama, *prompts: list[int], most_bytes: int = 2**30) -> list[Path]:
    """By a server that has read these; the session of each."""
    keeper, found = Keeper(llm, Shelf(folder, 9, most_bytes)), []
    for prompt in prompts:
        before = sessions(folder)
        read(keeper, llm, prompt)
        keeper.save()
        found += sessions(folder) - before
    keeper.close()
    llm.reset()
    return found


def test_what_cannot_be_used_now_stays(
    tiny: Callable[..., Path],
    load: Callable[..., Llama],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Of another model, longer than the context, of a later format; and what is none of a server's."""
    large, other = load(tiny(), retention=KEPT), load(tiny(n_layer=3), retention=KEPT)
    tokens = random_tokens(300, seed=1)
    (theirs,) = left(tmp_path, other, random_tokens(300, seed=2))
    long, later, good = left(tmp_path, large, random_tokens(600, seed=3), random_tokens(300, seed=4), tokens)
    later.write_bytes(later.read_bytes()[:16] + bytes([99]) + later.read_bytes()[17:])
    large.eval([1, 2, 3])
    chat, foreign = tmp_path / f"{'0' * 16}.session", tmp_path / "mine.session"
    large.save_session(chat, messages=[{"role": "user", "content": "Hello."}])
    foreign.write_text("mine")
    for age, path in enumerate((chat, theirs, long, later, good), start=1):
        os.utime(path, (age, age))
    there = sessions(tmp_path)
    small = load(tiny(), n_ctx=512, retention=KEPT)
    caplog.clear()
    keeper = Keeper(small, Shelf(tmp_path, 2, 2**30))
    assert keeper.n_kept == 1
    assert sessions(tmp_path) == there
    said = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert len(said) == 3
    for path, words in ((theirs, "weights differ"), (long, "holds 600 tokens"), (later, "has format 99")):
        assert any(str(path) in text and words in text for text in said)
    read(keeper, small, [*tokens, 1])
    read(keeper, small, random_tokens(300, seed=5))
    keeper.close()
    assert there - sessions(tmp_path) == {theirs, long}  # the oldest first
    assert len(sessions(tmp_path)) == 5  # with later, good and the new one, chat and foreign


@pytest.mark.parametrize("between", [None, "memory", "file"])
def test_the_same_prompt_with_another_budget(
    tiny_path: Path, load: Callable[..., Llama], tmp_path: Path, between: str | None
) -> None:
    """Is chosen for anew, also where its conversation has waited or was saved meanwhile."""
    tokens, llm = random_tokens(300, seed=1), load(tiny_path, retention=KEPT)
    keeper = Keeper(llm, Shelf(tmp_path, 9, 2**30))
    for budget in (64, 16, 400, 32, "100%", 16):
        kept = Retention(budget=budget, archive="memory")
        keeper.prepare(tokens, kept)
        llm.prefill(tokens)
        fresh = load(tiny_path, retention=kept)
        fresh.prefill(tokens)
        assert llm.cache_stats().kept_share == fresh.cache_stats().kept_share
        if fresh.cache_stats().compacted:
            assert np.array_equal(llm.retention_mask(), fresh.retention_mask())
        if between is not None:
            read(keeper, llm, random_tokens(200, seed=2))
        if between == "file":
            keeper.close()
            llm.reset()
            keeper = Keeper(llm, Shelf(tmp_path, 9, 2**30))
    keeper.close()


def test_what_a_killed_server_has_left_goes_and_nothing_else(tmp_path: Path) -> None:
    ours = {
        "archive-123": b"headkv archive\n\0rows",
        "archive-4": b"",
        "headkv-a1B2c3": b"headkv session\n\0rest",
        "headkv-Zzzzzz": b"headkv",
    }
    theirs = {
        "archive-2024.zip": b"PK",
        "archive-2024": b"PK",
        "archive-": b"",
        "headkv-notes.txt": b"",
        "headkv-backup": b"mine",
        "headkv-a1B2c3.old": b"headkv session\n\0rest",
    }
    for name, content in (ours | theirs).items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "archive-5").mkdir()
    os.mkfifo(tmp_path / "archive-6")
    Shelf(tmp_path, 9, 2**30).close()
    assert {path.name for path in tmp_path.iterdir()} == {*theirs, "archive-5", "archive-6", "lock"}


def test_the_next_best_takes_the_place_of_what_is_damaged(
    tiny_path: Path, load: Callable[..., Llama], tmp_path: Path
) -> None:
    llm = load(tiny_path, retention=KEPT)
    begin, ends = random_tokens(300, seed=1), [random_tokens(60, seed=seed) for seed in (2, 3)]
    first, second = left(tmp_path, llm, *(begin + end for end in ends))
    data = bytearray(second.read_bytes())
    data[-30] ^= 1
    second.write_bytes(data)
    keeper = Keeper(llm, Shelf(tmp_path, 9, 2**30))
    keeper.prepare([*begin, *ends[1], 1], KEPT)
    assert llm.input_ids[: llm.n_tokens].tolist() == begin + ends[0]
    assert sessions(tmp_path) == {first}
    keeper.close()


@pytest.mark.parametrize(
    ("arch", "goes_back"),
    [("llama", True), ("deci-without", True), ("glm4moe-draft", True), ("gemma3", False), ("qwen35", False)],
)
def test_another_end_of_the_same_beginning(
    tiny: Callable[..., Path], load: Callable[..., Llama], tmp_path: Path, arch: str, goes_back: bool
) -> None:
    """It goes back in the context if all layers can, whether or not all of them have a cache."""
    llm = load(tiny(arch=arch), retention=KEPT)
    begin, ends = random_tokens(600, seed=1), [random_tokens(60, seed=seed) for seed in (2, 3)]
    keeper = Keeper(llm, Shelf(tmp_path, 9, 2**30))
    read(keeper, llm, begin + ends[0])
    keeper.prepare(begin + ends[1], KEPT)
    assert (llm.n_tokens > 0) is goes_back
    keeper.close()


def test_rows_of_another_adapter(tiny_path: Path, load: Callable[..., Llama], tmp_path: Path) -> None:
    bare, other = (
        load(tiny_path, retention=KEPT, lora_path=lora)
        for lora in (None, str(write_adapter(tmp_path / "adapter.gguf", seed=1)))
    )
    tokens = random_tokens(300, seed=1)
    (session,) = left(tmp_path, bare, tokens)
    keeper = Keeper(other, Shelf(tmp_path, 9, 2**30))
    keeper.prepare([*tokens, 1], KEPT)
    assert other.n_tokens == 0
    assert session.exists()
    keeper.close()


def test_a_clock_that_was_set_back(tiny_path: Path, load: Callable[..., Llama], tmp_path: Path) -> None:
    """The order of use is that of the conversations: in the folder, and of those that come."""
    llm = load(tiny_path, retention=KEPT)
    prompts = [random_tokens(100, seed=seed) for seed in range(6)]
    there = left(tmp_path, llm, *prompts[:3])
    for path in there:
        later = path.stat().st_mtime + 86400
        os.utime(path, (later, later))

    def most(n: int, *read_before: list[int]) -> list[int]:
        """Which prompts a server that may have n conversations, the one in the context among them, and is
        asked for these, leaves in the end."""
        keeper = Keeper(llm, Shelf(tmp_path, n - 1, 2**30))
        for prompt in read_before:
            read(keeper, llm, [*prompt, 1])
        keeper.close()
        llm.reset()
        found = []
        for path in sorted(sessions(tmp_path), key=lambda path: path.stat().st_mtime_ns):
            llm.load_session(path)
            found.append(prompts.index(llm.input_ids[:100].tolist()))
        llm.reset()
        return found

    assert most(3, prompts[3], prompts[4]) == [2, 3, 4]
    assert most(3, prompts[2], prompts[5]) == [4, 2, 5]
    assert most(3, prompts[4]) == [2, 5, 4]


def test_one_that_is_too_large_costs_no_other(
    tiny_path: Path, load: Callable[..., Llama], tmp_path: Path
) -> None:
    llm = load(tiny_path, retention=KEPT)
    small = left(tmp_path, llm, random_tokens(100, seed=1), random_tokens(100, seed=2))
    most = sum(path.stat().st_size for path in small) + 100
    whole = load(tiny_path, retention=Retention(budget=900))
    assert left(tmp_path, whole, random_tokens(900, seed=3), most_bytes=most) == []
    assert sessions(tmp_path) == set(small)


def test_one_with_too_large_an_archive_stays_without(
    tiny_path: Path, load: Callable[..., Llama], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    llm, tokens = load(tiny_path, retention=KEPT), random_tokens(900, seed=3)
    (session,) = left(tmp_path, llm, tokens, most_bytes=2**19)
    assert "are more than all sessions may have" in caplog.text
    assert session.stat().st_size < 2**19
    keeper = Keeper(llm, Shelf(tmp_path, 9, 2**19))
    keeper.prepare([*tokens, 1], KEPT)
    assert llm.n_tokens == 900
    assert llm.cache_stats().archive_tokens == 0
    keeper.close()


def test_an_answer_that_is_folded_is_not_the_prompt(
    tiny_path: Path, load: Callable[..., Llama], tmp_path: Path
) -> None:
    """The same again, or another question after it, is no other conversation."""
    kept = Retention(budget=48, archive="memory", fold=64)
    llm = load(tiny_path, n_ctx=2048, retention=kept)
    keeper, tokens = Keeper(llm, Shelf(tmp_path, 4, 2**30)), random_tokens(600, seed=3)
    for prompt in (tokens[:200], tokens[:200], [*tokens[:200], *tokens[500:530]]):
        keeper.prepare(prompt, kept)
        llm.prefill(prompt)
        for token in tokens[200:300]:
            llm.eval([token])
        keeper.settle()
        assert keeper.held is not None
        assert keeper.held.n_prompt == len(prompt) < keeper.held.n_whole
        assert keeper.n_kept == 1
    keeper.close()


def in_memory(
    llm: Llama, folder: Path, n_bytes: int | None = 2**30, most: int = 9
) -> tuple[Keeper, list[list[int]]]:
    """A keeper and three conversations, of which the last one is in the context."""
    keeper, prompts = Keeper(llm, Shelf(folder, most, 2**30), n_bytes), []
    for seed in range(3):
        prompts.append(random_tokens(300, seed=seed))
        read(keeper, llm, prompts[-1])
    keeper.settle()
    return keeper, prompts


def known(keeper: Keeper, llm: Llama, prompts: list[list[int]], kept: Retention | None = KEPT) -> list[int]:
    """How much of each is there when it goes on."""
    n = []
    for prompt in prompts:
        keeper.prepare([*prompt, 1], kept)
        assert llm.input_ids[: llm.n_tokens].tolist() == prompt[: llm.n_tokens]
        n.append(llm.n_tokens)
        keeper.settle()
    return n


def test_what_waits_in_memory_needs_no_file(
    tiny_path: Path, load: Callable[..., Llama], tmp_path: Path
) -> None:
    llm = load(tiny_path, retention=KEPT)
    keeper, prompts = in_memory(llm, tmp_path)
    assert sessions(tmp_path) == set()
    masks = []
    for _ in range(2):
        for prompt in prompts:
            keeper.prepare([*prompt, 1], KEPT)
            assert (llm.n_tokens, llm.cache_stats().archive_tokens) == (300, 300)
            masks.append(llm.retention_mask())
            keeper.settle()
    for i, mask in enumerate(masks[:3]):
        assert np.array_equal(mask, masks[3 + i])
        assert all(not np.array_equal(mask, other) for other in masks[:i])
    assert (keeper.n_kept, sessions(tmp_path)) == (3, set())
    keeper.save_all()
    assert len(sessions(tmp_path)) == 3
    times = {path: path.stat().st_mtime_ns for path in sessions(tmp_path)}
    size = llm.cache_stats().archive_bytes
    assert known(keeper, llm, prompts) == [300] * 3
    assert llm.cache_stats().archive_bytes <= size
    keeper.close()
    assert len(sessions(tmp_path)) == 3
    assert all(path.stat().st_mtime_ns > time for path, time in times.items())  # used, not written
    llm.reset()
    assert known(Keeper(llm, Shelf(tmp_path, 9, 2**30)), llm, prompts) == [300] * 3


def test_no_more_waits_in_memory_than_a_full_context(
    tiny_path: Path, load: Callable[..., Llama], tmp_path: Path
) -> None:
    llm = load(tiny_path, retention=KEPT)
    keeper, prompts = in_memory(llm, tmp_path, n_bytes=None)
    for seed in range(3, 9):
        prompts.append(random_tokens(300, seed=seed))
        read(keeper, llm, prompts[-1])
        assert 0 < keeper.aside_bytes <= llm.cache_stats().full_bytes
    assert keeper.n_kept == 9
    assert len(sessions(tmp_path)) > 3
    assert known(keeper, llm, prompts) == [300] * 9
    keeper.close()


def test_stopping_drops_none_of_those_held(
    tiny_path: Path, load: Callable[..., Llama], tmp_path: Path
) -> None:
    """As many as may be, and the one in the context: all of them are there after a restart."""
    llm = load(tiny_path, retention=KEPT)
    keeper, prompts = in_memory(llm, tmp_path, most=2)
    assert keeper.n_kept == 3
    keeper.close()
    llm.reset()
    keeper = Keeper(llm, Shelf(tmp_path, 2, 2**30))
    assert known(keeper, llm, prompts) == [300] * 3
    keeper.close()


def test_what_memory_has_no_room_for_goes_to_files(
    tiny_path: Path, load: Callable[..., Llama], tmp_path: Path
) -> None:
    """The one used longest ago first, as what was kept of it."""
    llm = load(tiny_path, retention=KEPT)
    keeper, prompts = in_memory(llm, tmp_path)
    size = keeper.aside_bytes // 2
    keeper.close()
    for path in sessions(tmp_path):
        path.unlink()
    llm.reset()
    other = Retention(budget=64, archive="memory")
    keeper = Keeper(llm, Shelf(tmp_path, 9, 2**30), size * 3 // 2)
    keeper.prepare(prompts[0], other)
    llm.prefill(prompts[0])
    for prompt in prompts[1:]:
        keeper.prepare(prompt, KEPT)
        llm.prefill(prompt)
    (file,) = sessions(tmp_path)
    assert 0 < keeper.aside_bytes < size * 3 // 2
    header = read_header(file)
    assert header.retention == other
    assert header.messages[0]["tokens"] == prompts[0]
    assert known(keeper, llm, prompts) == [300] * 3
    keeper.prepare([*prompts[0], 1], other)
    assert llm.n_tokens == 300
    keeper.close()


@pytest.mark.parametrize("archive", [None, "file"])
def test_an_archive_elsewhere_costs_no_conversation(
    tiny_path: Path, load: Callable[..., Llama], tmp_path: Path, archive: str | None
) -> None:
    """Rows of what waits in memory are in the archive, which one request wants elsewhere."""
    llm = load(tiny_path, retention=KEPT)
    keeper, prompts = in_memory(llm, tmp_path / "sessions")
    other = Retention(budget=48, archive=None if archive is None else tmp_path / archive)
    fourth = random_tokens(300, seed=9)
    keeper.prepare(fourth, other)
    llm.prefill(fourth)
    keeper.settle()
    assert keeper.n_kept == 4
    assert known(keeper, llm, [*prompts, fourth]) == [300] * 3 + [300 if archive else 0]
    keeper.close()


def test_an_archive_that_moves_while_no_session_can_be_written(
    tiny_path: Path, load: Callable[..., Llama], tmp_path: Path
) -> None:
    """What waits goes on from what was kept, or from a session that has all rows."""
    llm = load(tiny_path, retention=KEPT)
    keeper, prompts = in_memory(llm, tmp_path)
    keeper.prepare([*prompts[0], 1], KEPT)
    keeper.save()
    longer = [*prompts[0], 1]
    llm.prefill(longer)
    with no_room_on_disk(1000):
        keeper.prepare(random_tokens(200, seed=9), Retention(budget=48))
    n_archived = []
    for prompt in prompts:
        keeper.prepare([*prompt, 1], KEPT)
        n_archived.append((llm.n_tokens, llm.cache_stats().archive_tokens))
        keeper.settle()
    assert n_archived == [(300, 300), (300, 0), (300, 0)]
    keeper.close()


def test_what_is_whole_waits_beside_an_archive_elsewhere(
    tiny_path: Path, load: Callable[..., Llama], tmp_path: Path
) -> None:
    """No session could be written when the archive came; once there is room, all are."""
    llm = load(tiny_path, retention=KEPT)
    keeper = Keeper(llm, Shelf(tmp_path, 9, 2**30), 2**30)
    whole, compacted = random_tokens(300, seed=1), random_tokens(300, seed=2)
    keeper.prepare(whole, None)
    llm.prefill(whole)
    with no_room_on_disk(1000):
        keeper.prepare(compacted, KEPT)
        llm.prefill(compacted)
        keeper.prepare(random_tokens(200, seed=3), KEPT)
    keeper.save_all()
    assert len(sessions(tmp_path)) == 2
    assert known(keeper, llm, [compacted]) == [300]
    assert known(keeper, llm, [whole], None) == [300]
    keeper.close()


def test_the_end_saves_what_can_be_saved(tiny_path: Path, load: Callable[..., Llama], tmp_path: Path) -> None:
    """Where the one in the context cannot, nor wait in memory."""
    llm = load(tiny_path, retention=KEPT)
    keeper = Keeper(llm, Shelf(tmp_path, 9, 700_000), 700_000)
    small, large = random_tokens(100, seed=1), random_tokens(900, seed=2)
    for prompt in (small, large):
        keeper.prepare(prompt, None)
        llm.prefill(prompt)
    keeper.save_all()
    assert sessions(tmp_path) == set()
    assert llm.n_tokens == 900
    keeper.close()
    (file,) = sessions(tmp_path)
    assert read_header(file).n_tokens == 100


def test_none_waits_in_memory_that_has_no_room(
    tiny_path: Path, load: Callable[..., Llama], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where its heads alone keep something, it is not copied."""
    kept = Retention(budget=48)
    llm = load(tiny_path, retention=kept)
    keeper = Keeper(llm, Shelf(tmp_path, 9, 2**30), 0)
    monkeypatch.setattr(llm, "save_state", lambda **_: pytest.fail("copied"))
    for seed in range(2):
        keeper.prepare(random_tokens(300, seed=seed), kept)
        llm.prefill(random_tokens(300, seed=seed))
    assert len(sessions(tmp_path)) == 1
    keeper.close()


def test_another_end_of_what_is_whole_in_another_archive(
    tiny_path: Path, load: Callable[..., Llama], tmp_path: Path
) -> None:
    """The beginning that both have is not read again, and the first one stays."""
    llm = load(tiny_path, retention=KEPT)
    keeper = Keeper(llm, Shelf(tmp_path, 9, 2**30), 2**30)
    begin, ends = random_tokens(600, seed=1), [random_tokens(60, seed=seed) for seed in (2, 3)]
    keeper.prepare(begin + ends[0], None)
    llm.prefill(begin + ends[0])
    keeper.prepare(begin + ends[1], KEPT)
    assert llm.input_ids[: llm.n_tokens].tolist()[:600] == begin
    llm.prefill(begin + ends[1])
    assert known(keeper, llm, [begin + ends[0]], None) == [660]
    keeper.close()


def test_lack_of_memory_loses_none_that_waits(
    tiny_path: Path, load: Callable[..., Llama], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = load(tiny_path, retention=KEPT)
    keeper, prompts = in_memory(llm, tmp_path)

    def fail(_: Any) -> None:
        llm.reset()
        raise OutOfMemoryError("no room for the cells")

    monkeypatch.setattr(llm, "load_state", fail)
    assert not keeper.put_away()
    keeper.save_all()
    with pytest.raises(OutOfMemoryError):
        keeper.prepare([*prompts[0], 1], KEPT)
    monkeypatch.setattr(keeper._asides, "_most_bytes", keeper.aside_bytes * 2 // 3)
    read(keeper, llm, random_tokens(100, seed=9))
    monkeypatch.undo()
    assert known(keeper, llm, prompts) == [300] * 3
    keeper.close()
    assert len(sessions(tmp_path)) == 4


def test_the_order_of_use_is_that_of_memory_and_folder(
    tiny_path: Path, load: Callable[..., Llama], tmp_path: Path
) -> None:
    """One that is too large for memory, and newer than those that wait there, is not the first to go."""
    llm = load(tiny_path, retention=KEPT)
    keeper, prompts = in_memory(llm, tmp_path, most=3)
    monkey = keeper._asides
    monkey._most_bytes = monkey.n_bytes * 5 // 4
    large, last = random_tokens(900, seed=8), random_tokens(100, seed=9)
    read(keeper, llm, large)
    read(keeper, llm, last)
    assert len(sessions(tmp_path)) == 1
    assert known(keeper, llm, [large, prompts[2], prompts[0]]) == [900, 300, 0]
    keeper.close()


def test_what_cannot_stay_is_not_written_again(
    tiny_path: Path, load: Callable[..., Llama], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While nobody asks: the folder has room for one, or for none but without its archive."""
    llm, saved = load(tiny_path, retention=KEPT), []
    monkeypatch.setattr(
        llm, "save_session", lambda *a, **k: (saved.append(a), Llama.save_session(llm, *a, **k))
    )
    for most_bytes, n in ((2**19, 1), (2**18, 3)):
        keeper = Keeper(llm, Shelf(tmp_path / str(n), 9, most_bytes), 2**30)
        for seed in range(3):
            read(keeper, llm, random_tokens(300, seed=seed))
        for _ in range(3):
            keeper.save_all()
            assert len(saved) == n
            assert len(sessions(tmp_path / str(n))) == n
        assert keeper.n_kept == 3
        keeper.close()
        llm.reset()
        saved.clear()


def test_no_more_wait_than_may_be_kept(tiny_path: Path, load: Callable[..., Llama], tmp_path: Path) -> None:
    llm = load(tiny_path, retention=KEPT)
    old = left(tmp_path, llm, random_tokens(200, seed=8), random_tokens(200, seed=9))
    keeper, prompts = in_memory(llm, tmp_path, most=2)
    assert keeper.n_kept == 3
    assert sessions(tmp_path) == set()
    assert len(old) == 2
    read(keeper, llm, random_tokens(300, seed=7))
    assert known(keeper, llm, [prompts[1], prompts[2], prompts[0]]) == [300, 300, 0]
    keeper.close()
    assert len(sessions(tmp_path)) == 2


def test_what_waits_in_memory_makes_room_for_an_archive(
    tiny_path: Path, load: Callable[..., Llama], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The conversation that is read keeps its archive, and no other is lost."""
    llm = load(tiny_path, retention=KEPT, kind=Served)
    assert isinstance(llm, Served)
    llm.keep(Shelf(tmp_path, 9, 2**30), 2**30)
    prompts = [random_tokens(300, seed=seed) for seed in range(3)]
    read, least = llm._compactor.read, 0

    def as_memory_allows(*args: Any) -> Any:
        if least and llm.cache_stats().archive_bytes > least:
            raise OutOfMemoryError("no room for the archive")
        return read(*args)

    monkeypatch.setattr(llm._compactor, "read", as_memory_allows)
    for prompt in prompts:
        with llm.answered(Asked(KEPT)):
            llm.create_completion(prompt, max_tokens=1)
        least = least or llm.cache_stats().archive_bytes
    assert llm.cache_stats().archive_tokens == 300
    assert len(sessions(tmp_path)) == 2
    keeper = llm.keeper
    assert keeper is not None
    assert (keeper.aside_bytes, keeper.n_kept) == (0, 3)
    least = 0
    assert known(keeper, llm, prompts) == [300] * 3
    assert keeper.put_away()
    assert not keeper.put_away()
    assert known(keeper, llm, prompts) == [300] * 3
    keeper.close()


def test_a_client_that_leaves_while_another_makes_room(
    tiny_path: Path, load: Callable[..., Llama], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = load(tiny_path, retention=KEPT)
    keeper, prompts = in_memory(llm, tmp_path)
    monkeypatch.setattr(keeper._asides, "_most_bytes", keeper.aside_bytes)
    stop, save = CancelToken(), llm.save_session

    def leave(*args: Any, **kwargs: Any) -> None:
        stop.cancel()
        save(*args, **kwargs)

    monkeypatch.setattr(llm, "save_session", leave)
    with stop, pytest.raises(Cancelled):
        keeper.prepare(random_tokens(300, seed=9), KEPT)
    monkeypatch.undo()
    assert sessions(tmp_path) == set()
    assert known(keeper, llm, prompts) == [300] * 3
    keeper.close()


def test_who_leaves_costs_no_other_its_conversation(
    tiny_path: Path, load: Callable[..., Llama], tmp_path: Path
) -> None:
    """The client goes while another's conversation is saved, or its own is loaded."""
    kept = Retention(budget=48, archive="memory")
    llm = load(tiny_path, retention=kept)
    keeper = Keeper(llm, Shelf(tmp_path, 4, 2**30))
    first, second = random_tokens(300, seed=1), random_tokens(300, seed=2)
    keeper.prepare(first, kept)
    llm.prefill(first)
    keeper.settle()

    def leave(tokens: list[int]) -> None:
        gone = CancelToken()
        gone.cancel()
        with gone, pytest.raises(Cancelled):
            keeper.prepare(tokens, kept)
        keeper.settle()

    leave(second)
    assert keeper.held is not None
    assert keeper.held.tokens.tolist() == first
    keeper.prepare(second, kept)
    llm.prefill(second)
    keeper.settle()
    leave(first)
    for tokens in (first, second):
        keeper.prepare([*tokens, 1], kept)
        assert llm.n_tokens == len(tokens)
        keeper.settle()
    keeper.close()


def test_a_client_that_leaves_while_another_conversation_is_saved(
    tiny: Callable[..., Path], load: Callable[..., Llama], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the context holds is still known to be there."""
    llm, tokens, stop = load(tiny(), retention=KEPT), random_tokens(300, seed=1), CancelToken()
    keeper = Keeper(llm, Shelf(tmp_path, 9, 2**30))
    read(keeper, llm, tokens)
    reset = llm.reset

    def left_before() -> None:
        stop.cancel()
        with stop:
            reset()

    monkeypatch.setattr(llm, "reset", left_before)
    with pytest.raises(Cancelled):
        read(keeper, llm, random_tokens(300, seed=2))
    monkeypatch.undo()
    assert llm.n_tokens == 300
    assert keeper.held is not None
    assert keeper.held.tokens.tolist() == tokens
    keeper.close()
