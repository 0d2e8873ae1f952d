"""/model: the chat goes on with another model."""

from __future__ import annotations

import os
from dataclasses import replace

from headkv_local.chat.archive import load_with_archive
from headkv_local.chat.info import notes
from headkv_local.chat.keeping import Keeper
from headkv_local.chat.model import load_model
from headkv_local.chat.options import AUTO
from headkv_local.chat.render import counted
from headkv_local.chat.session import Session
from headkv_local.chat.signatures import is_no_model, is_session
from headkv_local.chat.worker import interrupts
from headkv_local.errors import ModelError


def switch_model(session: Session, path: str, keeper: Keeper) -> list[str]:
    """Load the model at `path` and go on with it. Returns what the user should know.

    The model before stays until then, so both have to fit. With --session the chat is saved before. Raises
    HeadKVError, and the chat is as it was.
    """
    if is_no_model(path):
        meant = "/load goes on with a session" if is_session(path) else "a document is given with /file"
        raise ModelError(f"'{path}' is no GGUF model; {meant}")
    keeper.keep()  # once another model has it, nothing of what was read is there
    options = session.options.having({"model": os.path.abspath(path)}, "/model")
    # a file that is named is in use until the model before has gone
    meanwhile = replace(options, archive=AUTO) if session.archive.is_named else options
    llm, archive = load_with_archive(lambda where: load_model(path, options, where), meanwhile)
    try:
        with interrupts(lambda: None):  # a model is here as a whole, or the one before it
            session.go_on_with(llm, archive, options)
    except BaseException:
        if session.llm is not llm:
            llm.close()
        raise
    anew = f" The chat of {counted(session.turns, 'turn')} is read anew with your next question."
    now = f"{llm.file_name}, context {llm.n_ctx()} tokens.{anew if session.turns else ''}"
    return [now, *notes(session)]
