"""Reads what the library builder must know of ELF files: symbols, needed libraries, versions."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from intformer.errors import CompileError

_SYMTAB, _DYNAMIC, _VERNEED = 2, 6, 0x6FFFFFFE
_DT_NEEDED = 1
# where the offset of the section table is, and its type; where the numbers about the table are; a
# row of it
_WIDE, _NARROW = (40, "<Q", 58, "<IIQQQQII"), (32, "<I", 46, "<IIIIIIII")


@dataclass(frozen=True)
class Section:
    """One section header, in file order (ELF-64 field names)."""

    name: str
    type: int
    flags: int
    addr: int
    offset: int
    size: int
    link: int
    info: int


def _text(data: bytes, offset: int) -> str:
    return data[offset : data.index(b"\0", offset)].decode()


@dataclass(frozen=True)
class Symbol:
    """A row of .symtab.

    info     binding (upper four bits) and type
    index    of its section; 0: it is not defined here
    info_at  where `info` is in the file
    """

    name: str
    value: int
    info: int
    index: int
    info_at: int


class Elf:
    """A little-endian ELF file, read once: of 64 bits, or an object of 32 bits."""

    def __init__(self, path: Path):
        """Read the section headers of `path`; CompileError if it is no such file."""
        self.data = Path(path).read_bytes()
        if self.data[:4] != b"\x7fELF" or self.data[4:6] not in (b"\x02\x01", b"\x01\x01"):
            raise CompileError("not a little-endian ELF file", where=str(path))
        self.wide = self.data[4] == 2
        try:
            self.sections = self._read_sections()
        except (struct.error, LookupError, ValueError) as error:
            raise CompileError("a damaged little-endian ELF file", where=str(path)) from error

    def _read_sections(self) -> list[Section]:
        table_at, table, sizes_at, header = _WIDE if self.wide else _NARROW
        (table,) = struct.unpack_from(table, self.data, table_at)
        size, count, names = struct.unpack_from("<HHH", self.data, sizes_at)
        raw = [struct.unpack_from(header, self.data, table + i * size) for i in range(count)]
        text = raw[names][4]
        return [Section(_text(self.data, text + r[0]), *r[1:]) for r in raw]

    def _of_type(self, kind: int) -> list[Section]:
        return [section for section in self.sections if section.type == kind]

    def table(self) -> Iterator[Symbol]:
        """Yield the symbols of .symtab that have a name."""
        for section in self._of_type(_SYMTAB):
            names = self.sections[section.link].offset
            for at in range(section.offset, section.offset + section.size, 24 if self.wide else 16):
                if self.wide:
                    name, info, _, index, value = struct.unpack_from("<IBBHQ", self.data, at)
                else:
                    name, value, _, info, _, index = struct.unpack_from("<IIIBBH", self.data, at)
                if name:
                    text, info_at = _text(self.data, names + name), at + (4 if self.wide else 12)
                    yield Symbol(text, value, info, index, info_at)

    def symbols(self) -> dict[str, bool]:
        """Return the global and weak symbols of .symtab: name -> defined here."""
        return {symbol.name: symbol.index != 0 for symbol in self.table() if symbol.info >> 4}

    def needed(self) -> list[str]:
        """Return the NEEDED entries: file names of shared libraries."""
        found = []
        for section in self._of_type(_DYNAMIC):
            names = self.sections[section.link].offset
            for offset in range(section.offset, section.offset + section.size, 16):
                tag, value = struct.unpack_from("<QQ", self.data, offset)
                if tag == _DT_NEEDED:
                    found.append(_text(self.data, names + value))
        return found

    def versions(self) -> set[str]:
        """Return the symbol versions asked for, such as GLIBC_2.34."""
        found = set()
        for section in self._of_type(_VERNEED):
            names, entry = self.sections[section.link].offset, section.offset
            for _ in range(section.info):
                _, count, _, aux, following = struct.unpack_from("<HHIII", self.data, entry)
                at = entry + aux
                for _ in range(count):
                    _, _, _, name, step = struct.unpack_from("<IHHII", self.data, at)
                    found.add(_text(self.data, names + name))
                    at += step
                entry += following
        return found

    def glibc_floor(self) -> tuple[int, int]:
        """Return the oldest glibc (major, minor) that has every version asked for."""
        numbers = [v[6:].split(".") for v in self.versions() if v.startswith("GLIBC_2")]
        return max(((int(n[0]), int(n[1])) for n in numbers), default=(2, 0))
