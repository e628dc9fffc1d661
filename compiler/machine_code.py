"""Read the machine code of a library: is every instruction integer work?

The whole of every executable section is decoded in one sweep (compilers for x86-64 keep tables in
.rodata, so code is all there is) and every mnemonic looked up in x86_mnemonics. Functions imported
from libm count as float too.
"""

import bisect
import struct
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from intformer.errors import LibraryError
from intformer.finding import Finding
from intformer.x86_mnemonics import fault

X86_64 = 62  # e_machine
EXECUTABLE = 4  # sh_flags: SHF_EXECINSTR
DYNSYM, SYMTAB, VERNEED, VERSYM = 11, 2, 0x6FFFFFFE, 0x6FFFFFFF  # sh_type
FUNCTION = 2  # symbol type


@dataclass
class MachineCode:
    """What the code of a library holds.

    instructions  how many were decoded
    mnemonics     how often each occurs
    features      CPUID features the code uses, as iced-x86 names them (AVX512_VNNI, ...)
    findings      instructions and imports that are not integer work
    """

    instructions: int = 0
    mnemonics: Counter = field(default_factory=Counter)
    features: set[str] = field(default_factory=set)
    findings: list[Finding] = field(default_factory=list)


@dataclass
class Section:
    """One section header of an ELF file, with its bytes."""

    kind: int
    flags: int
    address: int
    link: int
    data: bytes


def check(path: Path) -> MachineCode:
    """Decode every executable section of an ELF file (library or object) and judge it."""
    import iced_x86

    sections = read_sections(Path(path))
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
    functions = Functions(sections)
    for section in sections:
        if not section.flags & EXECUTABLE:
            continue
        for instruction in iced_x86.Decoder(64, section.data, ip=section.address):
            name = names[instruction.mnemonic]
            found.mnemonics[name] += 1
            found.features.update(features[f] for f in instruction.cpuid_features())
            reason = fault(name)
            if reason:
                text = f"{reason}: {formatter.format(instruction)}"
                found.findings.append(Finding(functions.at(instruction.ip), text))
    found.instructions = found.mnemonics.total()
    found.findings += [
        Finding("imports", f"float function: {name} from {library}")
        for name, library in imports(sections)
        if library.startswith("libm.")
    ]
    if not found.instructions:
        raise LibraryError("no code in it", where=str(path))
    return found


def read_sections(path: Path) -> list[Section]:
    """Return the sections of a 64-bit little-endian x86-64 ELF file."""
    data = path.read_bytes()
    if len(data) < 64 or data[:6] != b"\x7fELF\x02\x01":
        raise LibraryError("not a 64-bit ELF file", where=str(path), hint="give a compiled .so")
    (machine,) = struct.unpack_from("<H", data, 18)
    if machine != X86_64:
        raise LibraryError(
            f"machine code of ELF machine {machine}, only x86-64 (62) can be read", where=str(path)
        )
    (table,) = struct.unpack_from("<Q", data, 40)
    size, count, _ = struct.unpack_from("<HHH", data, 58)
    sections = []
    for i in range(count):
        _, kind, flags, address, offset, length, link, _ = struct.unpack_from(
            "<IIQQQQII", data, table + i * size
        )
        body = data[offset : offset + length] if kind != 8 else b""  # 8: NOBITS, nothing stored
        sections.append(Section(kind, flags, address, link, body))
    return sections


def text(section: Section, offset: int) -> str:
    """Return the NUL-terminated string at an offset of a string table."""
    return section.data[offset : section.data.index(b"\0", offset)].decode()


class Functions:
    """Names an address by the function it lies in, where symbols were kept."""

    def __init__(self, sections: list[Section]):
        """Collect the function symbols of both symbol tables, sorted by address."""
        found = {}
        for section in sections:
            if section.kind not in (DYNSYM, SYMTAB):
                continue
            for name, info, _, index, value, _ in struct.iter_unpack("<IBBHQQ", section.data):
                if info & 15 == FUNCTION and index:
                    found[value] = text(sections[section.link], name)
        self.addresses = sorted(found)
        self.names = [found[address] for address in self.addresses]

    def at(self, address: int) -> str:
        """Return "function+0x12", or the bare address before the first symbol."""
        i = bisect.bisect_right(self.addresses, address) - 1
        if i < 0:
            return hex(address)
        return f"{self.names[i]}+{address - self.addresses[i]:#x}"


def imports(sections: list[Section]) -> list[tuple[str, str]]:
    """Return (symbol, library) of every versioned symbol taken from another library."""
    by_kind = {section.kind: section for section in sections}
    if not {DYNSYM, VERNEED, VERSYM} <= by_kind.keys():
        return []
    needed, symbols = by_kind[VERNEED], by_kind[DYNSYM]
    library = {}  # version index -> file name
    entry = 0
    while True:
        _, count, file, first, following = struct.unpack_from("<HHIII", needed.data, entry)
        version = entry + first
        for _ in range(count):
            _, _, other, _, step = struct.unpack_from("<IHHII", needed.data, version)
            library[other] = text(sections[needed.link], file)
            version += step
        if not following:
            break
        entry += following
    versions = [v for (v,) in struct.iter_unpack("<H", by_kind[VERSYM].data)]
    return [
        (text(sections[symbols.link], name), library[version & 0x7FFF])
        for (name, _, _, index, _, _), version in zip(
            struct.iter_unpack("<IBBHQQ", symbols.data), versions, strict=True
        )
        if index == 0 and version & 0x7FFF in library
    ]
