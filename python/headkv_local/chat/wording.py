"""Errors in the words of the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headkv_local.chat.options import MEMORY, OFF, Options
from headkv_local.errors import EncoderError, HeadKVError, OutOfMemoryError, TemplateError, UnsupportedError

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
    if not in_chat:
        return f"{what} {session.llm.n_ctx()} tokens.{larger}"
    stay = " Its documents stay attached." if attached else ""
    without = " without them" if attached else ""
    return (
        f"{what} {session.llm.n_ctx()} tokens{taken}. It was not asked.{stay} /clear starts a new chat"
        f"{without}.{larger}"
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
    return "there is not enough memory"


def _on_gpu(options: Options) -> bool:
    from headkv_local.devices import all_layers, gpus  # imports the library

    return all_layers(options.gpu_layers) != 0 and bool(gpus())
