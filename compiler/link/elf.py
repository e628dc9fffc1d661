"""Reads what the library builder must know of ELF files: symbols, needed libraries, versions."""

import struct
from dataclasses import dataclass
from pathlib import Path

from intformer.errors import CompileError

_SYMTAB, _DYNAMIC, _VERNEED = 2, 6, 0x6FFFFFFE
_DT_NEEDED = 1


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


class Elf:
    """A little-endian ELF-64 file, read once."""

    def __init__(self, path: Path):
        """Read the section headers of `path`; CompileError if it is no such file."""
        self.data = Path(path).read_bytes()
        if self.data[:6] != b"\x7fELF\x02\x01":
            raise CompileError("not a 64-bit little-endian ELF file", where=str(path))
        (table,) = struct.unpack_from("<Q", self.data, 40)
        size, count, names = struct.unpack_from("<HHH", self.data, 58)
        raw = [struct.unpack_from("<IIQQQQII", self.data, table + i * size) for i in range(count)]
        text = raw[names][4]
        self.sections = [Section(_text(self.data, text + r[0]), *r[1:]) for r in raw]

    def _of_type(self, kind: int) -> list[Section]:
        return [section for section in self.sections if section.type == kind]

    def symbols(self) -> dict[str, bool]:
        """Return the global and weak symbols of .symtab: name -> defined here."""
        found: dict[str, bool] = {}
        for section in self._of_type(_SYMTAB):
            names = self.sections[section.link].offset
            for offset in range(section.offset, section.offset + section.size, 24):
                name, info, _, index = struct.unpack_from("<IBBH", self.data, offset)
                if name and info >> 4:
                    found[_text(self.data, names + name)] = index != 0
        return found

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
