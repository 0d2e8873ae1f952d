"""Which model is loaded: one at a time, as llama-cpp-python's server has it, but with its conversations."""

from __future__ import annotations

import hashlib
import logging
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import Context
from pathlib import Path
from typing import Any, Final

import llama_cpp
from llama_cpp.server.model import LlamaProxy

from ..defaults import cache_folder, default_context, load_with_room
from ..devices import all_layers, set_aside
from ..errors import ArchiveError, ArgumentError, Cancelled, HeadKVError, ModelError
from ..forms import seed_of
from ..machine import memory_free
from .errors import Refusal
from .retaining import Settings, retention_of, usual_settings
from .served import Served
from .settings import ModelSettings, ServerSettings
from .shelf import InUse, Shelf
from .variables import tell

_logger = logging.getLogger("headkv_local.server")

_LOADING: Final = threading.Lock()  # of several apps in one process: what is swapped is swapped for all


class Models(LlamaProxy):  # type: ignore[misc]
    """Loads nothing until it is asked for the first time. To be called in one thread at a time."""

    def __init__(self, models: Sequence[ModelSettings], server: ServerSettings) -> None:
        """Raises ArgumentError for no model, or two of one name."""
        if not models:
            raise ArgumentError("there is no model: name a GGUF file, or list models in a --config-file")
        self._server = server
        self.settings = {one.alias: one for one in models}
        if len(self.settings) < len(models):
            raise ArgumentError("two models have the same name: give each its own model_alias")
        self.default = models[0].alias
        self.loaded: Served | None = None
        self.name: str | None = None
        self.contexts: dict[str, int] = {}
        """Tokens that the context of the loaded model has, by its name. May be read in any thread."""
        self.loading = False
        self.usual: Settings | None = None
        self.archive_file: str | None = None

    def known(self, model: str | None) -> str:
        """The name of the model that a request asks for. Raises Refusal for one that is not here."""
        name = self.default if model is None else model
        if name not in self.settings:
            names = ", ".join(self.settings)
            raise Refusal(
                404, f"The model `{name[:100]}` does not exist: there is {names}", "model_not_found", "model"
            )
        return name

    def __call__(self, model: str | None = None) -> Served:
        """The model of that name, loaded now if it is not. The one before it keeps its conversations."""
        name = self.known(model)
        if self.loaded is not None and self.name == name:
            return self.loaded
        self.free()
        self.loading = True
        try:
            return self._made(name)
        except Cancelled:
            raise
        except (HeadKVError, OSError, ValueError, AssertionError, ImportError) as error:
            reason = str(error) or type(error).__name__
            raise Refusal(503, f"{name} cannot be loaded: {reason}", "model_failed") from error
        finally:
            self.loading = False

    def _made(self, name: str) -> Served:
        settings = self.settings[name]
        shelf = self._shelf(name)
        try:
            self.archive_file = None if shelf is None else shelf.archive_file
            self.usual = usual_settings(settings, self.archive_file)
            llm = self._load_with_archive(settings)
            try:
                llm.keep(shelf, self._server.aside_bytes)
            except BaseException:
                llm.close()
                raise
        except BaseException:
            if shelf is not None:
                shelf.close()
            raise
        self.loaded, self.name = llm, name
        self.contexts[name] = llm.n_ctx()
        return llm

    def __iter__(self) -> Iterator[str]:
        return iter(self.settings)

    def save(self) -> None:
        """All conversations that are in memory, to their sessions."""
        if self.loaded is not None and self.loaded.keeper is not None:
            self.loaded.keeper.save_all()

    def free(self) -> None:
        llm, self.loaded, self.name = self.loaded, None, None
        self.contexts.clear()
        if llm is None:
            return
        try:
            if llm.keeper is not None:
                Context().run(llm.keeper.close)  # not under the request's token: its client may have left
        finally:
            llm.close()

    def _shelf(self, name: str) -> Shelf | None:
        server, settings = self._server, self.settings[name]
        if server.max_conversations == 0 or settings.embedding:
            return None  # a context for embeddings cannot be saved
        folder = _folder_of(name)
        if server.sessions is not None:
            where = Path(server.sessions).expanduser() / folder
            return Shelf(where, server.max_conversations, server.session_bytes)
        for number in range(1, 100):  # servers side by side have a folder each
            try:
                where = cache_folder() / "server" / (folder if number == 1 else f"{folder}-{number}")
                return Shelf(where, server.max_conversations, server.session_bytes)
            except InUse as error:
                refused = error
            except ArgumentError as error:
                _logger.warning("%s: each conversation is read anew (--sessions names another folder)", error)
                return None
        raise refused

    @staticmethod
    def _load(settings: ModelSettings, usual: Settings | None) -> Served:
        class Retaining(Served):
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                super().__init__(*args, retention=retention_of(usual), **kwargs)

        if settings.hf_model_repo_id is None and not Path(settings.model).is_file():
            raise ModelError(f"there is no model {settings.model}")
        n_ctx = default_context(settings.model) if settings.n_ctx is None else settings.n_ctx
        if settings.n_gpu_layers is None and (reason := set_aside(None)):  # else Llama says it
            _logger.warning(reason)
        n_gpu_layers = all_layers(settings.n_gpu_layers)
        told = settings.chat_template_kwargs
        chosen = settings.model_copy(
            update={"n_ctx": n_ctx, "n_gpu_layers": n_gpu_layers, "chat_template_kwargs": None}
        )
        with _LOADING, _swapped(llama_cpp, "Llama", Retaining):  # what stock makes of the settings
            llm: Served = LlamaProxy.load_llama_from_model_settings(chosen)
        llm.draws_seeds = seed_of(settings.seed) == llama_cpp.LLAMA_DEFAULT_SEED  # which is -1
        if told:  # stock's way hides the template
            tell(llm, told)
        return llm

    def _load_with_archive(self, settings: ModelSettings) -> Served:
        """That of "auto" is where there is room."""
        usual = self.usual
        nowhere_else = self.archive_file is None and memory_free() is None  # what it takes cannot be told
        if settings.archive != "auto" or usual is None or usual["archive"] is None or nowhere_else:
            return self._load(settings, usual)

        def move(llm: Served, where: str | None) -> None:
            llm.retention = retention_of(usual | {"archive": where})

        llm, where, reason = load_with_room(
            lambda where: self._load(settings, usual | {"archive": where}), move, self._file
        )
        if reason:
            _logger.warning("%s has no archive: %s", settings.alias, reason)
        elif where != "memory":
            _logger.info("the archive is in a file: memory has no room for that of a full context")
        self.usual = usual | {"archive": where}
        return llm

    @contextmanager
    def _file(self) -> Iterator[str]:
        if self.archive_file is None:
            raise ArchiveError(
                "memory has no room for it, and without conversations there is no folder for a file"
            )
        yield self.archive_file


def _folder_of(name: str) -> str:
    """Its own for each name: where that is no name of a folder, a hash tells it from others alike."""
    folder = re.sub(r"[^\w.-]", "_", name).lstrip(".").encode()[:100].decode(errors="ignore")
    if folder == name:
        return folder
    return f"{folder or 'model'}-{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"


@contextmanager
def _swapped(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
