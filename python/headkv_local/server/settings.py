"""Settings of the server and of its models: llama-cpp-python's own, and those of this package."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final

from llama_cpp.server import settings as stock
from pydantic import BeforeValidator, Field, ValidationError, model_validator
from pydantic_settings import SettingsConfigDict

from ..errors import ArgumentError
from ..settings import (
    ADVANCED,
    DEFAULT_BUDGET,
    INT32_MAX,
    MAX_CTX_BYTES,
    given,
    parse_budget,
)
from .environment import PREFIX, FromEnvironment, by_setting
from .fields import Fold, Observe, Size, Threads, context_of, off_of
from .network import require_origin
from .retaining import Budget, check_budget, require_possible
from .variables import Variables

_CONFIG = SettingsConfigDict(env_prefix=PREFIX, protected_namespaces=(), extra="forbid")


_TYPES: Final = "by ggml's number: 1 f16, 30 bf16, 8 q8_0, 2 q4_0"
_DRAFT: Final = "prompt-lookup-decoding"  # stock makes it of any name
_CONFIG_FORMAT: Final = "hf-tokenizer-config"


class ModelSettings(FromEnvironment, stock.ModelSettings):  # type: ignore[misc]
    """Of one model. Where stock's defaults suit a server without retention they are others here."""

    model_config = _CONFIG

    # defaults of ours for settings of llama-cpp-python
    n_ctx: Annotated[int | str | None, BeforeValidator(context_of)] = Field(
        default=None,
        description='Tokens that a conversation may have; 0: what the model was trained for, "auto": as much '
        "of that as memory has room for. Left out: what it was trained for, but no more than "
        f"{MAX_CTX_BYTES >> 30} GiB of full cache, nor half of the memory beside the weights.",
    )
    n_gpu_layers: int | None = Field(
        default=None,
        ge=-1,
        description="Layers on a GPU, each with its share of the cache; -1: all. Left out: all, if there is "
        "a GPU.",
    )
    n_threads: Threads = Field(
        default=None, description="CPU threads; -1: all. Left out: one for each physical core."
    )
    n_threads_batch: Threads = Field(
        default=None,
        description="CPU threads that read prompts; -1: all. Left out: one for each physical core.",
    )
    logits_all: bool = Field(
        default=False,
        description="Keep the logits of all tokens. Goes with no archive, and logprobs need it not.",
    )
    flash_attn: bool = Field(default=True, description="Use flash attention; retention needs it.")
    type_k: int | None = Field(default=None, description=f"Type of the K rows, {_TYPES}.")
    type_v: int | None = Field(default=None, description=f"Type of the V rows, {_TYPES}.")
    chat_template_kwargs: Variables = Field(default=None, description="Variables of the chat template.")
    use_mlock: bool = Field(default=False, description="Keep the model's weights from being paged out.")
    verbose: bool = Field(default=False, description="Print llama.cpp's log.")

    # of this package
    budget: Budget = Field(
        default=DEFAULT_BUDGET,
        description='What each KV head keeps of a prompt: entries (128), a share ("5%"), memory for all '
        '("64MiB"), or "full" for everything.',
    )
    scores: str | None = Field(
        default=None,
        description='GGUF file with head scores, or "uniform". Left out: those that come with the model.',
    )
    archive: Annotated[str, BeforeValidator(off_of)] = Field(
        default="auto",
        description='Where all rows of the conversation in the context stay: "memory", "file" (in the '
        'folder of the sessions), "off", or "auto": memory where there is room, else a file, '
        "and none where that cannot be made, or with logits_all or a draft model.",
    )
    beta: float | None = Field(default=None, description=ADVANCED["beta"].sentence)
    window: int | None = Field(default=None, description=ADVANCED["window"].sentence)
    kernel: int | None = Field(default=None, description=ADVANCED["kernel"].sentence)
    sinks: int | None = Field(default=None, description=ADVANCED["sinks"].sentence)
    observe: Observe = Field(default=None, description=ADVANCED["observe"].sentence)
    draft: int | None = Field(default=None, description=ADVANCED["draft"].sentence)
    fold: Fold = Field(default=None, description=ADVANCED["fold"].sentence)

    @model_validator(mode="before")
    @classmethod
    def _named(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            raise ValueError("a model's settings must be names with values, {model: FILE, ...}")
        return by_setting(given)

    @model_validator(mode="after")
    def _check(self) -> ModelSettings:
        for name in type(self).model_fields:
            if getattr(self, name) == "":  # of a variable that nobody has set
                raise ValueError(f"{name} is empty")
        check_budget(self.budget, self.scores, self.archive, **given(self))
        if self.archive not in ("auto", "memory", "file", "off"):
            raise ValueError(f'archive must be "auto", "memory", "file" or "off", not {self.archive!r}')
        if self.embedding and self.n_ubatch < self.n_batch:
            raise ValueError("embedding needs n_ubatch as large as n_batch: a text is read at once")
        if self.embedding and parse_budget(self.budget) is not None:
            raise ValueError('embedding needs budget "full": its context is for many sequences at once')
        if self.clip_model_path is not None:
            raise ValueError("clip_model_path: images cannot be read here, messages are text")
        if self.rpc_servers is not None:
            raise ValueError("rpc_servers: llama-cpp-python does nothing with it, and no RPC is built here")
        if self.lora_base is not None:
            raise ValueError("lora_base: llama.cpp applies an adapter to the model, and to no other file")
        if not self.mul_mat_q:
            raise ValueError("mul_mat_q: llama.cpp has no such choice any more")
        if self.draft_model not in (None, _DRAFT):
            raise ValueError(f'draft_model must be "{_DRAFT}", not {self.draft_model!r}')
        if self.hf_tokenizer_config_path is not None and self.chat_format != _CONFIG_FORMAT:
            raise ValueError(f'hf_tokenizer_config_path is read with chat_format "{_CONFIG_FORMAT}" alone')
        if self.cache:
            raise ValueError("cache: conversations are kept anyway; --sessions and its limits say how many")
        require_possible(self)
        return self

    @property
    def alias(self) -> str:
        """The name that clients know; by default the file's, without its folder."""
        return str(self.model_alias or Path(self.model).name.removesuffix(".gguf"))


class ServerSettings(FromEnvironment, stock.ServerSettings):  # type: ignore[misc]
    """Of the server."""

    model_config = _CONFIG

    host: str = Field(default="127.0.0.1", description="Address to listen on. A public one needs a key.")
    port: int = Field(default=8000, ge=0, le=65535, description="Port to listen on; 0: a free one.")
    api_key: str | None = Field(
        default=None,
        description="Key that each request must have: Authorization: Bearer KEY. Better given in the "
        f"environment, as {PREFIX}API_KEY, where other users do not see it.",
    )
    interrupt_requests: bool = Field(
        default=False, description="End a running stream when another request comes."
    )

    # of this package
    sessions: str | None = Field(
        default=None,
        description="Folder for conversations that are not in memory. Left out: the cache folder.",
    )
    max_conversations: int = Field(
        default=32,
        ge=0,
        le=INT32_MAX,
        description="Conversations of a model that are kept beside the one in the context; the one used "
        "longest ago goes first. 0: none is kept, and the folder is not used.",
    )
    sessions_size: Size = Field(
        default="16GiB", description="Bytes of their sessions together (also KiB, MiB, GiB)."
    )
    aside: Size | None = Field(
        default=None,
        description="Memory for conversations that are not in the context, with their archives (bytes, or "
        "KiB, MiB, GiB); those used longest ago leave it for the folder. Left out: what a full context "
        "takes, and a quarter of what is free at most. 0: none waits in memory.",
    )
    save_after: float = Field(
        default=60.0,
        ge=0,
        description="Seconds without a request after which conversations in memory are saved too; 0: only "
        "when they leave it, and at the end.",
    )
    max_body: Size = Field(default="16MiB", description="Largest body of a request.")
    max_queue: int = Field(
        default=32, ge=0, le=INT32_MAX, description="Requests that may wait; others get 429."
    )
    queue_timeout: float = Field(
        default=600.0, gt=0, description="Seconds that a request may wait; then it gets 503."
    )
    request_timeout: float = Field(
        default=1800.0, gt=0, description="Seconds that a request may run; then it is stopped with 503."
    )
    cors_origins: list[str] = Field(
        default=[], description="Web pages of these origins may use the server, * for all."
    )
    page: bool = Field(default=True, description="Show a chat at /.")
    stop_with_stdin: bool = Field(
        default=False,
        description="Stop when standard input is closed, so that a program leaves no server behind.",
    )

    @property
    def body_bytes(self) -> int:
        return n_bytes("max_body", self.max_body)

    @property
    def session_bytes(self) -> int:
        return n_bytes("sessions_size", self.sessions_size)

    @property
    def aside_bytes(self) -> int | None:
        return None if self.aside is None else n_bytes("aside", self.aside)

    @model_validator(mode="after")
    def _check(self) -> ServerSettings:
        if self.sessions == "":
            raise ValueError("sessions is empty: leave it out for the cache folder")
        if self.api_key is not None:
            self.api_key = self.api_key.strip()  # with the line end of a file no client would have it
            if not self.api_key:
                raise ValueError("api_key is empty")
        if (self.ssl_keyfile is None) != (self.ssl_certfile is None):
            raise ValueError("ssl_keyfile and ssl_certfile go together: HTTPS needs both")
        for origin in self.cors_origins:
            require_origin(origin, self.api_key)
        if self.body_bytes < 1:
            raise ValueError("max_body is 0: no request would be taken")
        _ = self.session_bytes, self.aside_bytes
        return self


class ConfigFileSettings(ServerSettings):
    """A configuration file: settings of the server, and a list of models."""

    models: list[ModelSettings] = Field(default=[], description="The models.")


def n_bytes(name: str, text: str) -> int:
    """Of "16MiB"; a ValueError for what is no size."""
    number = text.strip()
    factor = 1
    for unit, size in (("KiB", 2**10), ("MiB", 2**20), ("GiB", 2**30), ("B", 1)):
        if number.endswith(unit):
            number, factor = number.removesuffix(unit).strip(), size
            break
    if not number.isascii() or not number.isdecimal():
        raise ValueError(f'{name} must be a size such as "16MiB", not {text!r}')
    return int(number) * factor


def read_config(path: str) -> dict[str, Any]:
    """The settings in a JSON or YAML file. ArgumentError for what is none."""
    is_yaml = path.endswith((".yaml", ".yml"))
    try:
        with open(path, encoding="utf-8-sig") as file:  # some editors begin with a BOM
            text = file.read()
        if is_yaml:
            import yaml

            found = yaml.safe_load(text)
        else:
            found = json.loads(text)
    except OSError as error:
        raise ArgumentError(f"{path} cannot be read: {error.strerror or error}") from error
    except ImportError as error:
        raise ArgumentError(f"{path} needs PyYAML: pip install 'headkv-local[server]'") from error
    except Exception as error:  # yaml has a tree of its own
        kind = "YAML" if is_yaml else "JSON"
        raise ArgumentError(f"{path} is not {kind}: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict):
        raise ArgumentError(f"{path} holds no settings: it must be an object with a list of models")
    return found


def explained(error: ValidationError, where: str) -> ArgumentError:
    """One sentence for what pydantic found first."""
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"])
    message = str(first["msg"]).removeprefix("Value error, ")
    return ArgumentError(f"{where}{name}: {message}" if name else f"{where}{message}")
