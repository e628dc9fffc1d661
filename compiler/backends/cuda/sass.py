"""Reads cubins: the instructions of every function (by nvdisasm), and what a kernel takes."""

import re
import struct
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from intformer import scratch
from intformer.backends.cuda.toolchain import find_program
from intformer.errors import CompileError, IntformerError
from intformer.link.elf import Elf

PACKAGES = ("nvidia-cuda-nvdisasm",)
INSTALL = "pip install 'intformer[cuda]', or put CUDA's nvdisasm on PATH"
REGISTER_COUNT, FRAME_SIZE = 0x2F, 0x11  # attributes of .nv.info: symbol, number
SYSTEM_SHARED = 1024  # bytes of a block's shared memory that are the system's, from sm_90 on
ABI_VERSION, FLAGS = 8, 48  # offsets in the header of an ELF file
CUDA_13 = 8  # its ABI version; the chip's number has another place in the flags since then
SIZED = 4  # format of an attribute that is followed by its size

_INSTRUCTION = re.compile(
    r"/\*(?P<offset>[0-9a-f]{4,})\*/\s+(?:@(?P<guard>!?U?P\w+)\s+)?"
    r"(?P<opcode>[A-Z][\w.]*)(?:\s+(?P<operands>[^;]*?))?\s*;"
)


@dataclass(frozen=True)
class Instruction:
    """One SASS instruction.

    offset    bytes from the start of the function's section
    guard     predicate that decides whether it runs: "P0", "!P1", "UP2"; "" = always
    opcode    with all that follows its dots
    operands  text; branch targets are the names of labels
    """

    offset: int
    guard: str
    opcode: str
    operands: str

    @property
    def name(self) -> str:
        """The opcode up to the first dot."""
        return self.opcode.partition(".")[0]


@dataclass
class Function:
    """The code of one section .text.NAME: a kernel with all that it calls.

    labels      label -> index of the instruction after it
    registers   of a thread; 0 where the cubin does not say
    shared      static shared memory, bytes
    stack       frame in local memory, bytes
    """

    name: str
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    registers: int = 0
    shared: int = 0
    stack: int = 0


@dataclass
class Cubin:
    """A cubin, read: the chip generation it is for ("sm_75"), and its functions by name."""

    arch: str = ""
    functions: dict[str, Function] = field(default_factory=dict)


def disassemble(cubin: bytes) -> Cubin:
    """Read every function of a cubin; CompileError where nvdisasm is missing or fails."""
    program = find_program("nvdisasm", PACKAGES)
    if not program:
        raise CompileError("SASS cannot be read: no nvdisasm", where="cubin", hint=INSTALL)
    with scratch.folder() as folder:
        path = Path(folder, "kernels.cubin")
        path.write_bytes(cubin)
        run = subprocess.run([program, "-c", str(path)], capture_output=True, text=True)
        if run.returncode:
            said = (run.stderr + run.stdout).replace(f"{folder}/", "").strip().splitlines()
            raise CompileError(said[0] if said else "it fails without a word", where=program)
        read = read_text(run.stdout)
        read.arch, taken = header(path)
        for name, facts in taken.items():
            if here := read.functions.get(name):
                here.registers, here.shared, here.stack = facts
    return read


def read_text(text: str) -> Cubin:
    """Return the functions in what `nvdisasm -c` prints."""
    found = Cubin()
    here: Function | None = None
    for line in text.splitlines():
        line = line.strip()
        if section := re.match(r'\.section\s+"?([^",\s]+)', line):
            name = section[1].removeprefix(".text.")
            here = found.functions.setdefault(name, Function(name)) if name != section[1] else None
        elif here is None:
            continue
        elif label := re.fullmatch(r"([.$\w]+):", line):
            here.labels[label[1]] = len(here.instructions)
        elif match := _INSTRUCTION.search(line):
            operands = re.sub(r"`\(([^()]+)\)", r"\1", match["operands"] or "")
            offset, guard = int(match["offset"], 16), match["guard"] or ""
            here.instructions.append(Instruction(offset, guard, match["opcode"], operands))
        elif re.match(r"/\*[0-9a-f]{4,}\*/", line):
            raise CompileError(f"an instruction nvdisasm prints oddly: {line}", where=here.name)
    return found


def header(path: Path) -> tuple[str, dict[str, tuple[int, int, int]]]:
    """Return what the ELF file of a cubin says.

    result  its chip, "sm_75"; (registers, static shared bytes, stack bytes) of every kernel
    """
    try:
        elf = Elf(path)
        (flags,) = struct.unpack_from("<I", elf.data, FLAGS)
        number = flags >> (8 if elf.data[ABI_VERSION] >= CUDA_13 else 0) & 0xFF
        return f"sm_{number}", _resources(elf)
    except (struct.error, LookupError, ValueError, IntformerError) as error:
        raise CompileError(f"not a cubin: {error}", where=path.name) from None


def _resources(elf: Elf) -> dict[str, tuple[int, int, int]]:
    by_name = {section.name: section for section in elf.sections}
    names = {}  # symbol number -> name
    table = by_name[".symtab"]
    strings = elf.sections[table.link].offset
    for number, at in enumerate(range(table.offset, table.offset + table.size, 24)):
        (name,) = struct.unpack_from("<I", elf.data, at)
        start = strings + name
        names[number] = elf.data[start : elf.data.index(b"\0", start)].decode()
    found = {name: [0, 0, 0] for name in names.values() if f".text.{name}" in by_name}
    reserved = SYSTEM_SHARED if ".nv.shared.reserved.0" in by_name else 0
    for name, facts in found.items():
        if shared := by_name.get(f".nv.shared.{name}"):
            facts[1] = shared.size - reserved
    info = by_name[".nv.info"]
    at, end = info.offset, info.offset + info.size
    while at < end:
        form, attribute, size = struct.unpack_from("<BBH", elf.data, at)
        at += 4
        if form != SIZED:
            continue
        if attribute in (REGISTER_COUNT, FRAME_SIZE) and size == 8:
            symbol, number = struct.unpack_from("<II", elf.data, at)
            if names.get(symbol) in found:
                found[names[symbol]][0 if attribute == REGISTER_COUNT else 2] = number
        at += size
    return {name: tuple(facts) for name, facts in found.items()}
