"""The last 64 bytes of a compiled library: length, checksum, and what loading it needs.

Mapping a file that was cut short kills the process at some later page fault, so this is read and
checked before `dlopen`. compiler/link/c/intformer_open.c reads the same layout.
"""

import os
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from intformer.errors import LibraryError

ARCHIVE = b"!<arch>\n"  # what a static library starts with
MAGIC = b"INTFORM2"
ABI_VERSION = 4  # INTFORMER_ABI_VERSION of intformer.h
OLDEST_ABI = 4  # of a library that is still read: the table grows at its end from this one on
# magic, file length, checksum of all before the footer, glibc floor, build id, ABI version, CRC-32
# of the footer so far
_LAYOUT = struct.Struct("<8sQIHH32sI")
SIZE = _LAYOUT.size + 4
PART = 1 << 16  # bytes
BUFFER_PARTS = 4  # read at a time: they stay in the second-level cache


@dataclass(frozen=True)
class Footer:
    """What the footer says.

    length    bytes in the file, footer included
    checksum  of everything before the footer: the CRC-32 (zlib) of the CRC-32s, little-endian, of
              all parts of PART bytes, the last one shorter; so that parts can be read side by side
    glibc     oldest glibc that has every symbol the library asks for, (major, minor)
    build_id  32 bytes, also inside the library
    abi       INTFORMER_ABI_VERSION it was built with
    """

    length: int
    checksum: int
    glibc: tuple[int, int]
    build_id: bytes
    abi: int


def _checksum(file, length: int) -> int:
    """Return the checksum of the first `length` bytes of an open file.

    Every core takes part: reading and CRC-32 let go of the interpreter lock.
    """
    stride = BUFFER_PARTS * PART
    workers = len(os.sched_getaffinity(0))
    crcs = np.zeros(-(-length // PART), "<u4")

    def work(number: int) -> None:
        buffer = memoryview(bytearray(stride))
        for start in range(number * stride, length, workers * stride):
            data = buffer[: length - start]
            read = 0
            while got := os.preadv(file.fileno(), [data[read:]], start + read):
                read += got
            for at in range(0, read, PART):
                crcs[(start + at) // PART] = zlib.crc32(data[at : at + PART])

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(work, range(workers)))
    return zlib.crc32(crcs)


def append(path: Path, glibc: tuple[int, int], build_id: bytes) -> None:
    """Add the footer to a freshly linked library."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        checksum = _checksum(file, size)
        data = _LAYOUT.pack(MAGIC, size + SIZE, checksum, *glibc, build_id, ABI_VERSION)
        file.seek(size)
        file.write(data + struct.pack("<I", zlib.crc32(data)))


def check(path: Path) -> Footer:
    """Return the footer of a whole, unaltered library; raise LibraryError otherwise."""
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
        found = _checksum(file, size - SIZE)
    if found != checksum:
        raise LibraryError(
            f"library is altered: checksum {found:08x}, {checksum:08x} expected",
            where=where,
            hint=recompile,
        )
    return Footer(length, checksum, (major, minor), build_id, abi)
