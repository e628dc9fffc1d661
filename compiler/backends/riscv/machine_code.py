"""Read the machine code of a library: is every instruction integer work?

Instructions have two or four bytes and start at even addresses, so one could hide in the halves of
others: decoding starts at the first byte, and again at every target of a jump or address in the
code and at every address of code in the data, until it meets an instruction that is decoded
already. Functions imported from libm count as float too.
"""

from collections.abc import Iterator
from pathlib import Path

from intformer.backends.cpu.code_bytes import Functions, Kind, Region, judged, opened, regions
from intformer.backends.cpu.machine_code import MachineCode
from intformer.backends.riscv import vectors
from intformer.backends.riscv.backend import RiscV
from intformer.backends.riscv.mnemonics import fault

HALF, WHOLE = 2, 4  # bytes of an instruction
BRANCH, JAL, JALR, AUIPC, ADDI = 0x63, 0x6F, 0x67, 0x17, 0x13  # major opcodes


def check(path: Path) -> MachineCode:
    """Decode every executable byte of an ELF file, and judge it.

    Executable is what the program headers map so: section headers are believed for names alone.
    Of an object, which has no program headers, its executable sections are read.
    """
    elf = opened(path, RiscV.elf_machine, "RISC-V")
    found, functions, decoder = regions(elf, path), Functions(elf), Decoder()
    decoded: dict[int, tuple[str, Kind]] = {}
    for region in found:
        decoded |= decode(region, functions.addresses, decoder)
    return judged(path, elf, found, functions, decoded, str)


def decode(region: Region, hints: list[int], decoder: "Decoder") -> dict[int, tuple[str, Kind]]:
    """Return address -> (text, kind) of everything that can run in a region.

    hints  more addresses to start at, such as those of symbols: they can only add code
    """
    base, code = region.address, region.code
    end = base + len(code)
    found: dict[int, tuple[str, Kind]] = {}
    starts = [base, *region.entries, *hints]
    while starts:
        at = starts.pop()
        before = 0  # the word before
        while base <= at < end and at not in found:
            raw = code[at - base : at - base + WHOLE]
            raw = raw if raw[0] & 3 == 3 else raw[:HALF]
            found[at] = decoder.of(raw)
            word = int.from_bytes(raw, "little")
            starts += [at + offset for offset in targets(word, before)]
            at, before = at + len(raw), word
    return found


def targets(word: int, before: int) -> Iterator[int]:
    """Yield where an instruction may lead beside the next one, from its own address.

    word    a jump or branch; or the second of a pair, auipc first, which makes an address of code
    before  the word of the instruction before it
    """
    opcode = word & 0x7F
    if opcode == BRANCH:
        yield _signed(_bits(word, (31, 12), (7, 11), (25, 5, 6), (8, 1, 4)), 13)
    elif opcode == JAL:
        yield _signed(_bits(word, (31, 20), (12, 12, 8), (20, 11), (21, 1, 10)), 21)
    elif opcode in (JALR, ADDI) and before & 0x7F == AUIPC:
        if word >> 15 & 31 == before >> 7 & 31:  # reads what auipc wrote
            yield _signed(before & ~0xFFF, 32) + _signed(word >> 20, 12) - WHOLE
    elif word & 3 == 1 and word >> 13 == 0b101:  # c.j
        fields = (12, 11), (11, 4), (9, 8, 2), (8, 10), (7, 6), (6, 7), (3, 1, 3), (2, 5)
        yield _signed(_bits(word, *fields), 12)
    elif word & 3 == 1 and word >> 13 in (0b110, 0b111):  # c.beqz, c.bnez
        fields = (12, 8), (10, 3, 2), (5, 6, 2), (3, 1, 2), (2, 5)
        yield _signed(_bits(word, *fields), 9)


def _bits(word: int, *fields: tuple[int, ...]) -> int:
    """Return a number made of fields of a word: (first bit there, first bit here, how many)."""
    number = 0
    for there, here, *count in fields:
        number |= (word >> there & (1 << (count or [1])[0]) - 1) << here
    return number


def _signed(number: int, bits: int) -> int:
    number &= (1 << bits) - 1
    return number - (number >> bits - 1 << bits)


class Decoder:
    """Decodes instructions, each of them once."""

    def __init__(self):
        """Make a decoder of capstone's."""
        import capstone

        mode = capstone.CS_MODE_RISCV64 | capstone.CS_MODE_RISCVC
        self.capstone = capstone.Cs(capstone.CS_ARCH_RISCV, mode)
        self.known: dict[bytes, tuple[str, Kind]] = {}

    def of(self, raw: bytes) -> tuple[str, Kind]:
        """Return text and kind of an instruction, its targets as seen from address 0."""
        if raw not in self.known:
            self.known[raw] = self._decoded(raw)
        return self.known[raw]

    def _decoded(self, raw: bytes) -> tuple[str, Kind]:
        number = int.from_bytes(raw, "little")
        if name := vectors.name(number):
            return f"{name} {number:#010x}", (name, fault(name), {"v"})
        for instruction in self.capstone.disasm(raw, 0):
            if instruction.size == len(raw):
                name = self.capstone.insn_name(instruction.id)
                text = f"{instruction.mnemonic} {instruction.op_str}".rstrip()
                return text, (name, fault(name), set())
        return f"{number:#0{2 + 2 * len(raw)}x}", ("unknown", "unknown instruction", set())
