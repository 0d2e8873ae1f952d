"""Session files: the native library writes and reads them. headkv-session.h has what the fields mean."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ...errors import SessionError, UnsupportedError
from . import _call, _check, _functions, encoded, ffi, text_of

_WHOLE = ("n_ctx", "n_batch", "n_ubatch", "type_k", "type_v")
_REAL = ("rope_freq_base", "rope_freq_scale")

Row = npt.NDArray[np.float32]  # (n_vocab,)


class About(NamedTuple):
    """What a session says of itself."""

    model_id: str
    model_name: str
    model_path: str
    header: bytes  # the caller's own text
    n_tokens: int
    n_prompt: int
    n_archived: int
    context: dict[str, Any]  # arguments of llama.cpp's context


class Told(NamedTuple):
    """What a session that is written is to say of itself; the library knows the rest."""

    model_id: str
    model_path: str
    header: bytes
    n_prompt: int


class Held(NamedTuple):
    """What a session holds beside what the context does."""

    tokens: npt.NDArray[np.int32]  # (n_tokens,)
    logits: Row | None  # of the last token
    prompt_logits: Row | None  # of the prompt's last token
    prompt_state: npt.NDArray[np.uint8] | None  # of recurrent layers there


def rows_id(ctx: int) -> int | None:
    """Of what rows depend on beside tokens, model and adapters; None for a context that is not ours."""
    found = ffi.new("uint64_t *")
    with suppress(UnsupportedError):
        _call("headkv_get_rows_id", ctx, found)
        return int(found[0])
    return None


def write(ctx: int, path: str, told: Told, held: Held, light: bool) -> None:
    raw = ffi.new("struct headkv_session *")
    texts = (told.model_id.encode(), encoded(told.model_path), told.header)
    kept = [ffi.new("char[]", text) for text in texts]
    raw.model_id, raw.model_path, raw.header = kept
    raw.tokens, raw.n_tokens = ffi.from_buffer("int32_t[]", held.tokens), len(held.tokens)
    raw.n_prompt, raw.light = told.n_prompt, light
    if held.logits is not None:
        raw.logits = ffi.from_buffer("float[]", held.logits)
    if held.prompt_logits is not None:
        raw.prompt_logits = ffi.from_buffer("float[]", held.prompt_logits)
    if held.prompt_state is not None:
        raw.prompt_state, raw.n_prompt_state = ffi.from_buffer(held.prompt_state), len(held.prompt_state)
    _call("headkv_session_save", ctx, encoded(path), raw, ffi.sizeof("struct headkv_session"))


class SessionFile:
    """A session that is open until its block is left. SessionError for what is none."""

    def __init__(self, path: str) -> None:
        self.path = path
        handle = ffi.new("struct headkv_session_file **")
        with self._telling_damage():
            _check(_functions["headkv_session_open"](encoded(path), handle))
        self._raw = ffi.gc(handle[0], _functions["headkv_session_close"])
        said = self._struct()
        real = {name: float(getattr(said, name)) for name in _REAL}
        self.about = About(
            text_of(said.model_id),
            text_of(said.model_name),
            os.fsdecode(ffi.string(said.model_path)),
            bytes(ffi.string(said.header)),
            int(said.n_tokens),
            int(said.n_prompt),
            int(said.n_archived),
            {name: int(getattr(said, name)) for name in _WHOLE}
            | {name: value for name, value in real.items() if value != 0},
        )

    def __enter__(self) -> SessionFile:
        return self

    def __exit__(self, *_: object) -> None:
        ffi.release(self._raw)

    def load(self, ctx: int, model_id: str, n_vocab: int) -> Held:
        """Into the context."""
        with self._telling_damage():
            _call("headkv_session_load", ctx, self._raw, model_id.encode())
        raw = self._struct()

        def copied(pointer: Any, n: int, kind: type[np.generic]) -> Any:
            return None if pointer == ffi.NULL else np.frombuffer(ffi.buffer(pointer, n), kind).copy()

        return Held(
            copied(raw.tokens, 4 * raw.n_tokens, np.int32),
            copied(raw.logits, 4 * n_vocab, np.float32),
            copied(raw.prompt_logits, 4 * n_vocab, np.float32),
            copied(raw.prompt_state, raw.n_prompt_state, np.uint8),
        )

    @contextmanager
    def _telling_damage(self) -> Iterator[None]:
        """The library has one code for all that is wrong with a session, and says the rest in words."""
        try:
            yield
        except SessionError as error:
            name = os.fsencode(self.path).decode("utf-8", errors="replace")
            error.damaged = str(error).startswith(f"the session {name} is damaged: ")
            raise

    def _struct(self) -> Any:
        raw = ffi.new("struct headkv_session *")
        _check(_functions["headkv_session_get"](self._raw, raw, ffi.sizeof("struct headkv_session")))
        return raw
