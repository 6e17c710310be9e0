"""Kernels of PTX to C++: one statement for each instruction, on the functions of ptx.h."""

from __future__ import annotations

import re
from collections.abc import Callable

from ptx.parsing import Instruction, Kernel, Label, basic_blocks, bytes_of

_SPECIAL = {
    "%tid.x": "at.thread",
    "%ctaid.x": "at.block_x",
    "%ctaid.y": "at.block_y",
    "%ntid.x": "at.threads",
    "%nctaid.x": "at.blocks_x",
    "%nctaid.y": "at.blocks_y",
    "%laneid": "(at.thread % 32)",
}
_REAL = ("f32", "f64")
_ADDRESS = re.compile(r"\[\s*([%$\w]+)\s*(?:\+\s*(-?\w+))?\s*\]")
# Modifiers that change nothing here: to nearest is the only rounding that C++ does.
_PLAIN = {"rn", "lo", "sync", "aligned", "nc", "volatile", "relaxed", "cta", "gpu", "uni", "to"}
_SAME_TYPE = {
    **dict.fromkeys(("neg", "abs", "sqrt", "rcp", "not", "brev"), 1),
    **dict.fromkeys(("add", "sub", "mul", "div", "rem", "min", "max", "and", "or", "xor"), 2),
    **dict.fromkeys(("mad", "fma"), 3),
}
_OPERATORS = {"add": "+", "sub": "-", "mul": "*", "and": "&", "or": "|", "xor": "^"}
_COMPARISONS = {
    "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "lo": "<", "ls": "<=", "hi": ">", "hs": ">=",
}  # fmt: skip
_ATOMIC = {
    "add": "before + {}",
    "or": "before | {}",
    "min": "op_min(before, {})",
    "max": "op_max(before, {})",
}


def to_cpp(kernel: Kernel) -> str:
    """The C++ of one kernel: a function `run_<name>` and a `Kernel` named `kernel_<name>`."""
    return _Translation(kernel).text()


def table_of(kernels: list[Kernel]) -> str:
    """C++ that lists the kernels of a module for the machine."""
    names = [f"kernel_{kernel.name}" for kernel in kernels]
    declared = "\n".join(f"extern const Kernel {name};" for name in names)
    return (
        f'#include "ptx.h"\nnamespace ptx {{\n{declared}\n'
        f"const Kernel KERNELS[] = {{{', '.join(names)}}};\nconst int KERNEL_COUNT = {len(names)};\n}}\n"
    )


class _Translation:
    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._line = 0
        # The first line of a kernel is 1 wherever it stands in its module, so equal kernels give equal C++.
        lines = [s.line for s in kernel.statements if isinstance(s, Instruction)]
        self._first = min(lines, default=0) - 1

    def text(self) -> str:
        kernel = self._kernel
        operands = {
            name
            for statement in kernel.statements
            if isinstance(statement, Instruction)
            for operand in (*statement.operands, statement.guard)
            for name in re.findall(r"%?\w+", operand)
        }
        lines = [
            '#include "ptx.h"',
            "namespace ptx {",
            f"static void run_{kernel.name}(const char* parameters)",
        ]
        lines += ["{", "(void)parameters;", "const Position at = position();", "(void)at;"]
        lines += ["u32* const visit = visits();"]
        lines += [
            f"{_word(kind)} {_name(name)}{{}};" for name, kind in kernel.registers.items() if name in operands
        ]
        block, lines = 0, [*lines, "++visit[0];"]
        for statement in kernel.statements:
            if isinstance(statement, Label):
                block += 1
                lines += [f"{_name(statement.name)}:", f"++visit[{block}];"]
                continue
            self._line = statement.line - self._first
            code = self._instruction(statement)
            if statement.guard:
                guard = ("!" if statement.negated else "") + _name(statement.guard)
                code = f"if ({guard}) {{ {code} }}"
            lines.append(code)
            if statement.ends_block:
                block += 1
                lines.append(f"++visit[{block}];")
        count = len(basic_blocks(kernel))
        lines += ["}", f"extern const Kernel kernel_{kernel.name};"]
        fields = f'"{kernel.name}", run_{kernel.name}, {kernel.static}, {count}'
        lines += [f"const Kernel kernel_{kernel.name} = {{{fields}}};"]
        return "\n".join([*lines, "}", ""])

    # --- operands ---

    def _read(self, operand: str, kind: str) -> str:
        if kind == "pred":
            return _name(operand)
        if operand in _SPECIAL:
            return f"({kind}){_SPECIAL[operand]}"
        if operand in self._kernel.registers:
            word = _word(self._kernel.registers[operand])
            if word == kind:
                return _name(operand)
            plain = word not in _REAL and kind not in (*_REAL, "f16")
            return f"({kind}){_name(operand)}" if plain else f"as<{kind}>({_name(operand)})"
        if operand in self._kernel.shared:
            return f"({kind}){self._kernel.shared[operand]}u"
        if "_param_" in operand:
            return f"({kind})(u64)parameters"
        return _literal(operand, kind)

    def _put(self, operand: str, value: str, kind: str) -> str:
        """C++ that sets a register to a value of type `kind`; integers are extended by their sign."""
        word = _word(self._kernel.registers[operand])
        if word == kind or (word not in _REAL and kind not in (*_REAL, "f16")):
            return f"{_name(operand)} = ({word})({value});"
        return f"{_name(operand)} = as<{word}>(({kind})({value}));"

    def _memory(self, operand: str, space: str, width: int, access: str) -> str:
        """C++ of the checked host address of `[base + offset]`."""
        match = _ADDRESS.fullmatch(operand)
        assert match is not None, operand
        base, offset = match[1], match[2] or "0"
        if space == "param":
            return f"(const char*){self._read(base, 'u64')} + {offset}"
        return f"{space}({self._read(base, 'u64')} + (u64)({offset}), {width}, {access}, {self._line})"

    # --- instructions ---

    def _instruction(self, instruction: Instruction) -> str:
        head, *rest = instruction.opcode
        modifiers = [word for word in rest if word not in _PLAIN]
        operands = list(instruction.operands)
        if head in _SAME_TYPE:
            return self._same_type(head, modifiers, operands)
        method: Callable[[list[str], list[str]], str] | None = getattr(self, f"_{head}", None)
        assert method is not None, f"this executor does not know {'.'.join(instruction.opcode)}"
        return method(modifiers, operands)

    def _same_type(self, head: str, modifiers: list[str], operands: list[str]) -> str:
        *extra, kind = modifiers
        assert extra in ([], ["wide"]), extra
        if not extra and kind != "pred" and head in ("add", "sub", "mul", "mad", "neg"):
            kind = _word(kind)  # the same bits, and no overflow
        kinds, to = [kind] * _SAME_TYPE[head], kind
        if extra:
            to = f"{kind[0]}{16 * bytes_of(kind)}"
            kinds[2:] = [to] * (len(kinds) - 2)
        values = [self._read(o, k) for o, k in zip(operands[1:], kinds, strict=True)]
        if extra:
            wide = [f"({to}){value}" for value in values[:2]]
            return self._put(operands[0], " + ".join([" * ".join(wide), *values[2:]]), to)
        if head == "mad":
            return self._put(operands[0], f"{values[0]} * {values[1]} + {values[2]}", to)
        if head in _OPERATORS:
            return self._put(operands[0], f" {_OPERATORS[head]} ".join(values), to)
        return self._put(operands[0], f"op_{head}<{kind}>({', '.join(values)})", to)

    def _shift(self, head: str, modifiers: list[str], operands: list[str]) -> str:
        (kind,) = modifiers
        value, by = self._read(operands[1], kind), self._read(operands[2], "u32")
        return self._put(operands[0], f"op_{head}<{kind}>({value}, {by})", kind)

    def _shl(self, modifiers: list[str], operands: list[str]) -> str:
        return self._shift("shl", modifiers, operands)

    def _shr(self, modifiers: list[str], operands: list[str]) -> str:
        return self._shift("shr", modifiers, operands)

    def _of_words(self, name: str, operands: list[str]) -> str:
        values = ", ".join(self._read(operand, "u32") for operand in operands[1:])
        return self._put(operands[0], f"{name}({values})", "u32")

    def _shf(self, modifiers: list[str], operands: list[str]) -> str:
        return self._of_words(f"op_shf_{modifiers[0]}_{modifiers[1]}", operands)

    def _prmt(self, modifiers: list[str], operands: list[str]) -> str:
        return self._of_words("op_prmt", operands)

    def _lop3(self, modifiers: list[str], operands: list[str]) -> str:
        return self._of_words("op_lop3", operands)

    def _popc(self, modifiers: list[str], operands: list[str]) -> str:
        return self._bits("popc", modifiers, operands)

    def _clz(self, modifiers: list[str], operands: list[str]) -> str:
        return self._bits("clz", modifiers, operands)

    def _bfind(self, modifiers: list[str], operands: list[str]) -> str:
        assert modifiers[0] == "shiftamt", modifiers
        return self._bits("bfind_shiftamt", modifiers[1:], operands)

    def _bits(self, head: str, modifiers: list[str], operands: list[str]) -> str:
        kind = f"u{modifiers[0][1:]}"
        return self._put(operands[0], f"op_{head}<{kind}>({self._read(operands[1], kind)})", "u32")

    def _field(self, head: str, kind: str, operands: list[str], values: int) -> str:
        kind = f"u{kind[1:]}"
        kinds = [kind] * values + ["u32", "u32"]
        read = ", ".join(self._read(o, k) for o, k in zip(operands[1:], kinds, strict=True))
        return self._put(operands[0], f"op_{head}<{kind}>({read})", kind)

    def _bfi(self, modifiers: list[str], operands: list[str]) -> str:
        return self._field("bfi", modifiers[0], operands, 2)

    def _bfe(self, modifiers: list[str], operands: list[str]) -> str:
        assert modifiers[0][0] == "u", modifiers
        return self._field("bfe", modifiers[0], operands, 1)

    def _setp(self, modifiers: list[str], operands: list[str]) -> str:
        comparison, kind = modifiers
        a, b = (self._read(operand, kind) for operand in operands[1:])
        if kind[0] != "f" and comparison == "ne":
            return self._put(operands[0], f"{a} != {b}", "pred")
        if comparison in _COMPARISONS:
            return self._put(operands[0], f"{a} {_COMPARISONS[comparison]} {b}", "pred")
        return self._put(operands[0], f"op_{comparison}<{kind}>({a}, {b})", "pred")

    def _selp(self, modifiers: list[str], operands: list[str]) -> str:
        (kind,) = modifiers
        a, b = (self._read(operand, kind) for operand in operands[1:3])
        return self._put(operands[0], f"{_name(operands[3])} ? {a} : {b}", kind)

    def _cvt(self, modifiers: list[str], operands: list[str]) -> str:
        *rounding, to, source = modifiers
        assert rounding in ([], ["rzi"]), rounding
        value = self._read(operands[1], source)
        if rounding:
            value = f"op_cvt_rzi<{to}, {source}>({value})"
        return self._put(operands[0], f"({to})({value})", to)

    def _cvta(self, modifiers: list[str], operands: list[str]) -> str:
        # Global addresses are generic ones; shared ones are offsets, which never mix with them here.
        assert modifiers[0] in ("global", "shared", "param", "u64"), modifiers
        return self._put(operands[0], self._read(operands[1], "u64"), "u64")

    def _mov(self, modifiers: list[str], operands: list[str]) -> str:
        (kind,) = modifiers
        to, source = operands
        if to[0] == "{":
            parts = _vector(to)
            width = 8 * bytes_of(kind) // len(parts)
            put = " ".join(
                self._put(part, f"(u{width})(whole >> {width * i})", f"u{width}")
                for i, part in enumerate(parts)
                if part != "_"
            )
            return f"{{ const u64 whole = {self._read(source, f'u{kind[1:]}')}; {put} }}"
        if source[0] == "{":
            parts = _vector(source)
            width = 8 * bytes_of(kind) // len(parts)
            joined = " | ".join(
                f"(u64){self._read(part, f'u{width}')} << {width * i}" for i, part in enumerate(parts)
            )
            return self._put(to, joined, f"u{8 * bytes_of(kind)}")
        return self._put(to, self._read(source, kind), kind)

    # --- memory ---

    def _ld(self, modifiers: list[str], operands: list[str]) -> str:
        space, kind = modifiers[0], modifiers[-1]
        parts, size = _vector(operands[0]), bytes_of(kind)
        address = self._memory(operands[1], space, size * len(parts), "READ")
        put = " ".join(
            self._put(part, f"load<{kind}>(from + {size * i})", kind)
            for i, part in enumerate(parts)
            if part != "_"
        )
        return f"{{ const char* const from = {address}; {put} }}"

    def _st(self, modifiers: list[str], operands: list[str]) -> str:
        space, kind = modifiers[0], modifiers[-1]
        parts, size = _vector(operands[1]), bytes_of(kind)
        address = self._memory(operands[0], space, size * len(parts), "WRITE")
        stored = " ".join(
            f"store<{kind}>(to + {size * i}, {self._read(part, kind)});" for i, part in enumerate(parts)
        )
        return f"{{ char* const to = {address}; {stored} }}"

    def _atom(self, modifiers: list[str], operands: list[str]) -> str:
        space, operation, kind = modifiers
        kind = _word(kind)
        address = self._memory(operands[1], space, bytes_of(kind), "UPDATE")
        value = _ATOMIC[operation].format(self._read(operands[2], kind))
        put = self._put(operands[0], "before", kind) if operands[0] != "_" else ""
        return (
            f"{{ char* const to = {address}; const {kind} before = load<{kind}>(to); "
            f"store<{kind}>(to, {value}); {put} }}"
        )

    def _red(self, modifiers: list[str], operands: list[str]) -> str:
        return self._atom(modifiers, ["_", *operands])

    def _cp(self, modifiers: list[str], operands: list[str]) -> str:
        kind = modifiers[1]
        if kind == "commit_group":
            return "copies_commit();"
        if kind == "wait_group":
            return f"copies_wait({operands[0]}, {self._line});"
        assert modifiers == ["async", "cg", "shared", "global"] and operands[2] == "16", (modifiers, operands)
        to, source = (_ADDRESS.fullmatch(operand) for operand in operands[:2])
        assert to is not None and source is not None, operands
        places = [f"{self._read(m[1], 'u64')} + (u64)({m[2] or 0})" for m in (to, source)]
        return f"copy16({places[0]}, {places[1]}, {self._line});"

    # --- control and the warp ---

    def _bra(self, modifiers: list[str], operands: list[str]) -> str:
        return f"goto {_name(operands[0])};"

    def _ret(self, modifiers: list[str], operands: list[str]) -> str:
        return "return;"

    def _bar(self, modifiers: list[str], operands: list[str]) -> str:
        assert modifiers == [] and operands == ["0"], operands
        return f'barrier("{self._kernel.name}", {self._line});'

    def _shfl(self, modifiers: list[str], operands: list[str]) -> str:
        mode, _ = modifiers
        to = operands[0].partition("|")[0]
        value, lane, clamp, mask = (self._read(operand, "u32") for operand in operands[1:])
        return self._put(to, f'shuffle("{mode}", {value}, {lane}, {clamp}, {mask})', "u32")

    def _mma(self, modifiers: list[str], operands: list[str]) -> str:
        assert modifiers[0] in ("m16n8k16", "m16n8k8"), modifiers
        assert modifiers[1:] == ["row", "col", "f32", "f16", "f16", "f32"], modifiers
        to, a, b, c = (_vector(operand) for operand in operands)
        # m16n8k8 is m16n8k16 with zeros in columns 8 … 15.
        a, b = [*a, "0", "0"][:4], [*b, "0"][:2]
        values = [
            ", ".join(self._read(part, kind) for part in parts)
            for parts, kind in ((c, "f32"), (a, "u32"), (b, "u32"))
        ]
        put = " ".join(self._put(part, f"c[{i}]", "f32") for i, part in enumerate(to))
        return (
            f"{{ f32 c[4] = {{{values[0]}}}; const u32 a[4] = {{{values[1]}}}, b[2] = {{{values[2]}}}; "
            f"multiply(c, a, b); {put} }}"
        )

    def _ldmatrix(self, modifiers: list[str], operands: list[str]) -> str:
        assert modifiers == ["m8n8", "x4", "shared", "b16"], modifiers
        parts, address = _vector(operands[0]), _ADDRESS.fullmatch(operands[1])
        assert address is not None, operands
        place = f"{self._read(address[1], 'u64')} + (u64)({address[2] or 0})"
        put = " ".join(self._put(part, f"to[{i}]", "u32") for i, part in enumerate(parts))
        return f"{{ u32 to[4]; load_matrices(to, {place}, {self._line}); {put} }}"


def _name(text: str) -> str:
    """A C++ name for a register or label."""
    return text.replace("%", "r_").replace("$", "L_")


def _vector(operand: str) -> list[str]:
    return [part.strip() for part in operand.strip("{} ").split(",")]


def _word(kind: str) -> str:
    """The C++ type of a register of a PTX type."""
    return {"pred": "bool"}.get(kind, kind if kind in _REAL else f"u{kind[1:]}")


def _literal(text: str, kind: str) -> str:
    if text[:2].lower() in ("0f", "0d"):
        return f"as<{kind}>((u{kind[1:]})0x{text[2:]}ull)"
    assert kind not in _REAL, text
    bits = int(text.rstrip("U"), 0) % (1 << 8 * bytes_of(kind))
    return f"({kind})0x{bits:x}ull"
