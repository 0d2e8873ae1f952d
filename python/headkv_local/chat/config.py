"""Settings from the command line, the environment and a file, in this order of precedence."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from ..environment import meant, require_known
from ..errors import ArgumentError
from ..settings import OFF
from .args import Switch
from .options import FLAG, FORMS, RETENTION, Options, budget_text

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PREFIX: Final = "HEADKV_CHAT_"
_SWITCH: Final = {"1": True, "true": True, "yes": True, "on": True} | {
    "0": False,
    "false": False,
    "no": False,
    "off": False,
}
_MANY: Final = "files"
_MAY_BE_OFF: Final = ("archive", "fold", "markdown")
_NO_SETTINGS: Final = ("help", "version", "show_config")
_OPEN: Final = "the default"


def parse_options(
    argv: list[str] | None, parser: argparse.ArgumentParser, environ: Mapping[str, str] = os.environ
) -> Options:
    """Options from `argv` (None: the process's own), `environ` and the configuration file.

    Exits as argparse does: 0 after --help, 2 on misuse.
    """
    given = vars(parser.parse_args(argv))
    given.pop("version", None)
    show_config = bool(given.pop("show_config", False))
    named, model = given.pop("named_model", None), given.pop("model", None)
    if named is not None and model is not None:
        parser.error(f"two models are given, '{model}' and '{named}'; a document is given with -f")
    if model is not None or named is not None:
        given["model"] = named if model is None else model
    if _MANY in given:
        given[_MANY] = tuple(given[_MANY])
    settings = settings_of(parser)
    try:
        from_environment = dict(_from_environment(environ, settings))
        config, _ = from_environment.pop("config", (None, ""))
        config = given.pop("config", config)
        if config is None and os.path.exists(default_file()):
            config = default_file()
        options = Options(config=config, show_config=show_config)
        if config is not None:
            from_file = dict(_from_file(config, settings))
            _require_one_form(from_file, _file(config))
            options = options.having(from_file, config)
        _require_one_form(from_environment, "the environment")
        for name, (value, variable) in from_environment.items():
            options = options.having({name: value}, variable)
    except ArgumentError as error:
        parser.exit(2, f"{parser.prog}: error: {_printable(str(error))}\n")
    options = options.having(given, FLAG)
    if options.files.count("-") > 1:
        parser.error("standard input can be read once: give '-f -' only once")
    return options


def require_retention(options: Options, parser: argparse.ArgumentParser) -> None:
    """Exits with 2 where what is kept of prompts cannot be, and names where that was asked for."""
    try:
        options.retention()
    except ArgumentError as error:
        concerned = [options.sources.get(name, FLAG) for name in str(error).split() if name in RETENTION]
        source = next((each for each in concerned if each != FLAG), None)
        if source is None:
            parser.error(str(error))
        where = _file(source) if source == options.config else source
        parser.exit(2, f"{parser.prog}: error: {_printable(f'{where}: {error}')}\n")


def default_file() -> str:
    """chat.toml in the folder that the platform has for such files."""
    home = os.environ.get("XDG_CONFIG_HOME", "")
    if os.path.isabs(home):  # as the specification of these folders says, a relative path counts as none
        folder = Path(home)
    else:
        folder = Path(os.path.expanduser("~")) / (
            "Library/Application Support" if sys.platform == "darwin" else ".config"
        )
    return str(folder / "headkv-local" / "chat.toml")


def settings_of(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """Each setting under the name of its first long option, without the dashes."""
    found = {}
    for action in parser._actions:
        names = [name[2:] for name in action.option_strings if name.startswith("--")]
        if names and action.dest not in _NO_SETTINGS:
            found[names[0]] = action
    return found


def parse_value(action: argparse.Action, text: str) -> Any:
    """What `text` means for an option, as on the command line. Raises ArgumentError."""
    if isinstance(action, Switch):
        if text.lower() not in _SWITCH:
            raise ArgumentError(f"'{text}' is neither true nor false")
        return _SWITCH[text.lower()]
    if action.choices is not None and text not in action.choices:
        raise ArgumentError(f"'{text}' is none of {', '.join(action.choices)}")
    convert: Any = action.type or str
    try:
        return convert(text)
    except (argparse.ArgumentTypeError, ValueError) as error:
        reason = str(error) if isinstance(error, argparse.ArgumentTypeError) else f"'{text}' is no number"
        raise ArgumentError(reason) from None


def shown(options: Options, parser: argparse.ArgumentParser) -> str:
    """All settings as a configuration file. What is left open stands there as a comment."""
    lines = []
    for name, action in settings_of(parser).items():
        dest = _dest(action)
        value, source = getattr(options, dest), options.sources.get(dest)
        if dest == "config":
            continue
        if dest == "budget":
            value = budget_text(value)
        if value is None or (dest == _MANY and not value):
            lines.append(f"# {name}: {_OPEN}")
        elif not isinstance(value, str | int | float | tuple):  # head scores that a session holds itself
            lines.append(f"# {name}: numbers of {_printable(source or _OPEN)}")
        else:
            lines.append(f"{name} = {_toml(value)}  # {_printable(source or _OPEN)}")
    return "\n".join(lines) + "\n"


def _dest(action: argparse.Action) -> str:
    return "model" if action.dest == "named_model" else action.dest


def _from_environment(
    environ: Mapping[str, str], settings: Mapping[str, argparse.Action]
) -> Iterator[tuple[str, tuple[Any, str]]]:
    """Fields of Options with their values, each with its variable. An empty variable counts as none."""
    known = {name.upper().replace("-", "_"): name for name in settings}
    require_known((variable for variable, text in environ.items() if text), PREFIX, known)
    for variable, text in environ.items():
        if not variable.startswith(PREFIX) or not text:
            continue
        action = settings[known[variable.removeprefix(PREFIX)]]
        try:
            if action.dest == _MANY:
                yield _MANY, (tuple(filter(None, text.split(os.pathsep))), variable)
            else:
                yield _dest(action), (parse_value(action, text), variable)
        except ArgumentError as error:
            raise ArgumentError(f"{variable}: {error}") from None


def _from_file(path: str, settings: Mapping[str, argparse.Action]) -> Iterator[tuple[str, Any]]:
    """Fields of Options with their values."""
    where = _file(path)
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:  # some editors begin with a BOM
            found = tomllib.loads(file.read())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        if isinstance(error, OSError):
            raise ArgumentError(f"cannot read {where}: {error.strerror or error}") from None
        reason = "not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
        raise ArgumentError(f"{where} is no TOML: {reason}") from None
    for name, value in found.items():
        if name not in settings or name == "config":
            others = [each for each in settings if each != "config"]
            raise ArgumentError(f"{where} has '{name}', which is no setting{meant(name, others)}")
        action = settings[name]
        try:
            yield _dest(action), _file_value(action, value)
        except ArgumentError as error:
            raise ArgumentError(f"{where}, {name}: {error}") from None


def _file_value(action: argparse.Action, value: Any) -> Any:
    if action.dest == _MANY:
        paths = value if isinstance(value, list) else [value]
        if all(isinstance(path, str) for path in paths):
            return tuple(paths)
    elif isinstance(value, bool):
        if isinstance(action, Switch):
            return value
    elif isinstance(value, str | int | float):
        return parse_value(action, str(value))
    word = f'; is "{OFF}" meant?' if value is False and action.dest in _MAY_BE_OFF else ""
    raise ArgumentError(f"{json.dumps(value, default=str)} is of a kind that it does not take{word}")


def _require_one_form(fields: Mapping[str, Any], where: str) -> None:
    if fields.keys() >= FORMS:
        raise ArgumentError(f"{where} has json-schema and grammar, and an answer has one form")


def _file(path: str) -> str:
    return f"the configuration file {path}"


def _toml(value: Any) -> str:
    """Strings of JSON are strings of TOML."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)
