"""Each architecture's tiny model on a GPU, by the cache dormant, keeping all, and in both orders: a table.

    python tests/gpu/architectures.py [--gpu-layers N] [ARCHITECTURE...]

Distances are NMSE of logits. How far llama.cpp alone is from itself is the measure: on the two devices, with
flash attention or without, and with the prompt in other batches. Each model has a process of its own for each
cache, so that one that dies is a row as well.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import llama_cpp
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from architectures import VARIANTS
from gguf_factory import TinyModel
from headkv_local import Llama, Retention, UnsupportedError
from headkv_local.devices import require_gpu
from helpers import Logits, compact_natively, forced_logits, last_logits, nmse, random_tokens

N_PROMPT, N_TURN, N_LATER = 300, 60, 6
TOKENS = random_tokens(N_PROMPT + N_TURN)
PROMPT, LATER = TOKENS[:N_PROMPT], TOKENS[N_PROMPT:][:N_LATER]
SETTINGS = {"n_ctx": 512, "n_ubatch": 64, "flash_attn": True, "n_threads": 1, "n_threads_batch": 1}
MOST = 10
"""Times the distance of llama.cpp to itself, at least MOST_AT_LEAST."""
MOST_AT_LEAST = 1e-4

Found = dict[str, Logits]


def _stock(path: Path, n_gpu_layers: int) -> Found:
    def found(batches: list[list[int]], **settings: bool) -> Logits:
        llm = llama_cpp.Llama(str(path), n_gpu_layers=n_gpu_layers, verbose=False, **(SETTINGS | settings))
        for batch in batches:
            llm.eval(batch)
        return forced_logits(llm, LATER)

    return {
        "full": found([PROMPT]),
        "plain": found([PROMPT], flash_attn=False),
        "batches": found([PROMPT[:-8], PROMPT[-8:]]),
        "turn": found([PROMPT, TOKENS[N_PROMPT:]])[0],
    }


def _ours(path: Path, n_gpu_layers: int) -> Found:
    found: Found = {}
    with Llama(path, n_gpu_layers=n_gpu_layers, **SETTINGS) as llm:
        llm.eval(PROMPT)
        found["dormant"] = forced_logits(llm, LATER)
        llm.reset()
        with suppress(UnsupportedError):
            compact_natively(llm, PROMPT, N_PROMPT)
            found["all kept"] = forced_logits(llm, LATER)
    for order in ("tokens", "layers") if "all kept" in found else ():
        retention = Retention(budget=64, archive="memory", order=order)
        with (
            suppress(UnsupportedError),
            Llama(path, n_gpu_layers=n_gpu_layers, retention=retention, **SETTINGS) as llm,
        ):
            llm.prefill(PROMPT)
            first = last_logits(llm)
            llm.prefill(TOKENS)
            found[order] = np.array([first, last_logits(llm)])
    return found


KINDS: dict[str, Callable[[Path, int], Found]] = {"stock": _stock, "ours": _ours}


def _of(kind: str, path: Path, n_gpu_layers: int) -> Found | str:
    """What one process found, or its last words."""
    out = path.with_name(f"{path.stem}-{kind}{n_gpu_layers}.npz")
    command = [
        sys.executable,
        __file__,
        "--one",
        kind,
        str(path),
        str(out),
        "--gpu-layers",
        str(n_gpu_layers),
    ]
    env = os.environ | {"GGML_NO_BACKTRACE": "1"} | ({"HEADKV_DISABLE": "1"} if kind == "stock" else {})
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        return next((line for line in said if ".c" in line and "rror" in line), (said or ["nothing"])[-1])
    with np.load(out) as saved:
        return dict(saved)


def _row(name: str, n_gpu_layers: int) -> tuple[bool, str]:
    with tempfile.TemporaryDirectory() as folder:
        path = TinyModel(**VARIANTS[name]).write(Path(folder) / f"{name}.gguf")
        stock, cpu, ours = (
            _of(kind, path, where)
            for kind, where in (("stock", n_gpu_layers), ("stock", 0), ("ours", n_gpu_layers))
        )
    if isinstance(stock, str) or isinstance(cpu, str):
        ends = "as stock does" if isinstance(ours, str) else "stock alone"
        return not isinstance(ours, str) or isinstance(
            stock, str
        ), f"ends, {ends}: {stock if isinstance(stock, str) else cpu}"
    if isinstance(ours, str):
        return False, f"ends: {ours}"
    unit = max(nmse(found, cpu["full"]) for found in (stock["full"], cpu["plain"], cpu["batches"]))
    off = {"dormant": nmse(ours["dormant"], stock["full"])}
    if "all kept" in ours:
        turns = np.array([stock["full"][0], stock["turn"]])
        off["all kept"] = nmse(ours["all kept"], stock["full"])
        off |= {order: nmse(ours[order], turns) for order in ("tokens", "layers") if order in ours}
        if "layers" in ours:
            off["orders"] = nmse(ours["layers"], ours["tokens"])
    passed = max(off.values()) <= max(MOST_AT_LEAST, MOST * unit)
    return passed, f"llama.cpp to itself {unit:.1e}; " + ", ".join(
        f"{what} {x:.1e}" for what, x in off.items()
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("architectures", nargs="*", metavar="ARCHITECTURE", default=list(VARIANTS))
    parser.add_argument("--gpu-layers", type=int, default=-1)
    parser.add_argument("--one", nargs=3, metavar=("KIND", "MODEL", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        kind, path, out = options.one
        np.savez(out, **KINDS[kind](Path(path), options.gpu_layers))
        return 0
    require_gpu(options.gpu_layers)
    n_passed, names = 0, options.architectures
    with ThreadPoolExecutor(max(1, (os.cpu_count() or 1) // 2)) as pool:
        rows = pool.map(lambda name: _row(name, options.gpu_layers), names)
        for name, (passed, sentence) in zip(names, rows, strict=True):
            print(f"{name:16} {'' if passed else 'FAILED '}{sentence}", flush=True)  # stays if this is ended
            n_passed += passed
    print(f"{n_passed} of {len(names)} architectures as llama.cpp alone")
    return 0 if n_passed == len(names) else 1


if __name__ == "__main__":
    sys.exit(main())
