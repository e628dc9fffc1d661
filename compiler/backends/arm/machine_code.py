"""Read the machine code of a library: is every instruction integer work?

Instructions have four bytes each, and compilers keep tables in .rodata: so every word of every
executable segment is decoded, and its mnemonic looked up in mnemonics.py. No jump can land inside
an instruction. Functions imported from libm count as float too.
"""

import struct
from pathlib import Path

from intformer.backends.arm.backend import Arm
from intformer.backends.arm.mnemonics import FEATURES, fault
from intformer.backends.cpu.code_bytes import Functions, Kind, Region, judged, opened, regions
from intformer.backends.cpu.machine_code import MachineCode
from intformer.proof.finding import Finding

PAGE = 65536  # the largest that systems have
WORD = 4  # bytes of an instruction


def check(path: Path) -> MachineCode:
    """Decode every executable word of an ELF file, and judge it.

    Executable is what the program headers map so: section headers are believed for names alone.
    Of an object, which has no program headers, its executable sections are read.
    """
    elf = opened(path, Arm.elf_machine, "AArch64")
    found = regions(elf, path, PAGE)
    decoder = Decoder()
    decoded: dict[int, tuple[str, Kind]] = {}
    for region in found:
        decoded |= decoder.decode(region)
    return judged(path, elf, found, Functions(elf), decoded, str)


class Decoder:
    """Decodes words, each of them once."""

    def __init__(self):
        """Make a decoder of capstone's."""
        import capstone

        self.capstone = capstone.Cs(capstone.CS_ARCH_ARM64, capstone.CS_MODE_LITTLE_ENDIAN)
        self.known: dict[bytes, tuple[str, Kind]] = {}

    def decode(self, region: Region) -> dict[int, tuple[str, Kind]]:
        """Return address -> (text, kind) of every word; what is no whole word is a finding."""
        if region.address % WORD or len(region.code) % WORD:
            what = f"code at {region.address:#x} is not made of whole instructions"
            region.findings.append(Finding("code", what))
        return {
            region.address + at: self.of(region.code[at : at + WORD])
            for at in range(0, len(region.code) // WORD * WORD, WORD)
        }

    def of(self, word: bytes) -> tuple[str, Kind]:
        """Return text and kind of an instruction, its targets as seen from address 0."""
        if word not in self.known:
            self.known[word] = self._decoded(word)
        return self.known[word]

    def _decoded(self, word: bytes) -> tuple[str, Kind]:
        for _, _, name, operands in self.capstone.disasm_lite(word, 0):
            features = {FEATURES[name]} if name in FEATURES else set()
            return f"{name} {operands}".rstrip(), (name, fault(name), features)
        (number,) = struct.unpack("<I", word)
        return f"{number:#010x}", ("unknown", "unknown instruction", set())
