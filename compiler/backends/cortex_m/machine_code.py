"""Read the machine code of an object for Cortex-M: is every instruction integer work?

Compilers keep constants between functions, and mark by the symbols $t and $d where code and data
start ("ELF for the Arm Architecture", 5.5.5): what is code by them is decoded.
"""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from intformer.backends.cortex_m.backend import CortexM
from intformer.backends.cortex_m.mnemonics import fault
from intformer.backends.cpu.code_bytes import (
    EXECUTABLE,
    Functions,
    Kind,
    Region,
    judged,
    opened,
    section_bases,
)
from intformer.backends.cpu.machine_code import MachineCode
from intformer.link.elf import Elf

CODE, DATA = "$t", "$d"
HALF = 2  # bytes of the smallest instruction


def check(path: Path) -> MachineCode:
    """Decode the code of an object, and judge it."""
    elf = opened(path, CortexM.elf_machine, "ARM")
    found, decoder = list(regions(elf)), Decoder()
    decoded: dict[int, tuple[str, Kind]] = {}
    for region in found:
        decoded |= decoder.decode(region)
    return judged(path, elf, found, Functions(elf), decoded, str)


def regions(elf: Elf) -> Iterator[Region]:
    """Yield the code of each executable section, without what lies between functions."""
    marks: dict[int, list[tuple[int, str]]] = {}
    for symbol in elf.table():
        if symbol.name.split(".")[0] in (CODE, DATA):
            marks.setdefault(symbol.index, []).append((symbol.value, symbol.name.split(".")[0]))
    bases = section_bases(elf)
    for number, section in enumerate(elf.sections):
        if not section.flags & EXECUTABLE or not section.size:
            continue
        starts = [(0, CODE), *sorted(marks.get(number, ())), (section.size, DATA)]
        for (start, kind), (stop, _) in pairwise(starts):
            if kind == CODE and start < stop:
                code = elf.data[section.offset + start : section.offset + stop]
                yield Region(bases[number] + start, code)


class Decoder:
    """Decodes Thumb instructions."""

    def __init__(self):
        """Make a decoder of capstone's."""
        import capstone

        mode = capstone.CS_MODE_THUMB | capstone.CS_MODE_MCLASS
        self.capstone = capstone.Cs(capstone.CS_ARCH_ARM, mode)

    def decode(self, region: Region) -> dict[int, tuple[str, Kind]]:
        """Return address -> (text, kind) of every instruction of a region."""
        found: dict[int, tuple[str, Kind]] = {}
        at, end = 0, len(region.code)
        while at < end:
            for one in self.capstone.disasm(region.code[at:], region.address + at):
                name = self.capstone.insn_name(one.id)
                text = f"{one.mnemonic} {one.op_str}".rstrip()
                found[one.address] = text, (name, fault(name), set())
                at = one.address + one.size - region.address
            if at < end:
                number = int.from_bytes(region.code[at : at + HALF], "little")
                unknown = ("unknown", "unknown instruction", set())
                found[region.address + at] = f"{number:#06x}", unknown
                at += HALF
        return found
