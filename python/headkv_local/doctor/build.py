"""How the installed library was built, as CMake wrote it down."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Build:
    """Texts, "" or "OFF" where there is nothing to say. without: as in `make demo WITHOUT=`."""

    date: str
    compiler: str
    system: str
    type: str
    portable: str
    without: str
    cuda: str
    llama_cpp: str

    @classmethod
    def installed(cls) -> Build:
        path = Path(__file__).parents[1] / "_build.json"
        return cls(**json.loads(path.read_text(encoding="utf-8")))

    def options(self) -> str:
        cpu = "every kind of CPU" if self.portable == "ON" else "the CPU of the machine it was built on"
        without = f", without {self.without}" if self.without else ""
        cuda = ", CUDA" if self.cuda == "ON" else ""
        return f"for {cpu}{without}{cuda}"
