"""Errors in the words of the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headkv_local.chat.options import MEMORY, Options
from headkv_local.chat.render import counted
from headkv_local.errors import (
    EncoderError,
    HeadKVError,
    LoadMemoryError,
    OutOfMemoryError,
    TemplateError,
    UnsupportedError,
)
from headkv_local.settings import OFF

if TYPE_CHECKING:
    from headkv_local.chat.session import Session


def sentence(error: Exception, options: Options) -> str:
    """What went wrong and what the user can change."""
    if isinstance(error, MemoryError):
        return _no_memory(error, options)
    runs_whole = isinstance(error, UnsupportedError) and not isinstance(error, EncoderError)
    if runs_whole and options.budget is not None:
        return f"{error}; --budget full runs it on the whole cache"
    if isinstance(error, TemplateError):
        return f"{error.args[0]}; another file of this model may bring one that works"
    if isinstance(error, HeadKVError):
        return str(error)
    return f"internal, {type(error).__name__}: {error}"


def no_room(session: Session, in_chat: bool) -> str:
    """A question that the context has no room for."""
    attached = bool(session.documents)
    what = f"this question{' with its documents' * attached} and an answer do not fit into the context of"
    taken = f"; the chat so far takes {session.used_tokens}" if session.turns else ""
    larger = "" if session.turns else " A larger --ctx at the start makes room."
    system = session.system_tokens
    if not session.turns and system > session.llm.n_ctx() // 2:  # whatever is asked
        without = ' It was not asked. /system "" goes on without it.' if in_chat else ""
        return f"{what} {session.llm.n_ctx()} tokens: the system message takes {system}.{without}{larger}"
    if not in_chat:
        return f"{what} {session.llm.n_ctx()} tokens.{larger}"
    stay = " Its documents stay attached." if attached else ""
    without = " without them" if attached else ""
    return (
        f"{what} {session.llm.n_ctx()} tokens{taken}. It was not asked.{stay} /clear starts a new chat"
        f"{without}.{larger}"
    )


def no_room_for(what: str, tokens: int, exact: bool, room: int, session: Session, n_before: int = 0) -> str:
    """A document or a system message of so many tokens, behind so many others that come with it."""
    trained = session.llm.trained_tokens
    behind, advice = "", "a larger --ctx at the start makes room"
    if n_before:
        behind = f" after {counted(n_before, 'other')}"
        advice = "leave some out, or give a larger --ctx at the start"
    elif 0 < trained < tokens:
        advice = f"the model was trained for {trained} tokens, so give it less text"
    return (
        f"{what} has {'' if exact else 'about '}{tokens} tokens, and the context "
        f"of {session.llm.n_ctx()} has room for {room}{behind}: {advice}"
    )


def _no_memory(error: MemoryError, options: Options) -> str:
    setting = error.setting if isinstance(error, OutOfMemoryError) else None
    if setting == "n_gpu_layers":
        return (
            "there is not enough memory for the model on the GPU: start with fewer --gpu-layers, or use a "
            "smaller quantization"
        )
    if setting == "n_ctx":
        of = f" of {options.ctx} tokens" if options.ctx else ""
        fewer = ", or with fewer --gpu-layers" if _on_gpu(options) else ""
        stays = options.budget is not None and options.archive in (MEMORY, OFF)
        file = ", or with an archive in a file (--archive auto)" if stays else ""
        return f"there is not enough memory for a context{of}: start with a smaller --ctx{fewer}{file}"
    if isinstance(error, LoadMemoryError):
        return "there is not enough memory: give --ctx a number of tokens, or use a smaller quantization"
    return "there is not enough memory"


def _on_gpu(options: Options) -> bool:
    from headkv_local.devices import all_layers, gpus  # imports the library

    return all_layers(options.gpu_layers) != 0 and bool(gpus())
