"""Which of llama.cpp's architectures can be compacted: a Markdown table, from a run of a tiny model of each.

    python tests/architecture_table.py [--llama-cpp build/cpu/llama.cpp] [ARCHITECTURE...]

Each row comes from a process of its own, so that one that dies is a row as well.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

from architectures import DEEP, FAMILIES
from gguf_factory import TinyModel
from headkv_local import HeadKVError, Llama, Retention
from helpers import forced_logits, last_logits, nmse, random_tokens
from reference import Stock, masks_of, reference_logits, stock_distance

_HEAD = ("architecture", "memory", "compacted", "read by layers", "why not")
_ONE, _STOCK = "--one", "--stock"
# told metadata alone, llama.cpp lays out no tensors of these; the sentence is from its llama-context.cpp
_SAID = {"gemma4-assistant": "llama.cpp: Gemma4Assistant requires ctx_other to be set"}
_N_PROMPT = 300
_TOKENS = random_tokens(_N_PROMPT + 12)


def names_of(source: Path) -> list[str]:
    """The architectures that llama.cpp names in src/llama-arch.cpp, and what files of them can be besides."""
    names = re.findall(r'\{\s*LLM_ARCH_\w+,\s*"([^"]+)"', source.read_text(encoding="utf-8"))
    return sorted({*names, *FAMILIES, *DEEP} - {"(unknown)"})


def shown(name: str) -> str:
    """As the table names it."""
    family = FAMILIES.get(name)
    return f"{family.arch} {family.about}" if family and family.about else name


def _model(name: str) -> TinyModel:
    return TinyModel(**DEEP.get(name, {"arch": name}))


_Row = tuple[str, str, str, str, str]


def row_of(arch: str, path: Path) -> _Row:
    """Make the tiny model, read a prompt with a budget of a quarter, and hold what is decoded then against
    the reference; and read it in both orders."""
    _model(arch).write(path)
    try:
        with _open(path) as llm:
            llm.prefill(_TOKENS[:_N_PROMPT])
            if not llm.cache_stats().compacted:
                return arch, memory_of(path), "no", "", "the prompt was not compacted"
            found = forced_logits(llm, _TOKENS[_N_PROMPT:])[1:]
            masks = masks_of(path, llm)
    except HeadKVError as error:
        return arch, memory_of(path), "no", "", _reason(str(error).replace(str(path), "the model"))
    wanted = reference_logits(path, _TOKENS, _N_PROMPT, masks)[1:]
    off = nmse(found, wanted) / stock_distance(path, _TOKENS, _N_PROMPT)
    if off > 3:
        why = f"{off:.0f} times the distance of llama.cpp's own two ways"
        return arch, memory_of(path), "wrong", "", why
    return arch, memory_of(path), "yes", *_by_layers(path)


def _reason(text: str) -> str:
    """llama.cpp's own words where it takes no such file, or makes no context."""
    said = re.search(r"(?:error loading model|failed to initialize the context): ([^;(]+)", text)
    return f"llama.cpp: {said[1].strip()}" if said else text


def _open(path: Path, **settings: Any) -> Llama:
    retention = Retention(budget=75, **settings)
    return Llama(path, n_ctx=512, n_ubatch=64, n_threads=1, n_threads_batch=1, retention=retention)


def _by_layers(path: Path) -> tuple[str, str]:
    """Whether a prompt can be read layer by layer, to the very bits, and why not."""
    found = []
    for order in ("tokens", "layers"):
        try:
            with _open(path, archive="memory", order=order) as llm:
                llm.prefill(_TOKENS[:_N_PROMPT])
                found.append((last_logits(llm), llm.retention_mask()))
        except HeadKVError as error:
            return "no", str(error)
    same = all(np.array_equal(a, b) for a, b in zip(*found, strict=True))
    return ("yes", "") if same else ("wrong", "the two orders differ")


def memory_of(path: Path) -> str:
    """What llama.cpp remembers a sequence in, by its own account; "" where it makes no context."""
    params = llama_cpp.llama_model_default_params()
    params.n_gpu_layers = 0
    model = llama_cpp.llama_model_load_from_file(os.fsencode(path), params)
    if not model:
        return ""
    ctx = llama_cpp.llama_init_from_model(model, llama_cpp.llama_context_default_params())
    if not ctx:
        llama_cpp.llama_model_free(model)
        return ""
    recurrent, hybrid = llama_cpp.llama_model_is_recurrent(model), llama_cpp.llama_model_is_hybrid(model)
    kinds = [
        *(["KV cache"] if llama_cpp.llama_get_memory(ctx) and not recurrent else []),
        *(["sliding windows"] if llama_cpp.llama_model_n_swa(model) else []),
        *(["recurrent"] if recurrent or hybrid else []),
    ]
    llama_cpp.llama_free(ctx)
    llama_cpp.llama_model_free(model)
    return ", ".join(kinds) or "none"


def _print(*cells: str) -> None:
    print("|", " | ".join(cell.replace("|", "\\|") for cell in cells), "|", flush=True)


def _in_a_process(arch: str) -> tuple[str, ...]:
    if arch not in {*FAMILIES, *DEEP}:  # one that came with another llama.cpp
        return (arch, "", "no", "", _SAID[arch]) if arch in _SAID else (arch, "", "", "", "no fixture")
    done = _run(_ONE, arch)
    if done.returncode == 0:
        return tuple(done.stdout.rstrip("\n").split("\t"))
    own = _run(_STOCK, arch)
    who = "llama.cpp's own decode" if own.returncode == done.returncode else "the process"
    said = ((own if own.returncode else done).stderr.strip().splitlines() or ["nothing"])[-1]
    return arch, "", "no", "", f"{who} ended with {done.returncode}: {re.sub(r'^.*/llama.cpp/', '', said)}"


def _run(way: str, arch: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(Path(__file__)), way, arch]
    return subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"GGML_NO_BACKTRACE": "1"}
    )


def _read_with_stock(arch: str, path: Path) -> None:
    _model(arch).write(path)
    with Stock(path, flash=True) as stock:
        stock.read(_TOKENS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("architectures", nargs="*", metavar="ARCHITECTURE", help="these alone")
    parser.add_argument("--llama-cpp", type=Path, default=Path("build/cpu/llama.cpp"), metavar="FOLDER")
    for way in (_ONE, _STOCK):
        parser.add_argument(way, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one or options.stock:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "tiny.gguf"
            if options.stock:
                _read_with_stock(options.stock, path)
            else:
                print("\t".join(row_of(options.one, path)))
        return
    names = options.architectures or names_of(options.llama_cpp / "src" / "llama-arch.cpp")
    _print(*_HEAD)
    _print(*("---" for _ in _HEAD))
    with ThreadPoolExecutor(2) as pool:
        for row in pool.map(_in_a_process, names):
            _print(shown(row[0]), *row[1:])


if __name__ == "__main__":
    main()
