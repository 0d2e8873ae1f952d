"""Count the instructions that each CUDA kernel spends on a tile: what bounds its speed, without a GPU.

Needs nvcc, cuobjdump and nvdisasm; no GPU. Where the toolkit lacks the latter two: the packages
nvidia-cuda-cuobjdump and nvidia-cuda-nvdisasm. A multiprocessor begins at most four instructions per clock,
so four times the bytes per instruction is the most of K and V that it takes per clock.

    python native/cmake/count_cuda_instructions.py [ARCH]
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Iterator, Mapping

from check_cuda_kernels import make_cubin, types, variant

ROWS = 16  # of a tile
WIDTH = 16  # bytes that a lane copies at once

Code = Mapping[int, str]  # address -> instruction


def parse(sass: str) -> dict[int, str]:
    """The instructions of one kernel as cuobjdump -sass prints them."""
    lines = re.finditer(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;", sass, re.M)
    return {int(m[1], 16): m[2] for m in lines}


def successors(code: Code, at: int) -> Iterator[int]:
    """What may run after the instruction: of a branch that some lanes may take, both ways."""
    branch = re.match(r"(@\S+ )?BRA\b(?!\.DIV).*?(0x[0-9a-f]+)$", code[at])
    if branch:
        yield int(branch[2], 16)
    if (not branch or branch[1]) and code[at] != "EXIT" and at + 16 in code:
        yield at + 16


def is_copy(instruction: str) -> bool:
    return "LDGSTS" in instruction and ".128" in instruction


def shortest(code: Code, start: int, end: int, copies: int) -> list[int]:
    """The shortest way from start to end, without end, that makes at least so many copies.

    Raises ValueError where there is none.
    """
    came_from: dict[tuple[int, int], tuple[int, int] | None] = {(start, 0): None}
    queue = deque(came_from)
    while queue:
        here = queue.popleft()
        for address in successors(code, here[0]):
            there = address, min(copies, here[1] + is_copy(code[address]))
            if there == (end, copies):
                way: list[int] = []
                back: tuple[int, int] | None = here
                while back:
                    way.append(back[0])
                    back = came_from[back]
                return way[::-1]
            if there not in came_from:
                came_from[there] = here
                queue.append(there)
    raise ValueError("no loop over tiles was found")


def row_size(kv_type: str, n_embd: int) -> int:
    return {"q8_0": n_embd // 32 * 34, "q4_0": n_embd // 32 * 18}.get(kv_type, 2 * n_embd)


def count(code: Code, kv_type: str, n_embd: int, n_cols: int) -> int:
    """Instructions for a whole tile of the pool: once around the loop, with products and the next copies."""
    products = [at for at, instruction in code.items() if "HMMA" in instruction]
    products = products[-2 * (n_embd // 16) * (n_cols // 8) :]  # some kernels make others before the loop
    pieces = ROWS * row_size(kv_type, n_embd) // WIDTH
    if kv_type in ("q8_0", "q4_0"):
        pieces += 1  # their rows need not begin with one
    copies = 2 * -(-pieces // 32)

    first, last = products[0], products[-1]
    return len(shortest(code, first, last, 0) + shortest(code, last, first, copies))


def kernels(sass: str) -> Iterator[tuple[str, int, int, str]]:
    """K/V type, head size, columns and instructions of each kernel that attends."""
    for function in re.split(r"(?m)^\s*Function : ", sass)[1:]:
        if found := variant(function.split(maxsplit=1)[0]):
            yield *found, function


def main() -> int:
    tools = {name: shutil.which(name) for name in ("nvcc", "cuobjdump", "nvdisasm")}
    if missing := [name for name, path in tools.items() if path is None]:
        print(f"{' and '.join(missing)} not found: nothing was counted", file=sys.stderr)
        return 1
    arch = sys.argv[1] if len(sys.argv) > 1 else "90"

    print("K/V    head size  columns  instructions  bytes  bytes/instruction")
    for name in types():
        with tempfile.TemporaryDirectory() as folder:
            cubin = f"{folder}/kernels.cubin"
            make_cubin("nvcc", name, arch, cubin)
            command = ["cuobjdump", "-sass", cubin]
            sass = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        for kv_type, n_embd, n_cols, listing in sorted(kernels(sass)):
            n = count(parse(listing), kv_type, n_embd, n_cols)
            size = 2 * ROWS * row_size(kv_type, n_embd)
            print(f"{kv_type:5} {n_embd:10} {n_cols:8} {n:13} {size:6} {size / n:18.2f}", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
