"""The last 64 bytes of a compiled library: length, checksum, and what loading it needs.

Mapping a file that was cut short kills the process at some later page fault, so this is read and
checked before `dlopen`. compiler/c/intformer_open.c reads the same layout.
"""

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

from intformer.errors import LibraryError

MAGIC = b"INTFORM1"
ABI_VERSION = 1  # INTFORMER_ABI_VERSION of intformer.h
# magic, file length, CRC-32 of all before the footer, glibc floor, build id, ABI version, CRC-32 of
# the footer so far
_LAYOUT = struct.Struct("<8sQIHH32sI")
SIZE = _LAYOUT.size + 4
CHUNK = 1 << 20


@dataclass(frozen=True)
class Footer:
    """What the footer says.

    length    bytes in the file, footer included
    crc       CRC-32 (zlib) of everything before the footer
    glibc     oldest glibc that has every symbol the library asks for, (major, minor)
    build_id  32 bytes, also inside the library
    abi       INTFORMER_ABI_VERSION it was built with
    """

    length: int
    crc: int
    glibc: tuple[int, int]
    build_id: bytes
    abi: int


def _crc(file, length: int) -> int:
    crc = 0
    while length and (chunk := file.read(min(CHUNK, length))):
        crc, length = zlib.crc32(chunk, crc), length - len(chunk)
    return crc


def append(path: Path, glibc: tuple[int, int], build_id: bytes) -> None:
    """Add the footer to a freshly linked library."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        crc = _crc(file, size)
        data = _LAYOUT.pack(MAGIC, size + SIZE, crc, *glibc, build_id, ABI_VERSION)
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
        if len(data) < SIZE or data[: len(MAGIC)] != MAGIC:
            raise LibraryError(
                f"not an intformer library, or cut short ({size} bytes, no footer)",
                where=where,
                hint=recompile,
            )
        magic_ok = struct.pack("<I", zlib.crc32(data[:-4])) == data[-4:]
        _, length, crc, major, minor, build_id, abi = _LAYOUT.unpack(data[:-4])
        if not magic_ok or length != size:
            raise LibraryError(
                f"library is damaged: {size} bytes, {length} expected", where=where, hint=recompile
            )
        file.seek(0)
        found = _crc(file, size - SIZE)
    if found != crc:
        raise LibraryError(
            f"library is altered: CRC {found:08x}, {crc:08x} expected", where=where, hint=recompile
        )
    return Footer(length, crc, (major, minor), build_id, abi)
