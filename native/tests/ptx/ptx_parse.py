"""Reads a kernel out of PTX text: its parameters, registers, memory, and its instructions in basic blocks."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

SIZES = {
    **dict.fromkeys(("b8", "u8", "s8"), 1),
    **dict.fromkeys(("b16", "u16", "s16", "f16", "bf16"), 2),
    **dict.fromkeys(("b32", "u32", "s32", "f32", "f16x2", "bf16x2", "pred"), 4),
    **dict.fromkeys(("b64", "u64", "s64", "f64"), 8),
}
"""Bytes of a type; a predicate is a mask of 32 bits here."""

ENDS_BLOCK = ("bra", "ret", "exit", "trap", "bar", "barrier")
NO_RESULT = (*ENDS_BLOCK, "st", "cp", "griddepcontrol", "membar", "fence", "prefetch", "nanosleep", "discard")

_ARRAY = r"(?:\.align\s+(\d+)\s+)?\.(\w+)\s+([$\w]+)(?:\[(\d*)\])?"


class Unknown(Exception):
    """PTX that is not translated; the text says what."""


@dataclass
class Space:
    """Named memory, one variable behind the other."""

    offsets: dict[str, int] = field(default_factory=dict)
    size: int = 0

    def add(self, name: str, size: int, align: int) -> None:
        self.offsets[name] = -(-self.size // align) * align
        self.size = self.offsets[name] + size


@dataclass
class Instruction:
    """guard: predicate that lanes need, "!%p1" for its opposite; opcode: its parts; operands: as written."""

    guard: str
    opcode: list[str]
    operands: list[str]


@dataclass
class Constant:
    type: str
    align: int
    count: int
    values: str


@dataclass
class Module:
    """What stands around the kernels of a file."""

    text: str
    constants: dict[str, Constant]
    shared: list[tuple[str, int, int]]  # name, size, align
    dynamic: set[str]  # names of dynamic shared memory

    @classmethod
    def read(cls, text: str) -> Module:
        text = re.sub(r"//[^\n]*|/\*.*?\*/", "", text, flags=re.S)
        constants = {
            m[3]: Constant(m[2], int(m[1] or SIZES[m[2]]), int(m[4] or 1), (m[5] or "{}").strip())
            for m in re.finditer(rf"\.(?:global|const)\s+{_ARRAY}(?:\s*=\s*([^;]*))?;", text)
        }
        shared = [
            (m[3], SIZES[m[2]] * int(m[4] or 1), int(m[1] or SIZES[m[2]]))
            for m in re.finditer(rf"^\s*\.shared\s+{_ARRAY};", text, re.M)
        ]
        return cls(text, constants, shared, set(re.findall(r"\.extern\s+\.shared[^;]*?(\w+)\[\]\s*;", text)))

    def kernel(self, name: str) -> Kernel:
        found = re.search(rf"\.entry\s+{re.escape(name)}\s*\(([^)]*)\)[^{{]*{{", self.text)
        if not found:
            raise Unknown(f"there is no kernel {name}")
        depth, end = 1, found.end()
        while depth:
            depth += {"{": 1, "}": -1}.get(self.text[end], 0)
            end += 1
        return Kernel(self, name, found[1], self.text[found.end() : end - 1])


class Kernel:
    """registers: the size of each; local_to: the basic block of those that live in one alone."""

    def __init__(self, module: Module, name: str, params: str, body: str) -> None:
        self.module, self.name = module, name
        self.params, self.shared, self.local = Space(), Space(), Space()
        self.param_sizes: list[int] = []
        self.registers: dict[str, int] = {}
        self.labels: dict[str, int] = {}
        self.blocks: list[list[Instruction]] = [[]]
        for param in filter(None, (p.strip() for p in params.split(","))):
            m = re.match(rf"\.param\s+{_ARRAY}", param)
            if not m:
                raise Unknown(f"parameter {param}")
            self.param_sizes.append(SIZES[m[2]] * int(m[4] or 1))
            self.params.add(m[3], self.param_sizes[-1], int(m[1] or SIZES[m[2]]))
        for variable, size, align in module.shared:
            if variable in body:
                self.shared.add(variable, size, align)
        self._read(body)
        self.local_to = self._find_local()

    def _read(self, body: str) -> None:
        scopes: list[dict[str, str]] = [{}]  # inline assembly declares registers of its own
        words = ""
        for c in re.sub(r"\s+", " ", body):
            if c == "{" and not words.strip():
                scopes.append({})
            elif c == "}" and not words.strip():
                scopes.pop()
            elif c == ":" and re.fullmatch(r"\s*[$\w]+", words):
                self._start_block()
                self.labels[words.strip()] = len(self.blocks) - 1
            elif c == ";":
                self._statement(words.strip(), scopes)
            else:
                words += c
                continue
            words = ""
        self.blocks.append([])  # where the last one falls through to

    def _start_block(self) -> None:
        if self.blocks[-1]:
            self.blocks.append([])

    def _statement(self, text: str, scopes: list[dict[str, str]]) -> None:
        if not text or text.startswith((".pragma", ".loc ", ".param")):
            return
        if text.startswith(".reg"):
            m = re.match(r"\.reg\s*\.(\w+)\s*(.*)", text)
            assert m
            for names in m[2].split(","):
                self._declare(m[1], names.strip(), scopes)
            return
        if m := re.match(rf"\.(shared|local)\s+{_ARRAY}", text):
            space = self.shared if m[1] == "shared" else self.local
            space.add(m[4], SIZES[m[3]] * int(m[5] or 1), int(m[2] or SIZES[m[3]]))
            return
        m = re.match(r"(?:@(!?%?\w+)\s+)?([a-z][\w.:]*)\s*(.*)", text)
        if not m:
            raise Unknown(text)

        def renamed(words: str) -> str:
            return re.sub(
                r"%?[$\w]+", lambda w: next((s[w[0]] for s in reversed(scopes) if w[0] in s), w[0]), words
            )

        opcode = m[2].split(".")
        if opcode[0] == "call":  # of printf or an assertion, nothing else is left of calls
            opcode, operands = ["trap"], []
        elif opcode[:2] == ["st", "param"] or "retval" in m[3]:
            return
        else:
            operands = [renamed(o.strip()) for o in re.findall(r"(?:[^,{\[]|{[^}]*}|\[[^]]*\])+", m[3])]
        self.blocks[-1].append(Instruction(renamed(m[1] or ""), opcode, operands))
        if opcode[0] in ENDS_BLOCK:
            self.blocks.append([])

    def _declare(self, kind: str, names: str, scopes: list[dict[str, str]]) -> None:
        m = re.fullmatch(r"(%?\w+)(?:<(\d+)>)?", names)
        if not m:
            raise Unknown(f"registers {names}")
        for name in [f"{m[1]}{i}" for i in range(int(m[2]))] if m[2] else [m[1]]:
            unique = name
            if len(scopes) > 1:
                unique = scopes[-1][name] = f"%inner{len(self.registers)}_{name.lstrip('%')}"
            self.registers[unique] = SIZES[kind]

    def used(self, operand: str) -> list[str]:
        return [w for w in re.findall(r"%\w+", operand) if w in self.registers]

    def _find_local(self) -> dict[str, int]:
        """Registers whose value is written before it is read, in one block alone."""
        block_of: dict[str, int] = {}
        global_ones: set[str] = set()
        for b, block in enumerate(self.blocks):
            for i in block:
                n_results = 0 if i.opcode[0] in NO_RESULT else 1
                reads = [r for o in [i.guard, *i.operands[n_results:]] for r in self.used(o)]
                writes = [r for o in i.operands[:n_results] for r in self.used(o)]
                for r in reads + writes:
                    first = r not in block_of
                    guarded = bool(i.guard) and r in writes  # keeps its value in some lanes
                    if block_of.setdefault(r, b) != b or (first and r in reads) or guarded:
                        global_ones.add(r)
        return {r: b for r, b in block_of.items() if r not in global_ones}
