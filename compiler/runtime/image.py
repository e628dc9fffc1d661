"""An ELF library as the loader maps it: segments, dynamic section, relocations, notes.

Section headers are ignored: the loader does not read them. Every number comes from the file and is
checked before use; what does not fit raises LibraryError.
"""

import struct
from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

import numpy as np

from intformer.errors import LibraryError

PT_LOAD, PT_DYNAMIC, PT_INTERP, PT_NOTE = 1, 2, 3, 4
PT_GNU_STACK = 0x6474E551
EXECUTE, WRITE = 1, 2  # p_flags
PAGE = 4096
DT_NEEDED, DT_HASH, DT_STRTAB, DT_SYMTAB, DT_RELA, DT_RELASZ = 1, 4, 5, 6, 7, 8
DT_STRSZ, DT_PLTRELSZ, DT_JMPREL, DT_GNU_HASH = 10, 2, 23, 0x6FFFFEF5
DT_VERNEED = 0x6FFFFFFE
RELATIVE = {62: 8, 183: 1027, 243: 3}  # e_machine -> relocation type "base + addend"
_RELA = np.dtype([("address", "<u8"), ("type", "<u4"), ("symbol", "<u4"), ("addend", "<i8")])
MOST = 1 << 22  # entries of any table: more is a damaged file
MOST_VERSIONS = 1000


def own_machine() -> int | None:
    """Return the e_machine of this process's program; None where the system does not show it."""
    try:
        with open("/proc/self/exe", "rb") as file:
            head = file.read(20)
    except OSError:
        return None
    return int.from_bytes(head[18:20], "little") if head[:6] == b"\x7fELF\x02\x01" else None


class Segment(NamedTuple):
    """A program header, with the field names of ELF-64."""

    type: int
    flags: int
    offset: int
    vaddr: int
    paddr: int
    filesz: int
    memsz: int
    align: int


class Relocation(NamedTuple):
    """An entry of DT_RELA or DT_JMPREL."""

    address: int
    type: int
    symbol: int
    addend: int


class Symbol(NamedTuple):
    """An entry of the dynamic symbol table."""

    name: str
    info: int
    section: int
    value: int


class Image:
    """The mapped form of one file.

    machine   e_machine: 62 x86-64, 183 AArch64, 243 RISC-V
    segments  all program headers, in file order
    """

    def __init__(self, data: memoryview, where: str):
        """Read the program headers of `data`, the bytes of a file; `where` names it in errors."""
        self.data, self.where = data, where
        header = self._bytes(0, 64)
        if header[:6] != b"\x7fELF\x02\x01":
            raise self.fault("not a 64-bit little-endian ELF file")
        self.type, self.machine = struct.unpack_from("<HH", header, 16)
        (at,) = struct.unpack_from("<Q", header, 32)
        size, count = struct.unpack_from("<HH", header, 54)
        if size != 56:
            raise self.fault(f"program headers of {size} bytes, 56 expected")
        raw = self._bytes(at, size * count)
        self.segments = [Segment(*entry) for entry in struct.iter_unpack("<IIQQQQQQ", raw)]
        for segment in self.segments:
            if segment.type == PT_LOAD and segment.filesz > segment.memsz:
                raise self.fault("a segment is larger in the file than in memory")
            if segment.type in (PT_LOAD, PT_DYNAMIC, PT_NOTE):
                self._part(segment.offset, segment.filesz)

    def fault(self, what: str) -> LibraryError:
        """Return the error for a file that does not say what it should."""
        return LibraryError(what, where=self.where, hint="compile the model again")

    def _part(self, offset: int, size: int) -> memoryview:
        if offset + size > len(self.data):
            raise self.fault(f"{size} bytes at offset {offset} lie outside the file")
        return self.data[offset : offset + size]

    def _bytes(self, offset: int, size: int) -> bytes:
        return bytes(self._part(offset, size))

    @property
    def loads(self) -> list[Segment]:
        """The segments that are mapped."""
        return [segment for segment in self.segments if segment.type == PT_LOAD]

    def segment_at(self, address: int, size: int = 1) -> Segment:
        """Return the mapped segment that holds an address range."""
        for segment in self.loads:
            if segment.vaddr <= address and address + size <= segment.vaddr + segment.memsz:
                return segment
        raise self.fault(f"address {address:#x} is not mapped")

    def view(self, address: int, size: int) -> memoryview:
        """Return bytes of the file by the address at which they are mapped, unrelocated."""
        segment = self.segment_at(address, size)
        start = segment.offset + address - segment.vaddr
        if address + size > segment.vaddr + segment.filesz:
            raise self.fault(f"{size} bytes at address {address:#x} are not in the file")
        return self.data[start : start + size]

    @cached_property
    def _writable(self) -> dict[int, bytearray]:
        """Address -> memory of each writable segment after the loader relocated it."""
        memory = {
            s.vaddr: bytearray(self._bytes(s.offset, s.filesz))
            for s in self.loads
            if s.flags & WRITE
        }
        entries = self._rela[self._rela["type"] == RELATIVE.get(self.machine)]
        mapped = np.zeros(entries.size, bool)
        for segment in self.loads:
            behind = entries["address"] >= segment.vaddr
            at = entries["address"] - np.uint64(segment.vaddr)  # wraps where it is before
            mapped |= behind & (at < max(segment.memsz - 7, 0))
            if segment.vaddr in memory:
                here = behind & (at < max(segment.filesz - 7, 0))
                places = at[here, None] + np.arange(8, dtype=np.uint64)
                values = entries["addend"][here].copy().view(np.uint8).reshape(-1, 8)
                np.frombuffer(memory[segment.vaddr], np.uint8)[places] = values
        for address in entries["address"][~mapped][:1].tolist():
            raise self.fault(f"address {address:#x} is not mapped")
        return memory

    def read(self, address: int, size: int) -> bytes:
        """Return memory as it is after loading: RELATIVE relocations applied, base address 0."""
        segment = self.segment_at(address, size)
        if segment.vaddr not in self._writable:
            return bytes(self.view(address, size))
        at = address - segment.vaddr
        return bytes(self._writable[segment.vaddr][at : at + size]).ljust(size, b"\0")

    def string(self, address: int) -> str:
        """Return the NUL-terminated string at an address."""
        segment = self.segment_at(address)
        text = b""
        while b"\0" not in text:
            size = min(256, segment.vaddr + segment.memsz - address - len(text))
            if size <= 0 or len(text) > 1 << 16:
                raise self.fault(f"no end of the string at address {address:#x}")
            text += self.read(address + len(text), size)
        return text[: text.index(b"\0")].decode(errors="replace")

    @cached_property
    def dynamic(self) -> list[tuple[int, int]]:
        """(tag, value) of the dynamic section, up to its end."""
        found = []
        for segment in self.segments:
            if segment.type == PT_DYNAMIC:
                raw = bytes(self.view(segment.vaddr, segment.filesz & ~15))
                for tag, value in struct.iter_unpack("<QQ", raw):
                    if not tag:
                        break
                    found.append((tag, value))
        return found

    def tag(self, tag: int) -> int:
        """Return the last value of a tag of the dynamic section, 0 where it is absent."""
        return next((value for t, value in reversed(self.dynamic) if t == tag), 0)

    def name(self, offset: int) -> str:
        """Return a string of the dynamic string table."""
        if offset >= self.tag(DT_STRSZ):
            raise self.fault(f"offset {offset} lies outside the string table")
        return self.string(self.tag(DT_STRTAB) + offset)

    @cached_property
    def relocations(self) -> list[Relocation]:
        """All entries of DT_RELA and DT_JMPREL."""
        return [Relocation(*entry) for entry in self._rela.tolist()]

    @cached_property
    def _rela(self) -> np.ndarray:
        """The same entries as an array: to relocate memory is part of loading any library."""
        found = []
        for table, size in ((DT_RELA, DT_RELASZ), (DT_JMPREL, DT_PLTRELSZ)):
            if self.tag(size):
                raw = self.view(self.tag(table), self.tag(size) // _RELA.itemsize * _RELA.itemsize)
                found.append(np.frombuffer(raw, _RELA))
        return np.concatenate(found) if found else np.zeros(0, _RELA)

    @cached_property
    def symbols(self) -> list[Symbol]:
        """The dynamic symbols: those the hash table holds and those relocations name."""
        count = max((entry.symbol + 1 for entry in self.relocations), default=1)
        if self.tag(DT_HASH):
            count = max(count, *struct.unpack("<II", self.view(self.tag(DT_HASH), 8)))
        if self.tag(DT_GNU_HASH):
            count = max(count, self._hashed(self.tag(DT_GNU_HASH)))
        if count > MOST:
            raise self.fault(f"{count} dynamic symbols")
        raw = self.view(self.tag(DT_SYMTAB), 24 * count) if count > 1 else b""
        entries = [*struct.iter_unpack("<IBBHQQ", raw)][1:]
        return [Symbol(self.name(n), info, at, value) for n, info, _, at, value, _ in entries]

    def _hashed(self, table: int) -> int:
        """Return how many symbols a GNU hash table at an address reaches."""
        buckets, first, bloom, _ = struct.unpack("<IIII", self.view(table, 16))
        at = table + 16 + 8 * bloom
        if buckets > MOST:
            raise self.fault(f"{buckets} hash buckets")
        last = max((n for (n,) in struct.iter_unpack("<I", self.view(at, 4 * buckets))), default=0)
        chains = at + 4 * buckets
        while last >= first and not self.view(chains + 4 * (last - first), 4)[0] & 1:
            last += 1
        return last + 1 if last >= first else first

    def versions(self) -> list[str]:
        """Return the symbol versions asked for, such as GLIBC_2.34."""
        found, entry, following = [], 0, self.tag(DT_VERNEED)
        while following:  # as the loader does, which does not count either
            entry += following
            _, _, _, step, following = struct.unpack("<HHIII", self.view(entry, 16))
            at = entry
            while step:
                at += step
                _, _, _, name, step = struct.unpack("<IHHII", self.view(at, 16))
                found.append(self.name(name))
                if len(found) > MOST_VERSIONS:
                    raise self.fault(f"more than {MOST_VERSIONS} symbol versions are asked for")
        return found

    def notes(self, owner: bytes) -> Iterator[tuple[int, bytes]]:
        """Yield (address, bytes) of the description of every note of an owner."""
        for segment in self.segments:
            if segment.type != PT_NOTE:
                continue
            data, at, step = self._bytes(segment.offset, segment.filesz), 0, max(4, segment.align)
            while at + 12 <= len(data):
                name, size, _ = struct.unpack_from("<III", data, at)
                start = (
                    at + 12 + -(-name // step) * step if step == 4 else at + (12 + name + 7 & ~7)
                )
                if data[at + 12 : at + 12 + name].rstrip(b"\0") == owner and start + size <= len(
                    data
                ):
                    yield segment.vaddr + start, data[start : start + size]
                at = start + -(-size // step) * step
