"""The process that may die: loads a model, reads a few tokens, writes logits.

python -m headkv_local.doctor.child FOLDER [MODEL]. A line on stdout says what it is at.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

N_READ, N_DECODED = 40, 4
"""Tokens that are read in one batch, and tokens that are decoded one by one: products of other shapes."""


def tokens(n_vocab: int) -> list[int]:
    """The same for the reference: spread over the vocabulary, none of its first, special ones."""
    return [1000 + 7919 * i % (n_vocab - 1000) for i in range(N_READ + N_DECODED)]


def main(folder: str, model: str | None = None) -> None:
    """Without a model: what the library says of itself, and no logits."""
    print("load the library", flush=True)
    import llama_cpp

    from headkv_local.devices import devices, set_aside

    llama_cpp.llama_backend_init()  # a portable build loads its code for the CPU here
    found = [f"{device.name}: {device.description}" for device in devices()]
    about = {
        "features": (llama_cpp.llama_print_system_info() or b"").decode(),
        "devices": [*found, *filter(None, [set_aside(None)])],
        "llama_cpp": llama_cpp.__file__,
        "library": str(llama_cpp.llama_cpp._base_path),
    }
    (Path(folder) / "about.json").write_text(json.dumps(about), encoding="utf-8")
    if model is not None:
        _decode(model, Path(folder))
    print("leave", flush=True)


def _decode(model: str, folder: Path) -> None:
    print("load the model", flush=True)
    from headkv_local import Llama

    with Llama(model, n_ctx=256, flash_attn=True, logits_all=True) as llm:
        todo = tokens(llm.n_vocab())
        print("read a prompt", flush=True)
        llm.eval(todo[:N_READ])
        print("decode", flush=True)
        for token in todo[N_READ:]:
            llm.eval([token])
        np.save(folder / "logits.npy", llm.scores[: len(todo)])


if __name__ == "__main__":
    main(*sys.argv[1:])
