"""Read the machine code of a library: is every instruction integer work?

The whole of every executable section is decoded in one sweep (compilers for x86-64 keep tables in
.rodata, so code is all there is) and every mnemonic looked up in x86_mnemonics. Functions imported
from libm count as float too.
"""

import bisect
import math
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from intformer.elf import Elf, Section
from intformer.errors import LibraryError
from intformer.finding import Finding
from intformer.x86_mnemonics import fault

X86_64 = 62  # e_machine
EXECUTABLE = 4  # sh_flags: SHF_EXECINSTR
DYNSYM, SYMTAB, VERNEED, VERSYM = 11, 2, 0x6FFFFFFE, 0x6FFFFFFF  # sh_type
FUNCTION = 2  # symbol type
SYMBOL = "<IBBHQQ"  # Elf64_Sym: name, info, other, section index, value, size


@dataclass
class MachineCode:
    """What the code of a library holds.

    instructions  how many were decoded
    mnemonics     how often each occurs
    functions     in the order of their addresses: name, and the CPUID features its code uses, as
                  iced-x86 names them (AVX512_VNNI, ...)
    findings      instructions and imports that are not integer work
    """

    instructions: int = 0
    mnemonics: Counter = field(default_factory=Counter)
    functions: list[tuple[str, set[str]]] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    @property
    def features(self) -> set[str]:
        """CPUID features of all code."""
        return set().union(*(features for _, features in self.functions))


def check(path: Path) -> MachineCode:
    """Decode every executable section of an ELF file (library or object) and judge it."""
    import iced_x86

    elf = Elf(Path(path))
    (arch,) = struct.unpack_from("<H", elf.data, 18)
    if arch != X86_64:
        raise LibraryError(f"code for ELF machine {arch}; x86-64 is {X86_64}", where=str(path))
    names = {
        number: name.lower()
        for name, number in vars(iced_x86.Mnemonic).items()
        if isinstance(number, int)
    }
    features = {
        number: name
        for name, number in vars(iced_x86.CpuidFeature).items()
        if isinstance(number, int)
    }
    formatter = iced_x86.Formatter(iced_x86.FormatterSyntax.INTEL)
    found = MachineCode()
    functions = Functions(elf)
    for section in elf.sections:
        if not section.flags & EXECUTABLE:
            continue
        code = elf.data[section.offset : section.offset + section.size]
        next_function = 0  # address where another one starts
        for instruction in iced_x86.Decoder(64, code, ip=section.addr):
            name = names[instruction.mnemonic]
            found.mnemonics[name] += 1
            if instruction.ip >= next_function:
                name_here, next_function = functions.around(instruction.ip)
                used: set[str] = set()
                found.functions.append((name_here, used))
            used.update(features[f] for f in instruction.cpuid_features())
            reason = fault(name)
            if reason:
                text = f"{reason}: {formatter.format(instruction)}"
                found.findings.append(Finding(functions.at(instruction.ip), text))
    found.instructions = found.mnemonics.total()
    found.findings += [
        Finding("imports", f"float function: {name} from {library}")
        for name, library in imports(elf)
        if library.startswith("libm.")
    ]
    if not found.instructions:
        raise LibraryError("no code in it", where=str(path))
    return found


class Functions:
    """Names an address by the function it lies in, where symbols were kept."""

    def __init__(self, elf: Elf):
        """Collect the function symbols of both symbol tables, sorted by address."""
        found = {}
        for section in elf.sections:
            if section.type in (DYNSYM, SYMTAB):
                for name, info, _, index, value, _ in entries(elf, section, SYMBOL):
                    if info & 15 == FUNCTION and index:
                        found[value] = text(elf, section, name)
        self.addresses = sorted(found)
        self.names = [found[address] for address in self.addresses]

    def around(self, address: int) -> tuple[str, float]:
        """Return the name of the function, "" before the first, and where the next one starts."""
        i = bisect.bisect_right(self.addresses, address)
        following = self.addresses[i] if i < len(self.addresses) else math.inf
        return self.names[i - 1] if i else "", following

    def at(self, address: int) -> str:
        """Return "function+0x12", or the bare address before the first symbol."""
        i = bisect.bisect_right(self.addresses, address) - 1
        if i < 0:
            return hex(address)
        return f"{self.names[i]}+{address - self.addresses[i]:#x}"


def entries(elf: Elf, section: Section, layout: str) -> Iterator[tuple]:
    """Unpack the fixed-size entries of a section."""
    return struct.iter_unpack(layout, elf.data[section.offset : section.offset + section.size])


def text(elf: Elf, section: Section, offset: int) -> str:
    """Return a string from the string table that a section is linked to."""
    start = elf.sections[section.link].offset + offset
    return elf.data[start : elf.data.index(b"\0", start)].decode()


def imports(elf: Elf) -> list[tuple[str, str]]:
    """Return (symbol, library) of every versioned symbol taken from another library."""
    by_type = {section.type: section for section in elf.sections}
    if not {DYNSYM, VERNEED, VERSYM} <= by_type.keys():
        return []
    needed, symbols = by_type[VERNEED], by_type[DYNSYM]
    library = {}  # version index -> file name
    entry = needed.offset
    for _ in range(needed.info):
        _, count, file, first, following = struct.unpack_from("<HHIII", elf.data, entry)
        version = entry + first
        for _ in range(count):
            _, _, other, _, step = struct.unpack_from("<IHHII", elf.data, version)
            library[other] = text(elf, needed, file)
            version += step
        entry += following
    versions = [version & 0x7FFF for (version,) in entries(elf, by_type[VERSYM], "<H")]
    return [
        (text(elf, symbols, name), library[version])
        for (name, _, _, index, _, _), version in zip(
            entries(elf, symbols, SYMBOL), versions, strict=True
        )
        if index == 0 and version in library
    ]
