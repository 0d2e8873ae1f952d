"""How the next token is drawn: what the user asks for, else what the model recommends, else our defaults."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

from headkv_local.chat.options import Options
from headkv_local.settings import INT32_MAX, MAX_LAST_TOKENS

# the key under general.sampling. of each field of Sampling that a GGUF file can recommend
_KEYS: Final = {
    "temp": "temp",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repeat_penalty": "penalty_repeat",
    "repeat_last_n": "penalty_last_n",
    "mirostat": "mirostat",
    "mirostat_tau": "mirostat_tau",
    "mirostat_eta": "mirostat_eta",
}
_RANGES: Final = {  # what llama.cpp can work with; a recommendation outside of it is none
    "temp": (0.0, math.inf),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "repeat_penalty": (0.01, math.inf),
    "repeat_last_n": (-1, MAX_LAST_TOKENS),
    "mirostat": (0, 2),
    "mirostat_tau": (0.0, math.inf),
    "mirostat_eta": (0.0, math.inf),
}


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """llama.cpp's samplers, by the names of its command line.

    The defaults are for questions about a text: less adventurous than llama.cpp's own, and with a penalty
    that is light enough for names and figures to be said again.
    """

    temp: float = 0.6
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.05
    repeat_last_n: int = 64
    mirostat: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1

    def arguments(self) -> dict[str, Any]:
        """What create_chat_completion() calls them; repeat_last_n is an argument of the constructor."""
        return {
            "temperature": self.temp,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "min_p": self.min_p,
            "repeat_penalty": self.repeat_penalty,
            "mirostat_mode": self.mirostat,
            "mirostat_tau": self.mirostat_tau,
            "mirostat_eta": self.mirostat_eta,
        }

    def told(self) -> str:
        """For people, in the names of the command line."""
        if self.temp == 0:
            return "temp 0" + (f", repeat-penalty {self.repeat_penalty:g}" * (self.repeat_penalty != 1))
        if self.mirostat:
            return f"temp {self.temp:g}, mirostat {self.mirostat}"
        return (
            f"temp {self.temp:g}, top-k {self.top_k}, top-p {self.top_p:g}, min-p {self.min_p:g}, "
            f"repeat-penalty {self.repeat_penalty:g}"
        )


def choose_sampling(options: Options, metadata: Mapping[str, str]) -> Sampling:
    """metadata: that of the model. At temperature 0 nothing but a penalty that was asked for counts."""
    asked: dict[str, Any] = {}
    for field in fields(Sampling):
        value = getattr(options, field.name, None)
        if value is not None:
            asked[field.name] = value
    found = Sampling(**(_recommended(metadata) | asked))
    if found.temp == 0:
        return Sampling(temp=0.0, repeat_penalty=asked.get("repeat_penalty", 1.0))
    return found


def _recommended(metadata: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, key in _KEYS.items():
        try:
            value = float(metadata[f"general.sampling.{key}"])
        except (KeyError, ValueError):
            continue
        low, high = _RANGES.get(name, (-INT32_MAX, INT32_MAX))
        if math.isfinite(value) and low <= value <= high:
            found[name] = int(value) if isinstance(getattr(Sampling, name), int) else value
    return found
