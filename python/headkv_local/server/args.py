"""The command line of headkv-server: one option for each setting."""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticUndefined

from .. import __version__, default_model_path
from ..errors import ArgumentError
from ..settings import ADVANCED
from .environment import FLAGS, PREFIX, holds, items, require_settings, variable_of, variable_of_setting
from .settings import ConfigFileSettings, ModelSettings, ServerSettings, explained, read_config

_DESCRIPTION = """\
Serve GGUF models to OpenAI's clients. Once a long prompt is read, every KV head keeps only its budget of
rows. Conversations are kept apart: each goes on where it was, and reads only what is new.
"""

_EPILOG = f"""\
Each setting can also be given in the environment, as {PREFIX}PORT for --port. A list is one word, with
commas between its items, or JSON; as an option it may be repeated. _ may be written for - in options, and
"--page false" for --no-page.
A --config-file is JSON or YAML: settings of the server, and "models", a list of objects with settings of
a model, of which options and the environment may have none then.
Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted, 143 ended by SIGTERM.
"""

_FIRST = {"model", "model_alias", "n_ctx", "n_threads", "n_threads_batch", "n_gpu_layers", "chat_format"}
_KEPT = {"budget", "scores", "archive", *ADVANCED}
_HIDDEN = {"cache", "cache_type", "cache_size", "clip_model_path"}  # of stock, which are refused
_HIDDEN |= {"lora_base", "mul_mat_q", "rpc_servers"}  # which change nothing there


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "headkv-server",
        "headkv-server [MODEL] [OPTION ...]",
        _DESCRIPTION,
        _EPILOG,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument(
        "named", metavar="MODEL", nargs="?", help="GGUF file (default: the installed default model)"
    )
    parser.add_argument("--config-file", metavar="FILE", help="settings of the server and of several models")
    parser.add_argument("--version", action="version", version=f"headkv-server {__version__}")
    names = [name for name in ModelSettings.model_fields if name not in _HIDDEN]
    _add(parser, "model", ModelSettings, [name for name in names if name in _FIRST])
    _add(parser, "what is kept of a prompt", ModelSettings, [name for name in names if name in _KEPT])
    _add(parser, "server", ServerSettings, list(ServerSettings.model_fields))
    rest = [name for name in names if name not in _FIRST | _KEPT]
    _add(parser, "model, advanced (as in llama-cpp-python)", ModelSettings, rest)
    return parser


def _add(parser: argparse.ArgumentParser, title: str, owner: type[BaseModel], names: list[str]) -> None:
    group = parser.add_argument_group(title)
    for name in names:
        field = owner.model_fields[name]
        told = (field.description or f"{name} of llama_cpp.Llama").replace("%", "%%")
        if field.default not in (None, PydanticUndefined, [], ""):
            shown = str(field.default).lower() if isinstance(field.default, bool) else field.default
            told += f" (default: {shown})"
        options: dict[str, Any] = {"dest": name, "help": told}
        flags = [*FLAGS.get(name, ()), f"--{name.replace('_', '-')}"]
        if _is_bool(owner, name):
            options["action"] = argparse.BooleanOptionalAction
        else:
            options["metavar"] = "VALUE"
            if holds(owner, name, "list"):
                # never several words: the one behind it is MODEL
                options |= {"type": _items, "action": "extend", "metavar": "VALUE[,VALUE...]"}
            elif holds(owner, name, "dict"):
                options |= {"type": _object, "metavar": "JSON"}
        group.add_argument(*flags, **options)


def _is_bool(owner: type[BaseModel], name: str) -> bool:
    return owner.model_fields[name].annotation is bool


def _items(text: str) -> list[Any]:
    try:
        return items(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is not a JSON object")
    return found


def normalised(argv: list[str]) -> list[str]:
    """--n_ctx becomes --n-ctx, and "--page false" --no-page: llama-cpp-python writes them so."""
    flags = {
        f"--{name.replace('_', '-')}"
        for owner in (ModelSettings, ServerSettings)
        for name in owner.model_fields
        if _is_bool(owner, name)
    }
    made: list[str] = []
    for i, word in enumerate(argv):
        if word == "--":
            return made + argv[i:]
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            name = name.replace("_", "-")
            if name in flags and equals:
                made += [name, value]
                word = made.pop()
            else:
                word = name + equals + value
        if (
            made
            and made[-1] in flags
            and word.lower() in ("true", "false", "1", "0", "yes", "no", "on", "off")
        ):
            if word.lower() in ("false", "0", "no", "off"):
                made[-1] = "--no-" + made[-1].removeprefix("--")
            continue
        made.append(word)
    return made


def parse(argv: list[str], parser: argparse.ArgumentParser) -> tuple[ServerSettings, list[ModelSettings]]:
    """Exits as argparse does: 0 after --help, 2 on misuse. Raises ArgumentError for other settings."""
    given = vars(parser.parse_args(normalised(argv)))
    require_settings(os.environ, (ModelSettings, ServerSettings))
    config, named = given.pop("config_file", None), given.pop("named", None)
    if named is not None:
        if "model" in given:
            parser.error(f"two models are given, '{named}' and '{given['model']}'")
        given["model"] = named
    of_server = {name: value for name, value in given.items() if name in ServerSettings.model_fields}
    of_model = {name: value for name, value in given.items() if name not in of_server}
    if config is not None:
        other = variable_of(ModelSettings, os.environ)
        if of_model:
            other = f"--{next(iter(of_model)).replace('_', '-')}"
        if other is not None:
            parser.error(f"the models are in {config}: {other} is given there")
        try:
            file = ConfigFileSettings(**{**read_config(config), **of_server})
        except ValidationError as error:
            raise explained(error, f"{config}: ") from error
        taken = {
            name: getattr(file, name) for name in ServerSettings.model_fields if name in file.model_fields_set
        }
        return ServerSettings(**taken), file.models
    try:
        server = ServerSettings(**of_server)
        try:
            model = ModelSettings(**of_model)
        except ValidationError as error:
            if ("model",) not in [one["loc"] for one in error.errors()] or "model" in of_model:
                raise
            model = ModelSettings(model=str(default_model_path()), **of_model)
    except ValidationError as error:
        raise ArgumentError(_blamed(str(explained(error, "")), given)) from error
    return server, [model]


def _blamed(sentence: str, given: Mapping[str, Any]) -> str:
    """With the option or the variable that was given in place of the setting that it begins with."""
    found = re.match(r'([a-z_]+)(?:="?(\w+)"?)?', sentence)
    fields = ModelSettings.model_fields | ServerSettings.model_fields
    if found is None or found[1] not in fields:
        return sentence
    name, value = found.groups()
    told = None if name in given else variable_of_setting(name, os.environ)
    equals = "="
    if told is None:
        flags = (*FLAGS.get(name, ()), f"--{name.replace('_', '-')}")
        told, equals = next(flag for flag in flags if flag.startswith("--")), " "
    if value not in (None, "True"):
        told += equals + value
    return told + sentence[found.end() :]
