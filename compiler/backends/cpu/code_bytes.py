"""The executable bytes of an ELF file, its functions and imports; and what was decoded, judged."""

import bisect
import math
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from intformer.backends.cpu.machine_code import MachineCode
from intformer.errors import LibraryError
from intformer.link.elf import Elf, Section
from intformer.proof.finding import Finding
from intformer.runtime.image import EXECUTE, PAGE, Image

OBJECT = 1  # e_type: ET_REL
EXECUTABLE = 4  # sh_flags: SHF_EXECINSTR
DYNSYM, SYMTAB, VERNEED, VERSYM = 11, 2, 0x6FFFFFFE, 0x6FFFFFFF  # sh_type
FUNCTION = 2  # symbol type
SYMBOL = "<IBBHQQ"  # Elf64_Sym: name, info, other, section index, value, size
Kind = tuple[str, str | None, set[str]]  # mnemonic, fault or None, CPU features


def opened(path: Path, machine: int, name: str) -> Elf:
    """Read an ELF file; LibraryError unless it is for the machine (e_machine, and its name)."""
    elf = Elf(Path(path))
    (found,) = struct.unpack_from("<H", elf.data, 18)
    if found != machine:
        raise LibraryError(f"code for ELF machine {found}; {name} is {machine}", where=str(path))
    return elf


def judged(
    path: Path,
    elf: Elf,
    found: list["Region"],
    functions: "Functions",
    decoded: Mapping[int, tuple[Any, Kind]],
    show: Callable[[Any], str],
) -> MachineCode:
    """Return what decoding found.

    found    the regions that were decoded
    decoded  address -> instruction and what is known of it
    show     writes an instruction
    """
    code = MachineCode()
    for region in found:
        code.findings += region.findings
    next_function = -1  # address where another one starts
    for address in sorted(decoded):
        instruction, (name, reason, features) = decoded[address]
        code.mnemonics[name] += 1
        if address >= next_function:
            name_here, next_function = functions.around(address)
            used: set[str] = set()
            code.functions.append((name_here, used))
        used |= features
        if reason:
            code.findings.append(Finding(functions.at(address), f"{reason}: {show(instruction)}"))
    code.instructions = code.mnemonics.total()
    code.findings += [
        Finding("imports", f"float function: {name} from {library}")
        for name, library in imports(elf)
        if library.startswith("libm.")
    ]
    if not code.instructions:
        raise LibraryError("no code in it", where=str(path))
    return code


@dataclass
class Region:
    """Executable bytes, and the addresses in data that point into them."""

    address: int
    code: bytes
    entries: list[int] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)


def regions(elf: Elf, path: Path, page: int = PAGE) -> list[Region]:
    """Return the executable bytes of a library by its segments, of an object by its sections.

    page  bytes of the largest page that systems of the machine have
    """
    (kind,) = struct.unpack_from("<H", elf.data, 16)
    if kind == OBJECT:
        bases = section_bases(elf)
        return [
            Region(bases[i], elf.data[s.offset : s.offset + s.size])
            for i, s in enumerate(elf.sections)
            if s.flags & EXECUTABLE
        ]
    image = Image(memoryview(elf.data), str(path))
    found = []
    for segment in image.loads:
        if not segment.flags & EXECUTE:
            continue
        start, stop = segment.offset, segment.offset + segment.filesz
        region = Region(segment.vaddr, elf.data[start:stop])
        # the system maps whole pages
        first, last = start // page * page, -(-stop // page) * page
        if any(elf.data[first:start]) or any(elf.data[stop:last]):
            what = "the pages of executable code hold other bytes, which could run as well"
            region.findings.append(Finding(f"segment at {segment.vaddr:#x}", what))
        region.entries = [r.addend for r in image.relocations if not r.symbol]
        region.entries += [s.value for s in image.symbols if s.section]
        found.append(region)
    return found


def section_bases(elf: Elf) -> dict[int, int]:
    """Return an address of its own for each executable section of an object; empty for a library.

    In an object all sections begin at 0.
    """
    (kind,) = struct.unpack_from("<H", elf.data, 16)
    bases, following = {}, PAGE
    for i, section in enumerate(elf.sections if kind == OBJECT else ()):
        if section.flags & EXECUTABLE:
            bases[i] = following
            following += -(-section.size // PAGE) * PAGE + PAGE
    return bases


class Functions:
    """Names an address by the function it lies in, where symbols were kept."""

    def __init__(self, elf: Elf):
        """Collect the function symbols of both symbol tables, sorted by address."""
        found, bases = {}, section_bases(elf)
        for symbol in elf.table() if not elf.wide else ():
            if (
                symbol.info & 15 == FUNCTION and symbol.index
            ):  # an odd address says that it is Thumb
                found[(symbol.value & ~1) + bases.get(symbol.index, 0)] = symbol.name
        for section in elf.sections if elf.wide else ():
            if section.type in (DYNSYM, SYMTAB):
                for name, info, _, index, value, _ in entries(elf, section, SYMBOL):
                    if info & 15 == FUNCTION and index:
                        found[value + bases.get(index, 0)] = text(elf, section, name)
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
