"""The end of a compiled library: length, checksum, and what loading it needs.

Mapping a file that was cut short kills the process at some later page fault, so this is read and
checked before `dlopen`. compiler/link/c/intformer_open.c reads the same layout:

    ELF file | CRC-32 of each whole part of it | list of the parts | footer

The checksum in the footer covers all before it. Who has read the checksum of every part from the
file instead of computing it knows by the footer's that none of them is altered; so loaders check
all but the parts that are data alone first, load the code, and let that check the data.
"""

import os
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from intformer.errors import LibraryError

ARCHIVE = b"!<arch>\n"  # what a static library starts with
MAGIC = b"INTFORM2"
ABI_VERSION = 6  # INTFORMER_ABI_VERSION of intformer.h
OLDEST_ABI = 4  # of a library that is still read: the table grows at its end from this one on
# magic, file length, checksum of all before the footer, glibc floor, build id, ABI version, CRC-32
# of the footer so far
_LAYOUT = struct.Struct("<8sQIHH32sI")
SIZE = _LAYOUT.size + 4
PART = 1 << 16  # bytes
BUFFER_PARTS = 4  # read at a time: they stay in the second-level cache
_LIST_MAGIC = b"IFPARTS1"
# magic, whole parts of the file before their checksums, the first that is data alone, how many are
_LIST = struct.Struct("<8sIII")


@dataclass(frozen=True)
class Parts:
    """Neighbouring parts of a library that hold nothing but data, to be checked after its code.

    first  number of the first, counted from the start of the file
    crcs   CRC-32 (zlib) of each, uint32
    """

    first: int = 0
    crcs: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint32))

    @property
    def start(self) -> int:
        """Where they start in the file."""
        return self.first * PART

    @property
    def size(self) -> int:
        """Bytes of all of them."""
        return self.crcs.size * PART


@dataclass(frozen=True)
class Footer:
    """What the footer says.

    length    bytes in the file, footer included
    checksum  of everything before the footer: the CRC-32 (zlib) of the CRC-32s, little-endian, of
              all parts of PART bytes, the last one shorter; so that parts can be read side by side
    glibc     oldest glibc that has every symbol the library asks for, (major, minor)
    build_id  32 bytes, also inside the library
    abi       INTFORMER_ABI_VERSION it was built with
    elf       bytes of the ELF file at the start
    """

    length: int
    checksum: int
    glibc: tuple[int, int]
    build_id: bytes
    abi: int
    elf: int


def _checksums(file, length: int, known: Parts) -> np.ndarray:
    """Return the checksum of each part of the first `length` bytes of an open file, uint32.

    known  not to be read

    Every core takes part: reading and CRC-32 let go of the interpreter lock.
    """
    crcs = np.zeros(-(-length // PART), "<u4")
    after = known.start + known.size
    crcs[known.first : after // PART] = known.crcs
    stride = BUFFER_PARTS * PART
    spans = [(0, known.start), (after, length)]
    strides = [
        (at, min(at + stride, end)) for first, end in spans for at in range(first, end, stride)
    ]
    workers = min(len(os.sched_getaffinity(0)), -(-len(strides) // 2))

    def work(number: int) -> None:
        buffer = memoryview(bytearray(stride))
        for start, end in strides[number::workers]:
            data = buffer[: end - start]
            read = 0
            while got := os.preadv(file.fileno(), [data[read:]], start + read):
                read += got
            for at in range(0, read, PART):
                crcs[(start + at) // PART] = zlib.crc32(data[at : at + PART])

    if workers < 2:
        for number in range(workers):
            work(number)
        return crcs
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(work, range(workers)))
    return crcs


def append(
    path: Path, glibc: tuple[int, int], build_id: bytes, data: tuple[int, int] = (0, 0)
) -> None:
    """Add list and footer to a freshly linked library.

    data  (first byte, bytes) of the file that hold nothing but data
    """
    size = path.stat().st_size
    first, after = -(-data[0] // PART), (data[0] + data[1]) // PART
    with path.open("r+b") as file:
        crcs = _checksums(file, size, Parts())
        whole = size // PART
        file.seek(size)
        file.write(crcs[:whole].tobytes())
        file.write(_LIST.pack(_LIST_MAGIC, whole, first, max(0, after - first)))
        file.flush()
        size = file.tell()
        checksum = zlib.crc32(_checksums(file, size, Parts(0, crcs[:whole])))
        footer = _LAYOUT.pack(MAGIC, size + SIZE, checksum, *glibc, build_id, ABI_VERSION)
        file.write(footer + struct.pack("<I", zlib.crc32(footer)))


def _listed(file, size: int) -> tuple[int, Parts]:
    """Return the bytes of the ELF file and the parts that are data alone, before they are checked.

    size  bytes before the footer: all of them are the ELF file where there is no list, as in
          libraries of the first versions
    """
    raw = os.pread(file.fileno(), _LIST.size, max(0, size - _LIST.size))
    if raw[:8] != _LIST_MAGIC:
        return size, Parts()
    _, whole, first, count = _LIST.unpack(raw)
    elf = size - _LIST.size - 4 * whole
    if elf < 0 or elf // PART != whole or first + count > whole:
        return size, Parts()  # damaged: all is read, and found to be altered
    crcs = os.pread(file.fileno(), 4 * count, elf + 4 * first)
    return elf, Parts(first, np.frombuffer(crcs, "<u4"))


def check(path: Path) -> Footer:
    """Return the footer of a whole, unaltered library; raise LibraryError otherwise."""
    return check_but_data(path, whole=True)[0]


def check_but_data(path: Path, *, whole: bool = False) -> tuple[Footer, Parts]:
    """Return the footer of a library whose code is unaltered, and the parts that are left to check.

    whole  leave none
    """
    where = str(path)
    recompile = "copy it again, or compile the model again"
    try:
        file = path.open("rb")
    except OSError as error:
        raise LibraryError(f"cannot open library: {error.strerror}", where=where) from None
    with file:
        size = file.seek(0, 2)
        file.seek(max(0, size - SIZE))
        data = file.read(SIZE)
        file.seek(0)
        if file.read(len(ARCHIVE)) == ARCHIVE:
            raise LibraryError(
                "a static library has code and weights alone: nothing to load, inspect or verify",
                where=where,
                hint="compile the same model without --static, to an .so, for that",
            )
        if len(data) < SIZE or data[: len(MAGIC)] != MAGIC:
            raise LibraryError(
                f"not an intformer library, or cut short ({size} bytes, no footer)",
                where=where,
                hint=recompile,
            )
        magic_ok = struct.pack("<I", zlib.crc32(data[:-4])) == data[-4:]
        _, length, checksum, major, minor, build_id, abi = _LAYOUT.unpack(data[:-4])
        if not magic_ok or length != size:
            raise LibraryError(
                f"library is damaged: {size} bytes, {length} expected", where=where, hint=recompile
            )
        elf, left = _listed(file, size - SIZE)
        left = Parts() if whole else left
        found = zlib.crc32(_checksums(file, size - SIZE, left))
    if found != checksum:
        raise altered(where, f"checksum {found:08x}, {checksum:08x} expected")
    return Footer(length, checksum, (major, minor), build_id, abi, elf), left


def altered(where: str, what: str) -> LibraryError:
    """Return the error for a library that is not as it was written."""
    return LibraryError(
        f"library is altered: {what}",
        where=where,
        hint="copy it again, or compile the model again",
    )
