"""Conversations in turns on one model: each is its own, and reads only what is new."""

from __future__ import annotations

import os
import resource
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving import N_UBATCH, SIZES, Running, failing, serving, until

from headkv_local import Llama, Retention
from headkv_local.server.conversations import Conversation, choose

GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 20}
QUESTIONS = ("What was said?", "Say it in other words, please.", "And then?")


Chat = list[dict[str, str]]


def opening(name: str) -> Chat:
    return [{"role": "system", "content": f"This is {name}. " + f"The {name} has much to say. " * 12}]


def ask(server: Running, chat: Chat, question: str, **extra: Any) -> Any:
    """Ask, and put the answer into the chat."""
    chat.append({"role": "user", "content": question})
    with server.client() as client:
        reply = client.chat.completions.create(model="tiny", messages=chat, **GREEDY, extra_body=extra)  # type: ignore[call-overload]
    chat.append({"role": "assistant", "content": reply.choices[0].message.content})
    return reply.usage


def model(tiny: Callable[..., Path], arch: str) -> tuple[Any, ...]:
    return (tiny(arch=arch), "--alias", "tiny", *SIZES)


IN_MEMORY = ("--aside", "64MiB")
IN_FILES = ("--aside", 0)
"""No conversation waits in memory: each that leaves the context goes to its session."""


@pytest.mark.parametrize("arch", ["llama", "gemma3", "qwen35"])
@pytest.mark.parametrize(
    "aside", [IN_MEMORY, IN_FILES, ("--aside", "1100KiB")], ids=["memory", "files", "both"]
)
def test_conversations_in_turns(
    arch: str, aside: tuple[Any, ...], tiny: Callable[..., Path], load: Callable[..., Llama], tmp_path: Path
) -> None:
    """Also over a restart."""
    chats = {name: opening(name) for name in ("harbour", "forest", "castle", "market")}
    n_prompt: dict[str, int] = {}
    for restart in (False, True):
        with serving(tmp_path, *model(tiny, arch), *aside) as server:
            for question in QUESTIONS[2:] if restart else QUESTIONS[:2]:
                for name, chat in chats.items():
                    usage = ask(server, chat, question)
                    held = n_prompt.get(name, 0)
                    assert usage.prompt_tokens_details.cached_tokens >= held
                    n_prompt[name] = usage.prompt_tokens
            assert server.metric("headkv_conversations") == 4
            assert (server.metric("headkv_aside_bytes") > 0) is (aside != IN_FILES)
            n_files = len(list((tmp_path / "sessions" / "tiny").glob("*.session")))
            assert restart or (n_files == 0) is (aside == IN_MEMORY)
            server.stop()
        assert len(list((tmp_path / "sessions" / "tiny").glob("*.session"))) == 4
    require_right(chats.values(), load, tiny(arch=arch))


def require_right(chats: Iterable[Chat], load: Callable[..., Llama], path: Path) -> None:
    """Each answer is that of a Llama that has had this conversation alone."""
    for chat in chats:
        alone = load(path, n_ctx=2048, n_ubatch=N_UBATCH, retention=Retention(budget=48, archive="memory"))
        for end in range(2, len(chat), 2):
            reply = alone.create_chat_completion(chat[:end], **GREEDY, repeat_penalty=1.1)  # type: ignore[arg-type]
            assert reply["choices"][0]["message"]["content"] == chat[end]["content"]


FILL = (
    "The harbour is on the east side of the bay. Fishing boats leave before sunrise and come back at noon. "
    "The market opens at nine. Visitors walk along the wall and watch the ferries. In winter the wind is "
    "strong and few people come. "
)
FACTS = {"Petrel": "74", "Albatross": "31", "Kestrel": "58", "Heron": "63"}


def test_each_has_its_own_facts(smollm2: Path, tmp_path: Path) -> None:
    """Of texts that begin alike; the server is started anew between the questions."""
    chats = {}
    for boat, channel in FACTS.items():
        text = f"{FILL}The lifeboat is called the {boat}. {FILL}"
        text += f"The harbour listens on radio channel {channel}. "
        chats[boat] = [{"role": "system", "content": f"Answer from this text. {text}"}]
    arguments = (smollm2, "--alias", "tiny", "--ctx", 1024, "--budget", 128)
    for question, again in (
        ("What is the lifeboat called?", False),
        ("On which radio channel does the harbour listen?", True),
    ):
        with serving(tmp_path, *arguments) as server:
            for boat, chat in chats.items():
                usage = ask(server, chat, question)
                assert (FACTS[boat] if again else boat) in chat[-1]["content"]
                if again:  # its new tokens alone: the last answer, and the question
                    assert usage.prompt_tokens - usage.prompt_tokens_details.cached_tokens < 50
            server.stop()


def test_an_edited_message_leaves_the_conversation_as_it_was(
    tiny: Callable[..., Path], tmp_path: Path
) -> None:
    with serving(tmp_path, *model(tiny, "llama")) as server:
        chat = opening("harbour")
        first = ask(server, chat, QUESTIONS[0]).prompt_tokens
        edited = chat[:1]
        usage = ask(server, edited, "What of the sea, of the ships, and of the people who live there?")
        assert 0 < usage.prompt_tokens_details.cached_tokens < first
        assert ask(server, chat, QUESTIONS[1]).prompt_tokens_details.cached_tokens >= first
        assert server.metric("headkv_conversations") == 2


def test_the_request_says_what_is_kept(tiny: Callable[..., Path], tmp_path: Path) -> None:
    """What is whole, or in an archive, goes on with another budget; what is gone is read anew."""
    with serving(tmp_path, *model(tiny, "llama")) as server:

        def kept() -> float:
            return server.metric("headkv_kept_share")

        chat = opening("harbour")
        first = ask(server, chat, QUESTIONS[0]).prompt_tokens
        small = kept()
        assert 0 < small < 0.5
        usage = ask(server, chat, QUESTIONS[1], budget="80%")
        assert usage.prompt_tokens_details.cached_tokens >= first
        assert 0.7 < kept() <= 0.81
        usage = ask(server, chat, QUESTIONS[2], budget="full")
        assert usage.prompt_tokens_details.cached_tokens == 0
        assert kept() == 1
        whole = usage.prompt_tokens
        usage = ask(server, chat, QUESTIONS[0], archive="file", scores="uniform")
        assert usage.prompt_tokens_details.cached_tokens >= whole
        assert kept() == pytest.approx(48 / usage.prompt_tokens, abs=0.01)
        assert server.metric('headkv_cache_bytes{model="tiny",kind="archive"}') > 0
        assert list((tmp_path / "sessions" / "tiny").glob("archive-*"))
        usage = ask(server, chat, QUESTIONS[1], archive="off")
        assert usage.prompt_tokens_details.cached_tokens == 0
        server.stop()
    assert not list((tmp_path / "sessions" / "tiny").glob("archive-*"))


def test_a_server_that_is_killed(tiny: Callable[..., Path], tmp_path: Path) -> None:
    """What was saved while nobody asked is still there."""
    chat = opening("harbour")
    with serving(tmp_path, *model(tiny, "llama"), "--save-after", 0.1) as server:
        first = ask(server, chat, QUESTIONS[0]).prompt_tokens
        until(lambda: any((tmp_path / "sessions" / "tiny").glob("*.session")), "a session")
        server.process.kill()
    left = tmp_path / "sessions" / "tiny" / "headkv-a1B2c3"  # a session that was being written
    left.touch()
    with serving(tmp_path, *model(tiny, "llama")) as server:
        assert ask(server, chat, QUESTIONS[1]).prompt_tokens_details.cached_tokens >= first
    assert not left.exists()


def test_a_damaged_session_is_read_anew(tiny: Callable[..., Path], tmp_path: Path) -> None:
    chats = [opening("harbour"), opening("forest")]
    with serving(tmp_path, *model(tiny, "llama")) as server:
        for chat in chats:
            ask(server, chat, QUESTIONS[0])
        server.stop()
    files = list((tmp_path / "sessions" / "tiny").glob("*.session"))
    assert len(files) == 2
    cut, changed = (bytearray(file.read_bytes()) for file in files)
    changed[-30] ^= 1
    for file, data in zip(files, (cut[:40], changed), strict=True):
        file.write_bytes(data)
    with serving(tmp_path, *model(tiny, "llama")) as server:
        for chat in chats:
            assert ask(server, chat, QUESTIONS[1]).prompt_tokens_details.cached_tokens == 0
        said = server.log.read_text().splitlines()
        assert [line for line in said if "cut short" in line or "cannot have" in line]
        assert [line for line in said if "read anew: the session" in line and "checksum" in line]
        server.stop()
    assert not any(file.exists() for file in files)


def test_a_full_disk_loses_no_answer(tiny: Callable[..., Path], tmp_path: Path) -> None:
    """Files may have 30 KiB here, and a session has more, even without its archive."""
    arguments = (*model(tiny, "llama"), *IN_FILES)
    with serving(tmp_path, *arguments, within=("prlimit", "--fsize=30720")) as server:
        chats = [opening("harbour"), opening("forest")]
        for question in QUESTIONS[:2]:
            for chat in chats:
                assert ask(server, chat, question).prompt_tokens_details.cached_tokens == 0
        assert "is not kept: " in server.log.read_text()
        assert server.metric("headkv_conversations") == 1
    assert [file.name for file in (tmp_path / "sessions" / "tiny").iterdir()] == ["lock"]


def test_a_disk_that_fills_up_keeps_what_was_saved(tiny: Callable[..., Path], tmp_path: Path) -> None:
    """What the sessions held when there was room is not read again."""
    with serving(tmp_path, *model(tiny, "llama"), *IN_FILES, "--save-after", 0.1) as server:
        chats = [opening("harbour"), opening("forest")]
        folder = tmp_path / "sessions" / "tiny"
        for n, chat in enumerate(chats, start=1):
            ask(server, chat, QUESTIONS[0])
            until(lambda n=n: len(list(folder.glob("*.session"))) == n, "a session", 30)  # type: ignore[misc]
        saved = {file: file.read_bytes() for file in folder.glob("*.session")}
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (100 << 10, 100 << 10))
        for question in QUESTIONS[1:]:
            for chat in chats:
                assert ask(server, chat, question).prompt_tokens_details.cached_tokens > 0
        assert "is not kept: " in server.log.read_text()
        assert server.metric("headkv_conversations") == 2
        assert {file: file.read_bytes() for file in folder.glob("*.session")} == saved
        server.stop()


def test_a_disk_without_room_for_the_archive_keeps_the_session(
    tiny: Callable[..., Path], tmp_path: Path
) -> None:
    arguments = (*model(tiny, "llama"), "--archive", "file", "--save-after", 0.1)
    with serving(tmp_path, *arguments) as server:
        chats = [opening("harbour"), opening("forest")]
        folder = tmp_path / "sessions" / "tiny"
        for n, chat in enumerate(chats, start=1):
            ask(server, chat, QUESTIONS[0])
            until(lambda n=n: len(list(folder.glob("*.session"))) == n, "a session", 30)  # type: ignore[misc]

        def room(n_bytes: int) -> None:
            most = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (n_bytes, most))

        room(4096)
        assert ask(server, list(chats[0]), QUESTIONS[1]).prompt_tokens_details.cached_tokens > 100
        assert server.log.read_text().count("a conversation goes on without its archive: ") == 1
        ask(server, opening("castle"), QUESTIONS[0])
        assert server.log.read_text().count("a conversation goes on without its archive: ") == 2
        room(1 << 30)
        for chat in chats:
            assert ask(server, chat, QUESTIONS[1]).prompt_tokens_details.cached_tokens > 100
        server.stop()


def test_a_conversation_outlives_its_archive(tiny: Callable[..., Path], tmp_path: Path) -> None:
    """It goes on from what is kept, also when it comes back from its session. The next one has an archive."""
    arguments = (*model(tiny, "llama"), "--archive", "file", "--save-after", 0)
    with serving(tmp_path, *arguments) as server:
        chats = [opening(name) for name in ("harbour", "forest", "castle", "market")]
        folder = tmp_path / "sessions" / "tiny"

        def known(i: int, question: str) -> int:
            return int(ask(server, chats[i], question).prompt_tokens_details.cached_tokens)

        def cut_short() -> None:
            (file,) = folder.glob("archive-*")
            os.truncate(file, 4096)

        def n_lost() -> int:
            return server.log.read_text().count("a conversation goes on without its archive: ")

        known(0, QUESTIONS[0])
        cut_short()
        assert known(0, QUESTIONS[1]) > 100
        assert known(0, QUESTIONS[2]) > 100
        assert n_lost() == 1
        assert not list(folder.glob("archive-*"))
        known(1, QUESTIONS[0])
        cut_short()
        assert known(0, QUESTIONS[0]) > 100
        assert known(1, QUESTIONS[1]) > 100
        assert n_lost() == 1
        known(2, QUESTIONS[0])
        cut_short()
        with server.client() as client:
            chats[2].append({"role": "user", "content": QUESTIONS[1]})
            assert list(
                client.chat.completions.create(model="tiny", messages=chats[2], stream=True, **GREEDY)
            )
        assert n_lost() == 2
        shutil.rmtree(folder)
        folder.touch()
        known(3, QUESTIONS[0])  # of which the archive cannot be made
        assert known(3, QUESTIONS[1]) > 100
        assert n_lost() == 3
        server.stop()


@pytest.mark.parametrize("aside", [IN_MEMORY, IN_FILES], ids=["memory", "files"])
def test_a_folder_that_goes_loses_no_answer(
    aside: tuple[Any, ...], tiny: Callable[..., Path], load: Callable[..., Llama], tmp_path: Path
) -> None:
    """Removed, and a file in its place; each time another one is made as soon as that can be.

    What is in memory stays known.
    """
    in_memory = aside == IN_MEMORY
    chats = [opening(name) for name in ("harbour", "forest", "castle")]
    arguments, folder = model(tiny, "llama"), tmp_path / "sessions" / "tiny"
    with serving(tmp_path, *arguments, *aside, "--save-after", 0.1) as server:

        def asked(question: str) -> list[int]:
            """What of each chat was known, once the last one is saved too."""
            known = [ask(server, chat, question).prompt_tokens_details.cached_tokens for chat in chats]
            if not folder.is_file():
                until(lambda: len(list(folder.glob("*.session"))) == 3, "three sessions", 30)
            return known

        def said(words: str) -> int:
            return sum(words in line for line in server.log.read_text().splitlines())

        asked(QUESTIONS[0])
        shutil.rmtree(folder.parent)
        assert [n > 0 for n in asked(QUESTIONS[1])] == [in_memory, in_memory, True]
        assert said(f"the sessions in {folder} cannot be had any more: ") == 1
        assert all(asked(QUESTIONS[2]))
        assert (
            "another server keeps its sessions"
            in failing(tmp_path, *arguments, "--sessions", folder.parent)[1]
        )
        shutil.rmtree(folder)
        folder.touch()
        assert [n > 0 for n in asked(QUESTIONS[0])] == [in_memory] * 3
        complaint = f"tokens is not kept: sessions cannot be kept in {folder}: it is no folder"
        until(lambda: said(complaint) >= 3, "complaints", 30)
        assert server.metric("headkv_conversations") == (3 if in_memory else 1)
        folder.unlink()
        asked(QUESTIONS[1])
        assert all(asked(QUESTIONS[2]))
        server.stop()
    require_right(chats, load, tiny(arch="llama"))


def test_those_used_longest_ago_go(tiny: Callable[..., Path], tmp_path: Path) -> None:
    with serving(tmp_path, *model(tiny, "llama"), "--max-conversations", 2) as server:
        chats = [opening(name) for name in ("harbour", "forest", "castle", "market")]
        for chat in chats:
            ask(server, chat, QUESTIONS[0])
        assert server.metric("headkv_conversations") == 3  # with the one in the context
        assert ask(server, chats[2], QUESTIONS[1]).prompt_tokens_details.cached_tokens > 0
        assert ask(server, chats[0], QUESTIONS[1]).prompt_tokens_details.cached_tokens < 60


def conversation(tokens: str, n_prompt: int, **fields: Any) -> Conversation:
    return Conversation(
        np.frombuffer(tokens.encode(), np.uint8).astype(np.int32), n_prompt, n_prompt, **fields
    )


def test_the_one_with_the_longest_common_beginning_is_chosen() -> None:
    short, long = conversation("a" * 40 + "b" * 40, 60), conversation("a" * 100, 90)
    other = conversation("c" * 10 + "d", 8)
    there = [short, long, other]

    def chosen(text: str, held: Conversation | None = None) -> Any:
        prompt = np.frombuffer(text.encode(), np.uint8).astype(np.int32)
        return choose(there, held, prompt, None, True)

    assert chosen("a" * 200) == (long, 100)
    assert chosen("a" * 40 + "b" * 60) == (short, 80)
    assert chosen("c" * 10 + "e") == (other, 10)  # it goes on, however short it is
    assert chosen("a" * 30) is None  # not worth it
    assert chosen("a" * 60, held=long) == (long, 60)


def test_what_is_gone_is_not_gone_back_to() -> None:
    kept = Retention(budget=48)
    one = conversation("a" * 100, 90, compacted=True, retention=kept)
    prompt = np.frombuffer(("a" * 80 + "b" * 20).encode(), np.uint8).astype(np.int32)
    assert choose([one], one, prompt, kept, True) is None
    longer = np.frombuffer(("a" * 95 + "b" * 20).encode(), np.uint8).astype(np.int32)
    assert choose([one], one, longer, kept, True) == (one, 95)
    assert choose([one], one, longer, Retention(budget=64), True) is None
