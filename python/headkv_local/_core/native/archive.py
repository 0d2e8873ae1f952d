"""The archive: full K and V rows of prompts."""

from __future__ import annotations

from . import _call, _check, _functions, encoded, ffi, lib


def set_archive(ctx: int, where: str | None) -> None:
    """where: "memory", the path of a file, or None for no archive."""
    kinds = {None: lib.HEADKV_ARCHIVE_NONE, "memory": lib.HEADKV_ARCHIVE_MEMORY}
    path = ffi.NULL if where in kinds else encoded(str(where))
    _call("headkv_set_archive", ctx, kinds.get(where, lib.HEADKV_ARCHIVE_FILE), path)


def hold(ctx: int) -> int:
    """The archived rows of the compacted prompt stay, under a number above 0; 0 where there are none."""
    number = ffi.new("int32_t *")
    _call("headkv_hold_archived", ctx, number)
    return int(number[0])


def restore(ctx: int, number: int) -> None:
    """Rows that are held are those of the compacted prompt again."""
    _call("headkv_restore_archived", ctx, number)


def release(ctx: int, number: int) -> None:
    _call("headkv_release_archived", ctx, number)


def begin_small(on: bool) -> None:
    """Whether caches that this thread makes have few cells until their first prompt comes."""
    _check(_functions["headkv_begin_small"](on))
