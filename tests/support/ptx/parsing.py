"""PTX text to kernels of statements; the subset that the compiler emits for kernels/cuda/src."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_ENTRY = re.compile(r"\.entry\s+(\w+)\s*\(([^)]*)\)([^{]*)\{")
_REGISTERS = re.compile(r"\.reg\s+\.(\w+)\s+([^;]+)")
_SHARED = re.compile(r"\.shared\s+\.align\s+(\d+)\s+\.(\w+)\s+(\w+)(\[(\d*)\])?")
_LABEL = re.compile(r"([$\w]+):\s*")
_GUARD = re.compile(r"@(!?)(%\w+)\s+")
_BYTES = re.compile(r"\d+$")


@dataclass(frozen=True)
class Label:
    name: str


@dataclass(frozen=True)
class Instruction:
    """`@guard opcode operands;` at a line of the PTX. negated: whether the guard is `@!`."""

    line: int
    opcode: tuple[str, ...]
    operands: tuple[str, ...]
    guard: str = ""
    negated: bool = False

    @property
    def ends_block(self) -> bool:
        return self.opcode[0] in ("bra", "ret")


Statement = Label | Instruction


@dataclass
class Kernel:
    """registers: type of each by name. shared: offset of each variable. static: bytes of shared memory."""

    name: str
    registers: dict[str, str] = field(default_factory=dict)
    shared: dict[str, int] = field(default_factory=dict)
    static: int = 0
    statements: list[Statement] = field(default_factory=list)


def read_kernels(text: str) -> list[Kernel]:
    """All entries of a PTX module."""
    text = re.sub(r"//[^\n]*", "", text)
    # Shared variables that are declared outside of a kernel are its dynamic memory.
    outside = [match[3] for match in _SHARED.finditer(text) if match[4] and not match[5]]
    kernels = []
    for entry in _ENTRY.finditer(text):
        end = _closing(text, entry.end())
        kernel = Kernel(entry[1])
        _read_body(kernel, text[entry.end() : end], text.count("\n", 0, entry.end()) + 1)
        kernel.shared |= dict.fromkeys(outside, -(-kernel.static // 16) * 16)
        kernels.append(kernel)
    return kernels


def basic_blocks(kernel: Kernel) -> list[list[Instruction]]:
    """Instructions of a kernel, split before every label and after every branch."""
    blocks: list[list[Instruction]] = [[]]
    for statement in kernel.statements:
        if isinstance(statement, Label):
            blocks.append([])
            continue
        blocks[-1].append(statement)
        if statement.ends_block:
            blocks.append([])
    return blocks


def bytes_of(kind: str) -> int:
    """Bytes of a type such as f32."""
    match = _BYTES.search(kind)
    assert match is not None, kind
    return int(match[0]) // 8


def _closing(text: str, start: int) -> int:
    depth = 1
    for at in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if depth == 0:
            return at
    raise AssertionError("a kernel is not closed")


def _read_body(kernel: Kernel, body: str, line: int) -> None:
    at = 0
    while at < len(body):
        if body[at].isspace() or body[at] in "{}":  # braces open scopes here, of names that never clash
            line += body[at] == "\n"
            at += 1
        elif label := _LABEL.match(body, at):
            kernel.statements.append(Label(label[1]))
            line += label[0].count("\n")
            at = label.end()
        else:
            end = body.index(";", at)
            _read_statement(kernel, " ".join(body[at:end].split()), line)
            line += body.count("\n", at, end)
            at = end + 1


def _read_statement(kernel: Kernel, text: str, line: int) -> None:
    if not text.startswith("."):
        guard = _GUARD.match(text)
        opcode, _, rest = text[guard.end() if guard else 0 :].partition(" ")
        kernel.statements.append(
            Instruction(
                line,
                tuple(opcode.split(".")),
                tuple(_split(rest)),
                guard[2] if guard else "",
                bool(guard and guard[1]),
            )
        )
    elif registers := _REGISTERS.match(text):
        for name in registers[2].split(","):
            family = re.fullmatch(r"\s*(%?\w+)<(\d+)>\s*", name)
            names = [f"{family[1]}{i}" for i in range(int(family[2]))] if family else [name.strip()]
            kernel.registers |= dict.fromkeys(names, registers[1])
    elif shared := _SHARED.match(text):
        offset = -(-kernel.static // int(shared[1])) * int(shared[1])
        kernel.shared[shared[3]] = offset
        kernel.static = offset + bytes_of(shared[2]) * int(shared[5] or 1)
    else:
        assert text.startswith(".pragma"), text


def _split(text: str) -> list[str]:
    """Operands, at the commas outside of braces and brackets."""
    operands, depth = [""], 0
    for character in text:
        depth += {"{": 1, "[": 1, "}": -1, "]": -1}.get(character, 0)
        if character == "," and depth == 0:
            operands.append("")
        else:
            operands[-1] += character
    return [operand.strip() for operand in operands if operand.strip()]
