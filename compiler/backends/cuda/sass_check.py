"""Is every SASS instruction integer work, and do the kernels fit the chip?"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from intformer.backends.cuda.sass import Function, disassemble
from intformer.backends.cuda.sass_opcodes import MATRIX, fault, is_constant_move
from intformer.proof.finding import Finding

TENSOR_CORES = ("dense", "attention")  # kernels that must use them, by how their names start
NO_SPILLS = ("dense",)  # kernels that may not touch local memory
REGISTERS = 65536  # of a streaming multiprocessor, on every chip from sm_75 to sm_90
SHARED = 48 << 10  # static shared memory of a block, bytes
REGISTER_UNIT = 8  # a thread's registers are handed out in eights


@dataclass
class Sass:
    """What the machine code of a cubin holds.

    instructions    how many there are
    opcodes         how often each occurs, names up to the first dot
    constant_moves  constants loaded through the half-precision pipe (sass_opcodes says why)
    arch            chip generation it is for, "sm_75"
    functions       by name, with their registers and shared memory
    findings        what is no integer work, or more than the chip has
    """

    instructions: int = 0
    opcodes: Counter = field(default_factory=Counter)
    constant_moves: int = 0
    arch: str = ""
    functions: dict[str, Function] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)


def check(
    cubin: bytes,
    *,
    tensor_cores: Sequence[str] = TENSOR_CORES,
    no_spills: Sequence[str] = NO_SPILLS,
    threads: Mapping[str, int] | None = None,
) -> Sass:
    """Read every instruction of a cubin and judge it.

    tensor_cores  kernels whose names start so must hold an integer matrix product
    no_spills     kernels whose names start so may not use local memory
    threads       of a block, by kernel; registers are judged where they are known
    """
    read = disassemble(cubin)
    found = Sass(arch=read.arch, functions=read.functions)
    for name, function in found.functions.items():
        count(function, found)
        found.findings += judge_limits(function, (threads or {}).get(name))
        held = {instruction.name for instruction in function.instructions}
        if name.startswith(tuple(tensor_cores)) and not held & MATRIX:
            found.findings.append(Finding(name, "no tensor-core instruction (IMMA)"))
        if name.startswith(tuple(no_spills)) and held & {"LDL", "STL"}:
            found.findings.append(Finding(name, "uses local memory: registers spill"))
    if not found.instructions:
        found.findings.append(Finding("cubin", "no code in it"))
    return found


def count(function: Function, found: Sass) -> None:
    """Count the instructions of a function, and report each kind of float work in it once."""
    seen = set()
    for instruction in function.instructions:
        found.instructions += 1
        found.opcodes[instruction.name] += 1
        found.constant_moves += is_constant_move(instruction.opcode, instruction.operands)
        reason = fault(instruction.opcode, instruction.operands)
        if reason and (reason, instruction.name) not in seen:
            seen.add((reason, instruction.name))
            text = f"{reason}: {instruction.opcode} {instruction.operands}".rstrip()
            found.findings.append(Finding(f"{function.name}+{instruction.offset:#x}", text))


def judge_limits(function: Function, threads: int | None) -> list[Finding]:
    """Return in what a kernel takes more than a block may have."""
    findings = []
    if function.shared > SHARED:
        what = f"{function.shared} bytes of shared memory; a block may have {SHARED}"
        findings.append(Finding(function.name, what))
    if threads:
        units = -(-function.registers // REGISTER_UNIT) * REGISTER_UNIT
        if units * threads > REGISTERS:
            what = f"{function.registers} registers x {threads} threads; {REGISTERS} registers"
            findings.append(Finding(function.name, f"{what} are there"))
    return findings
