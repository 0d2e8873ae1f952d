"""Settings of the server in the environment: names, lists, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource

from ..environment import require_known
from ..errors import ArgumentError

PREFIX: Final = "HEADKV_SERVER_"

FLAGS: Final = {
    "model": ("-m",),
    "n_ctx": ("-c", "--ctx"),
    "n_threads": ("-t", "--threads"),
    "n_gpu_layers": ("-ngl", "--gpu-layers"),
    "model_alias": ("-a", "--alias"),
}
"""What a setting is called besides its own name, on the command line and, if long, in the environment and in
a file."""

_SETTING: Final = {
    flag.removeprefix("--").replace("-", "_"): name
    for name, flags in FLAGS.items()
    for flag in flags
    if flag.startswith("--")
}


def require_settings(variables: Iterable[str], owners: Iterable[type[BaseModel]]) -> None:
    """Raise ArgumentError for a variable of the server's that is no setting of `owners`, or two of one."""
    own = {variable.upper(): variable for variable in variables if variable.upper().startswith(PREFIX)}
    fields = [name for owner in owners for name in owner.model_fields]
    require_known(own, PREFIX, {name.upper() for name in (*fields, *_SETTING)})
    for other, name in _SETTING.items():
        first, second = own.get(PREFIX + other.upper()), own.get(PREFIX + name.upper())
        if first is not None and second is not None:
            raise ArgumentError(f"the environment has {first} and {second}, which are one setting")


def by_setting(given: Mapping[str, Any]) -> dict[str, Any]:
    """Under the names of the settings themselves. ValueError for two that are one setting."""
    for other, name in _SETTING.items():
        if other in given and name in given:
            raise ValueError(f"{other} and {name} are one setting")
    return {_SETTING.get(name, name): value for name, value in given.items()}


def variable_of(owner: type[BaseModel], variables: Iterable[str]) -> str | None:
    """A variable that is a setting of `owner`; None where there is none."""
    found = (variable_of_setting(name, variables) for name in owner.model_fields)
    return next((variable for variable in found if variable is not None), None)


def variable_of_setting(setting: str, variables: Iterable[str]) -> str | None:
    """The variable that is this setting; None where there is none."""
    for variable in variables:
        name = variable.upper().removeprefix(PREFIX).lower()
        if variable.upper().startswith(PREFIX) and _SETTING.get(name, name) == setting:
            return variable
    return None


def holds(owner: type[BaseModel], name: str, kind: str) -> bool:
    """Whether this setting is a "list", or a "dict"."""
    return f"{kind}[" in str(owner.model_fields[name].annotation).lower()


def items(text: str) -> list[Any]:
    """Of a list in one word: with commas or blanks between them, or JSON. ValueError for what is no JSON."""
    if not text.lstrip().startswith("["):
        return text.replace(",", " ").split()
    try:
        found = json.loads(text)
    except ValueError:
        raise ValueError(f"{text!r} begins as a list of JSON and is none") from None
    return list(found)


class _Environment(EnvSettingsSource):
    """Names and lists as on the command line. What is no JSON is handed on: its setting refuses it."""

    def __init__(self, settings_cls: type[BaseSettings]) -> None:
        super().__init__(settings_cls)
        setting = {(PREFIX + other).lower(): (PREFIX + name).lower() for other, name in _SETTING.items()}
        self.env_vars = {setting.get(name, name): value for name, value in self.env_vars.items()}

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:
        try:
            if holds(self.settings_cls, field_name, "list"):
                return items(value)
            return super().decode_complex_value(field_name, field, value)
        except ValueError:
            return value


class FromEnvironment:
    """Settings that are not given are in the environment."""

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource, **_: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, _Environment(settings_cls)
