"""Translates a kernel of a PTX file to C++ that runs 32 lanes at a time: ptx_translate.py FILE KERNEL >OUT

Knows the instructions that the kernels of the main job use, and names any other.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from ptx_parse import SIZES, Instruction, Kernel, Module, Unknown

UNSIGNED = {2: "u16v", 4: "u32v", 8: "u64v"}
SIGNED = {2: "s16v", 4: "s32v", 8: "s64v"}
OPERATORS = {"add": "+", "sub": "-", "and": "&", "or": "|", "xor": "^", "shl": "<<", "shr": ">>"}
COMPARE = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "lo": "<", "ls": "<="}
COMPARE |= {"hi": ">", "hs": ">="}
COMPARE_OR_NAN = {"ltu": ">=", "leu": ">", "gtu": "<=", "geu": "<"}  # of which the opposite
FLOAT = "add sub mul div fma min max neg abs ex2 lg2 sin cos tanh rsqrt sqrt rcp copysign".split()
ROUNDING = ("rni", "rzi", "rmi", "rpi")
NOTHING = ("griddepcontrol", "membar", "fence", "prefetch", "nanosleep", "discard")
PREDICATES = ("and", "or", "xor", "not")


def c_type(kind: str) -> str:
    size = 8 * SIZES[kind]
    return f"int{size}_t" if kind[0] == "s" else f"uint{size}_t"


def parts(operand: str) -> list[str]:
    return [p.strip() for p in operand.strip("{}").split(",")]


class Translator:
    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.dynamic_smem = -(-kernel.shared.size // 128) * 128
        self.constants: set[str] = set()

    # registers and operands

    def name(self, register: str) -> str:
        plain = "r_" + re.sub(r"\W", "_", register.lstrip("%"))
        return plain if register in self.kernel.local_to else "s." + plain

    def symbol(self, operand: str) -> str | None:
        """The address of a variable, with what is added to it; None if it is none."""
        m = re.fullmatch(r"([$A-Za-z_][$\w]*)\s*(?:\+\s*(-?\d+))?", operand)
        if not m:
            return None
        kernel, offset = self.kernel, int(m[2] or 0)
        if m[1] in kernel.params.offsets:
            return f"all64(w.params + {kernel.params.offsets[m[1]] + offset})"
        if m[1] in kernel.shared.offsets:
            return f"all64(w.smem + {kernel.shared.offsets[m[1]] + offset})"
        if m[1] in kernel.module.dynamic:
            return f"all64(w.smem + {self.dynamic_smem + offset})"
        if m[1] in kernel.local.offsets:
            return f"(w.local_memory() + {kernel.local.offsets[m[1]] + offset}ull)"
        if m[1] in kernel.module.constants:
            self.constants.add(m[1])
            return f"all64((uint64_t) c_{m[1]} + {offset})"
        return None

    def value(self, operand: str, size: int) -> str:
        """An operand as an unsigned vector of this size."""
        if operand in self.kernel.registers:
            name = self.name(operand)
            return name if self.kernel.registers[operand] == size else f"convert({name}, {UNSIGNED[size]})"
        if m := re.fullmatch(r"0[fF]([0-9A-Fa-f]{8})|0[dD]([0-9A-Fa-f]{16})", operand):
            return f"all{8 * size}(0x{m[1] or m[2]}ull)"
        if re.fullmatch(r"-?(0x[0-9a-fA-F]+|\d+)U?", operand):
            return f"all{8 * size}({int(operand.rstrip('U'), 0) % 2 ** (8 * size)}ull)"
        if m := re.fullmatch(r"%(tid|ntid|ctaid|nctaid)\.([xyz])", operand):
            i = "xyz".index(m[2])
            number = {"ntid": f"w.launch->block[{i}]", "nctaid": f"w.launch->grid[{i}]"}.get(
                m[1], f"w.{m[1]}[{i}]"
            )
            wide = number if m[1] == "tid" else f"all32({number})"
        elif operand == "%laneid":
            wide = "lane_numbers()"
        elif operand == "%warpid":
            wide = "all32(w.number)"
        elif operand == "WARP_SZ":
            wide = "all32(32)"
        else:
            address = self.symbol(operand)
            if address is None:
                raise Unknown(f"operand {operand}")
            return address if size == 8 else f"convert({address}, {UNSIGNED[size]})"
        return wide if size == 4 else f"convert({wide}, {UNSIGNED[size]})"

    def typed(self, operand: str, kind: str) -> str:
        """An operand as a vector of its type."""
        size = SIZES[kind]
        value = self.value(operand, size)
        return f"(({SIGNED[size]}) {value})" if kind[0] == "s" else value

    def predicate(self, operand: str) -> str:
        if operand in ("0", "1", "-1"):
            return "all32(0)" if operand == "0" else "all32(~0u)"
        return ("~" if operand[0] == "!" else "") + self.name(operand.lstrip("!"))

    def address(self, operand: str) -> tuple[str, str]:
        """[register+offset] or [variable+offset]: a vector, and what is added to it."""
        inner = operand.strip("[] ")
        m = re.fullmatch(r"(%\w+)\s*(?:\+\s*(-?\d+))?", inner)
        if m:
            return self.value(m[1], 8), m[2] or "0"
        address = self.symbol(inner)
        if address is None:
            raise Unknown(f"address {operand}")
        return address, "0"

    def assign(self, register: str, value: str, size: int | None = None) -> str:
        """value: a vector of the register's size, or of the size given."""
        if register == "_":
            return ""
        own = self.kernel.registers[register]
        if size is not None and size != own:
            value = f"convert({value}, {UNSIGNED[own]})"
        name = self.name(register)
        value = f"({UNSIGNED[own]}) ({value})"
        if register in self.kernel.local_to:
            return f"{name} = {value};"
        return f"{name} = select{8 * own}(mask, {value}, {name});"

    # instructions

    def instruction(self, i: Instruction, block: int) -> str:
        """Ends in "return;", or in that and a brace, where it ends the block."""
        op = i.opcode[0]
        if op == "bra":
            target = self.kernel.labels[i.operands[0]]
            if not i.guard:
                return f"w.go(lanes, {target}); return;"
            return f"w.branch({self.predicate(i.guard)}, {target}, {block + 1}); return;"
        if op in ("ret", "exit"):
            gone = f"to_bits({self.predicate(i.guard)}) & lanes" if i.guard else "lanes"
            return f"{{ const uint32_t gone = {gone}; w.go(lanes, {block + 1}); w.alive &= ~gone; return; }}"
        if op == "trap":
            gone = f"to_bits({self.predicate(i.guard)}) & lanes" if i.guard else "lanes"
            return f'if ({gone}) w.fail("trap", 0, 0); w.go(lanes, {block + 1}); return;'
        if op in ("bar", "barrier"):
            if i.guard:
                raise Unknown("a barrier with a predicate")
            flag = "at_sync" if i.opcode[1] == "warp" else "at_barrier"
            return f"w.go(lanes, {block + 1}); w.{flag} |= lanes; return;"
        if i.guard:
            return (
                f"{{ const u32v outer = mask; const u32v mask = outer & {self.predicate(i.guard)}; "
                f"const uint32_t lanes = to_bits(mask); {self.straight(i)} }}"
            )
        return self.straight(i)

    def straight(self, i: Instruction) -> str:
        op, kind, o = i.opcode[0], i.opcode[-1], i.operands
        if op in NOTHING:
            return ""
        if op in ("ld", "st", "cp", "atom"):
            return self.memory(i)
        if op in ("shfl", "vote", "activemask", "ldmatrix", "movmatrix", "mma"):
            return self.warp_wide(i)
        if op == "mov":
            return self.move(kind, *o)
        if op == "cvta":
            return self.assign(o[0], self.value(o[1], 8), 8)
        if op == "cvt":
            return self.conversion(i.opcode, o)
        if op == "setp":
            return self.compare(i.opcode, o)
        size = SIZES[kind]
        if op == "selp":
            a, b = self.value(o[1], size), self.value(o[2], size)
            return self.assign(o[0], f"select{8 * size}({self.predicate(o[3])}, {a}, {b})", size)
        if kind == "pred" and op in PREDICATES:
            values = [self.predicate(x) for x in o[1:]]
            return self.assign(o[0], f"~{values[0]}" if op == "not" else OPERATORS[op].join(values))
        if kind in ("f32", "f16x2"):
            if op not in FLOAT:
                raise Unknown(".".join(i.opcode))
            return self.assign(o[0], f"{kind}_{op}({', '.join(self.value(x, 4) for x in o[1:])})")
        return self.integer(i, size)

    def integer(self, i: Instruction, size: int) -> str:
        op, kind, o = i.opcode[0], i.opcode[-1], i.operands
        values = (
            [self.typed(x, kind) for x in o[1:]]
            if op not in ("mul", "mad", "shl", "shr", "bfi", "bfe")
            else []
        )
        if op in ("add", "sub", "and", "or", "xor"):
            return self.assign(
                o[0], f"{self.value(o[1], size)} {OPERATORS[op]} {self.value(o[2], size)}", size
            )
        if op == "not":
            return self.assign(o[0], f"~{values[0]}", size)
        if op == "neg":
            return self.assign(o[0], f"-{self.value(o[1], size)}", size)
        if op == "abs":
            return self.assign(o[0], f"({values[0]} < 0) ? -{values[0]} : {values[0]}", size)
        if op in ("min", "max"):
            sign = "<" if op == "min" else ">"
            return self.assign(o[0], f"({values[0]} {sign} {values[1]}) ? {values[0]} : {values[1]}", size)
        if op in ("shl", "shr"):
            return self.shift(op, kind, o, size)
        if op in ("mul", "mad"):
            return self.product(i.opcode, o, size)
        if op in ("div", "rem"):
            return self.assign(o[0], f"{op}_{kind}({values[0]}, {values[1]})")
        if op in ("popc", "clz", "prmt", "lop3", "dp4a"):
            name = "dp4a_s32" if op == "dp4a" else f"{op}_b32"
            return self.assign(o[0], f"{name}({', '.join(self.value(x, 4) for x in o[1:])})")
        if op in ("bfi", "bfe"):
            n = 2 if op == "bfi" else 1  # operands before position and length
            args = [self.value(x, size if j < n else 4) for j, x in enumerate(o[1:])]
            return self.assign(o[0], f"{op}_{kind}({', '.join(args)})")
        raise Unknown(".".join(i.opcode))

    def shift(self, op: str, kind: str, o: list[str], size: int) -> str:
        """By more than there are bits is by all of them."""
        signed = kind[0] == "s"
        by = f"(({self.value(o[2], 4)} > {8 * size - 1}u) ? all32({8 * size - 1}) : {self.value(o[2], 4)})"
        vector = (SIGNED if signed else UNSIGNED)[size]
        shifted = f"({UNSIGNED[size]}) ({self.typed(o[1], kind)} {OPERATORS[op]} convert({by}, {vector}))"
        if not signed:
            within = f"{self.value(o[2], 4)} < {8 * size}u"
            shifted = f"select{8 * size}((u32v) ({within}), {shifted}, {UNSIGNED[size]}{{}})"
        return self.assign(o[0], shifted, size)

    def product(self, opcode: list[str], o: list[str], size: int) -> str:
        how, kind = opcode[1], opcode[-1]
        vectors = SIGNED if kind[0] == "s" else UNSIGNED
        a, b = self.typed(o[1], kind), self.typed(o[2], kind)
        if how == "hi" and size == 8:
            value = f"mul_hi_u64({a}, {b})"
        elif how in ("wide", "hi"):
            wide = vectors[2 * size]
            value = f"({UNSIGNED[2 * size]}) (convert({a}, {wide}) * convert({b}, {wide}))"
            if how == "hi":
                value = f"convert({value} >> {8 * size}, {UNSIGNED[size]})"
            else:
                size *= 2
        else:
            value = f"{self.value(o[1], size)} * {self.value(o[2], size)}"
        if opcode[0] == "mad":
            value = f"({value}) + {self.value(o[3], size)}"
        return self.assign(o[0], value, size)

    def compare(self, opcode: list[str], o: list[str]) -> str:
        how, kind = opcode[1], opcode[-1]
        if kind in ("f32", "f16"):
            values = [self.value(x, SIZES[kind]) for x in o[1:3]]
            a, b = (f"as_float({v if kind == 'f32' else f'f32_from_f16({v})'})" for v in values)
            if how in COMPARE_OR_NAN:
                result = f"~({a} {COMPARE_OR_NAN[how]} {b})"
            elif how in ("eq", "lt", "le", "gt", "ge"):
                result = f"{a} {COMPARE[how]} {b}"
            elif how == "neu":
                result = f"{a} != {b}"
            elif how == "ne":
                result = f"({a} < {b}) | ({a} > {b})"
            elif how in ("nan", "num"):
                result = f"({a} {'!=' if how == 'nan' else '=='} {a}) {'|' if how == 'nan' else '&'} "
                result += f"({b} {'!=' if how == 'nan' else '=='} {b})"
            else:
                raise Unknown(".".join(opcode))
            result = f"(u32v) ({result})"
        else:
            result = f"{self.typed(o[1], kind)} {COMPARE[how]} {self.typed(o[2], kind)}"
            result = f"(u32v) ({result})" if SIZES[kind] == 4 else f"(u32v) convert({result}, s32v)"
        if len(o) > 3:
            result = f"({result}) {OPERATORS[opcode[2]]} {self.predicate(o[3])}"
        names = [n.strip() for n in o[0].split("|")]
        both = self.assign(names[0], "result") + (self.assign(names[1], "~result") if len(names) > 1 else "")
        return f"{{ const u32v result = {result}; {both} }}"

    def move(self, kind: str, to: str, source: str) -> str:
        if kind == "pred":
            return self.assign(to, self.predicate(source))
        size = SIZES[kind]
        if to.startswith("{"):
            pieces = parts(to)
            n = size // len(pieces)
            out = [
                self.assign(p, f"convert(whole >> {8 * n * j}, {UNSIGNED[n]})", n)
                for j, p in enumerate(pieces)
            ]
            return f"{{ const {UNSIGNED[size]} whole = {self.value(source, size)}; {' '.join(out)} }}"
        if source.startswith("{"):
            pieces = parts(source)
            n = size // len(pieces)
            words = [
                f"convert({self.value(p, n)}, {UNSIGNED[size]}) << {8 * n * j}" for j, p in enumerate(pieces)
            ]
            return self.assign(to, " | ".join(f"({w})" for w in words), size)
        return self.assign(to, self.value(source, size), size)

    def conversion(self, opcode: list[str], o: list[str]) -> str:
        to, source = opcode[-2:]
        rounding = next((r for r in opcode[1:-2] if r in ROUNDING), None)
        if to in ("f16x2", "bf16x2"):
            return self.assign(o[0], f"{to}_from_f32({self.value(o[1], 4)}, {self.value(o[2], 4)})")
        if {to, source} in ({"f32", "f16"}, {"f32", "bf16"}):
            return self.assign(o[0], f"{to}_from_{source}({self.value(o[1], SIZES[source])})")
        if source in ("f32", "f16"):
            value = self.value(o[1], SIZES[source])
            value = value if source == "f32" else f"f32_from_f16({value})"
            value = f"f32_{rounding}({value})" if rounding else value
            if "sat" in opcode:
                value = f"f32_min(f32_max({value}, all32(0)), all32(0x3F800000u))"
            if to == "f64":
                value = f"(u64v) convert(as_float({value}), f64v)"
            elif to in ("s32", "u32"):
                value = f"{to}_from_f32({value})"
            elif to != "f32":
                raise Unknown(".".join(opcode))
            return self.assign(o[0], value)
        if to in ("f32", "f16"):
            value = f"as_bits(convert({self.extended(o[1], source, 4)}, f32v))"  # exact as far as f16 reaches
            return self.assign(o[0], value if to == "f32" else f"f16_from_f32({value})")
        if to[0] in "sub" and source[0] in "sub":
            size = self.kernel.registers[o[0]]
            value = self.extended(o[1], source, size)
            if SIZES[to] < size:  # the register holds what the narrow type becomes when it is widened
                vector = (SIGNED if to[0] == "s" else UNSIGNED)[size]
                gap = 8 * (size - SIZES[to])
                value = f"((({vector}) {value} << {gap}) >> {gap})"
            return self.assign(o[0], value)
        raise Unknown(".".join(opcode))

    def extended(self, operand: str, kind: str, size: int) -> str:
        """An integer of this type, which may be narrower than its register, as a vector of this size."""
        held = max(size, SIZES[kind], self.kernel.registers.get(operand, 0))
        gap = 8 * (held - SIZES[kind])
        signed = kind[0] == "s"
        vector, result = (SIGNED if signed else UNSIGNED)[held], (SIGNED if signed else UNSIGNED)[size]
        value = f"({vector}) {self.value(operand, held)}"
        if gap:
            value = f"(({value} << {gap}) >> {gap})"
        return f"convert({value}, {result})"

    def memory(self, i: Instruction) -> str:
        op, kind, o = i.opcode[0], i.opcode[-1], i.operands
        if op == "cp":
            if i.opcode[1:2] != ["async"]:
                raise Unknown(".".join(i.opcode))
            if "shared" not in i.opcode:
                return ""  # groups: every copy arrives at once
            (to, to_offset), (source, from_offset) = self.address(o[0]), self.address(o[1])
            have = self.value(o[3], 4) if len(o) > 3 else f"all32({o[2]})"
            return f"copy_async(w, {to}, {to_offset}, {source}, {from_offset}, {o[2]}, {have}, lanes);"
        if op == "atom":
            if "add" not in i.opcode or kind[0] == "f":
                raise Unknown(".".join(i.opcode))
            (address, offset), size = self.address(o[1]), SIZES[kind]
            value = self.value(o[2], size)
            return self.assign(
                o[0], f"atomic_add<{c_type(kind)}>(w, {address}, {offset}, {value}, lanes)", size
            )
        address, offset = self.address(o[1] if op == "ld" else o[0])
        registers = parts(o[0] if op == "ld" else o[1])
        size = max(
            [self.kernel.registers[r] for r in registers if r in self.kernel.registers] or [2, SIZES[kind]]
        )
        vector = UNSIGNED[size]
        if op == "st":
            values = ", ".join(self.value(r, size) for r in registers)
            call = f"store<{c_type(kind)}>(w, {address}, {offset}, x, lanes);"
            return f"{{ const {vector} x[] = {{ {values} }}; {call} }}"
        out = " ".join(self.assign(r, f"x[{j}]", size) for j, r in enumerate(registers))
        call = f"load<{c_type(kind)}>(w, x, {address}, {offset}, lanes);"
        return f"{{ {vector} x[{len(registers)}] = {{}}; {call} {out} }}"

    def warp_wide(self, i: Instruction) -> str:
        op, o = i.opcode[0], i.operands
        if op == "activemask":
            return self.assign(o[0], "all32(lanes)")
        if op == "shfl":
            names = [n.strip() for n in o[0].split("|")]
            a, b, c, members = (self.value(x, 4) for x in o[1:5])
            inside = self.assign(names[1], "all32(~0u)") if len(names) > 1 else ""
            shuffled = self.assign(names[0], f"shfl_{i.opcode[2]}({a}, {b}, {c})")
            return f"w.together(({members})[0]); {shuffled} {inside}"
        if op == "vote":
            bits = f"(to_bits({self.predicate(o[1])}) & lanes)"
            results = {"ballot": bits, "any": f"({bits} ? ~0u : 0u)", "all": f"({bits} == lanes ? ~0u : 0u)"}
            result = self.assign(o[0], f"all32({results[i.opcode[2]]})")
            return f"w.together(({self.value(o[2], 4)})[0]); {result}"
        if op == "movmatrix":
            return f"w.together(~0u); {self.assign(o[0], f'transpose_matrix({self.value(o[1], 4)})')}"
        if op == "ldmatrix":
            registers, (address, offset) = parts(o[0]), self.address(o[1])
            n, transposed = len(registers), "true" if "trans" in i.opcode else "false"
            out = " ".join(self.assign(r, f"x[{j}]") for j, r in enumerate(registers))
            load = f"load_matrices<{n}, {transposed}>(w, x, {address}, {offset});"
            return f"{{ w.together(~0u); u32v x[{n}]; {load} {out} }}"
        shape, (to, a, b, _) = i.opcode[3], i.opcode[6:10]
        if a != b or i.opcode[4:6] != ["row", "col"]:
            raise Unknown(".".join(i.opcode))
        arrays = [
            f"const u32v {n}[] = {{ {', '.join(self.value(r, 4) for r in parts(x))} }};"
            for n, x in zip("abc", o[1:], strict=True)
        ]
        registers = parts(o[0])
        out = " ".join(self.assign(r, f"d[{j}]") for j, r in enumerate(registers))
        call = f"u32v d[{len(registers)}]; mma_{shape}_{to}_{a}(d, a, b, c);"
        return f"{{ w.together(~0u); {' '.join(arrays)} {call} {out} }}"

    # the whole

    def blocks(self) -> list[str]:
        """A function for each: the compiler's time grows faster than the size of a function."""
        out = []
        for b, block in enumerate(self.kernel.blocks):
            out.append(f"static void block_{b}(ptx_warp & w, state & s) {{ (void) s;")
            out.append("const u32v mask = w.mask; const uint32_t lanes = w.lanes; (void) mask;")
            for register in (r for r, at in self.kernel.local_to.items() if at == b):
                out.append(f"{UNSIGNED[self.kernel.registers[register]]} {self.name(register)};")
            out += [self.instruction(i, b) for i in block]
            last = b + 1 == len(self.kernel.blocks)
            out.append("w.alive &= ~lanes; }" if last else f"w.go(lanes, {b + 1}); }}")
        table = ", ".join(f"block_{b}" for b in range(len(self.kernel.blocks)))
        return [*out, f"static void (* const blocks[])(ptx_warp &, state &) = {{ {table} }};"]

    def text(self) -> str:
        kernel, blocks = self.kernel, self.blocks()
        constants, ranges = [], []
        for name in sorted(self.constants):
            c = kernel.module.constants[name]
            values = c.values if c.values.startswith("{") else f"{{{c.values}}}"
            constants.append(f"alignas({c.align}) static {c_type(c.type)} c_{name}[{c.count}] = {values};")
            ranges.append(f"{{ (uint64_t) c_{name}, (uint64_t) c_{name} + sizeof(c_{name}) }}")
        state = [
            f"    {UNSIGNED[size]} {self.name(r).removeprefix('s.')};"
            for r, size in kernel.registers.items()
            if r not in kernel.local_to
        ]
        return FILE.format(
            name=kernel.name,
            constants="\n".join(constants),
            ranges=", ".join(ranges),
            state="\n".join(state),
            blocks="\n".join(blocks),
            smem=self.dynamic_smem,
            local=kernel.local.size,
            n_params=len(kernel.param_sizes),
            offsets=", ".join(map(str, kernel.params.offsets.values())) or "0",
            sizes=", ".join(map(str, kernel.param_sizes)) or "0",
            params_size=kernel.params.size,
        )


FILE = """\
#include "ptx-ops.h"
#include "ptx-tensor.h"

{constants}

// registers that outlive a block
struct state {{
{state}
}};

{blocks}

static void run(const ptx_launch & launch, const ptx_host & host) {{
    ptx_memory memory = {{ "{name}", &host }};
    memory.params     = {{ (uint64_t) launch.params, (uint64_t) launch.params + {params_size} }};
    memory.constants  = {{ {ranges} }};
    ptx_run<state>(blocks, memory, launch, {smem} + launch.dynamic_smem, {local});
}}

static const int offsets[] = {{ {offsets} }};
static const int sizes[] = {{ {sizes} }};
extern "C" const ptx_kernel ptx_kernel_table;
const ptx_kernel ptx_kernel_table = {{ "{name}", run, {n_params}, offsets, sizes, {params_size} }};
"""


def main() -> int:
    if len(sys.argv) != 3:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        sys.stdout.write(Translator(Module.read(Path(sys.argv[1]).read_text()).kernel(sys.argv[2])).text())
    except Unknown as problem:
        print(f"{sys.argv[2]}: not translated: {problem}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
