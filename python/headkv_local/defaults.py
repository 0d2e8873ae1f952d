"""What tools take where their users leave it open: a context, memory for an archive, a folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from .errors import ArchiveError, LoadMemoryError, UnsupportedError
from .machine import memory_free, memory_total
from .models import token_bytes, trained_context
from .settings import MAX_CTX_BYTES

if TYPE_CHECKING:
    from .llama import Llama
    from .retention import Retention

AnyLlama = TypeVar("AnyLlama", bound="Llama")

FALLBACK_CTX: Final = 4096
"""Tokens of a context for a file that does not say what its model was trained for."""

_SHARE: Final = 2  # an archive in memory may take one part in so many of what is free


def default_context(path: str) -> int:
    """Tokens of a context for the model in this file; FALLBACK_CTX for one that cannot be read."""
    trained, cost, there = trained_context(path), token_bytes(path), memory_total()
    if there is not None and cost > 0:
        there -= os.path.getsize(path)
    return bounded_context(trained, cost, there)


def bounded_context(trained: int, cost: int, free: int | None = None) -> int:
    """What the model was trained for, or as many tokens as MAX_CTX_BYTES of full cache hold.

    cost: bytes per token; 0, as trained, where that is not known. free: bytes of memory besides the weights,
    None where that is not known; the cache takes half of them at most.
    """
    if trained <= 0 or cost <= 0:
        return FALLBACK_CTX
    most = MAX_CTX_BYTES if free is None else min(MAX_CTX_BYTES, free // 2)
    return max(min(trained, most // cost), 1)


def archive_fits(llm: Llama) -> bool:
    """Whether the archive of a full context takes no more than half of the memory that is free.

    True for a context that can have none.
    """
    try:
        shape = llm.shape
    except UnsupportedError:
        return True
    free = memory_free()
    return free is not None and _SHARE * llm.n_ctx() * shape.n_heads * shape.row_bytes <= free


def load_with_room(
    load: Callable[[str | None], AnyLlama],
    move: Callable[[AnyLlama, str | None], None],
    file: Callable[[], AbstractContextManager[str]],
) -> tuple[AnyLlama, str | None, str]:
    """A model whose archive is in memory where there is room, else in a file, else nowhere.

    load: loads it with its archive there, as Retention takes it. move: has a loaded one keep its archive
    there. file: has the path of a file while that is made; raises OSError or RuntimeError where none can be.
    Returns it, where its archive is, and why it has none, "" where it has one. Raises what load raises.
    """
    try:
        llm = load("memory")
    except LoadMemoryError as error:
        if error.setting != "n_ctx":
            raise
        return _in_file(load, file)

    try:
        return llm, *find_room(llm, move, file)
    except BaseException:
        llm.close()
        raise


def find_room(
    llm: AnyLlama,
    move: Callable[[AnyLlama, str | None], None],
    file: Callable[[], AbstractContextManager[str]],
) -> tuple[str | None, str]:
    """Have a loaded model's archive in memory where there is room, else in a file, else nowhere.

    As load_with_room(), which says what is given and returned.
    """

    def put(where: str | None) -> AnyLlama:
        move(llm, where)
        return llm

    if not archive_fits(llm):
        return _in_file(put, file)[1:]
    put("memory")
    return "memory", ""


def _in_file(
    put: Callable[[str | None], AnyLlama], file: Callable[[], AbstractContextManager[str]]
) -> tuple[AnyLlama, str | None, str]:
    try:
        with file() as path:
            return put(path), path, ""
    except (OSError, RuntimeError) as error:  # an ArchiveError; no folder; no home for one
        return put(None), None, str(error)


def may_be_of_archive(error: BaseException, retention: Retention | None) -> bool:
    """Whether what failed may be the archive of this retention: its file, or the memory that it takes."""
    if retention is None or retention.archive is None:
        return False
    return isinstance(error, ArchiveError) or (
        isinstance(error, MemoryError) and retention.archive == "memory"
    )


def cache_folder() -> Path:
    """Where files of ours go that nobody has named. Raises RuntimeError where there is no home."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    # as the specification of these folders says, a relative path counts as none
    return (Path(home) if os.path.isabs(home) else Path.home() / ".cache") / "headkv-local"
