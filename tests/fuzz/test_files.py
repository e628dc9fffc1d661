"""Altered libraries, read as data: each is read, or refused in one line.

Most have their checksums made again, as one does who alters a file on purpose.
"""

import json
import random
from pathlib import Path

import numpy as np
import pytest

from intformer.link import build as library
from intformer.proof.verify import verify
from intformer.runtime import LibraryFile, footer
from intformer.runtime.file import ENTRY, INDEX
from intformer_testing import fuzz, mutate, toy

COUNT = fuzz.setting("FILES", 4000)
SECONDS = 20
BUFFERS = tuple(toy.plan().buffers)
NUMBERS = (0, 1, 7, 8, 63, 64, 4096, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1)


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> LibraryFile:
    folder = tmp_path_factory.mktemp("sound")
    variant = library.Variant("x86-64", [toy.object_file(folder)])
    path = folder / "toy.so"
    return LibraryFile(library.build(toy.plan(), [variant], toy.model(), path, target="x86-64"))


def altered(sound: LibraryFile, rng: random.Random) -> tuple[bytearray, str]:
    """Return the ELF file with one to three changes, and what was done."""
    data = bytearray(sound.path.read_bytes()[: sound.footer.elf])
    changes = rng.choices(CHANGES, k=rng.choice((1, 1, 2, 3)))
    changes.sort(key=CHANGES.index)  # what cuts comes last
    return data, "; ".join(change(sound, data, rng) for change in changes)


def _number(data: bytearray, at: int, size: int, rng: random.Random) -> str:
    """Put another number into a field of `size` bytes."""
    old = int.from_bytes(data[at : at + size], "little")
    new = rng.choice((*NUMBERS, old + 1, old - 1, old ^ 1 << rng.randrange(8 * size)))
    data[at : at + size] = (new % (1 << 8 * size)).to_bytes(size, "little")
    return f"{size} bytes at {at}: {old} -> {new}"


def header(sound: LibraryFile, data: bytearray, rng: random.Random) -> str:
    """Change the ELF header or a program header."""
    at = 4 * rng.randrange((64 + 56 * len(sound.image.segments)) // 4)
    return _number(data, at, rng.choice((1, 2, 4, 8)), rng)


def dynamic(sound: LibraryFile, data: bytearray, rng: random.Random) -> str:
    """Change an entry of the dynamic section, of the symbols or of the relocations."""
    at = next(s.offset for s in sound.image.segments if s.type == 2)
    return _number(data, at + 8 * rng.randrange(2 * len(sound.image.dynamic)), 8, rng)


def _offset(sound: LibraryFile, address: int) -> int:
    segment = sound.image.segment_at(address)
    return segment.offset + address - segment.vaddr


def table(sound: LibraryFile, data: bytearray, rng: random.Random) -> str:
    """Change the table that everything is found by."""
    start = _offset(sound, rng.choice((sound.table, sound.api)))
    return _number(data, start + 4 * rng.randrange(24), rng.choice((4, 8)), rng)


def index(sound: LibraryFile, data: bytearray, rng: random.Random) -> str:
    """Change where a section is."""
    start = _offset(sound, sound.blob)
    words = (INDEX.size + ENTRY.size * len(sound.index)) // 8
    return _number(data, start + 8 * rng.randrange(words), 8, rng)


def section(sound: LibraryFile, data: bytearray, rng: random.Random) -> str:
    """Change an entry of a JSON section, where the new text has room, or a byte of any section."""
    name = rng.choice(list(sound.index))
    offset, size = sound.index[name]
    start = _offset(sound, sound.blob) + offset
    if name.endswith(".json") and rng.random() < 0.9:
        value, said = mutate.altered(json.loads(sound.section(name)), rng)
        text = json.dumps(value, separators=(",", ":")).encode()
        if len(text) <= size:
            data[start : start + size] = text.ljust(size)
            return f"{name}: {said}"
    at = start + rng.randrange(size + 1)  # the byte behind it belongs to it
    data[at] = rng.randrange(256)
    return f"{name}: byte {at - start}"


def anywhere(sound: LibraryFile, data: bytearray, rng: random.Random) -> str:
    """Change a byte of the file."""
    at = rng.randrange(len(data))
    data[at] ^= 1 << rng.randrange(8)
    return f"a bit of byte {at}"


def cut(sound: LibraryFile, data: bytearray, rng: random.Random) -> str:
    """Cut the file, or make it longer."""
    if rng.random() < 0.5:
        data += rng.randbytes(rng.randrange(1, 200))
        return "longer"
    del data[rng.randrange(len(data)) :]
    return f"cut at {len(data)}"


CHANGES = (header, header, dynamic, table, index, section, section, section, section, anywhere, cut)


def read(path: Path, checked: bool) -> None:
    """Do all that is done with a library whose code does not run."""
    file = LibraryFile(path)
    file.graph(), file.files(), file.foreign, file.on_device, file.variants
    for name in file.packing:
        file.tensor(name)
    for name in BUFFERS:
        file.logical(name, np.zeros((2, toy.WIDTH), np.int32))
    if checked:
        verify(path, run=False)


def case(seed: int, sound: LibraryFile, path: Path) -> str | None:
    """Alter a copy and read it; return what went wrong, None where nothing did."""
    rng = random.Random(seed)
    data, said = altered(sound, rng)
    path.write_bytes(data)
    repaired = rng.random() < 0.9
    if repaired:
        footer.append(path, sound.footer.glibc, sound.footer.build_id)
    else:
        path.write_bytes(data + sound.path.read_bytes()[sound.footer.elf :])
    unchanged = path.read_bytes() == sound.path.read_bytes()
    checked = rng.random() < 0.05

    def attempt() -> None:
        read(path, checked)
        assert repaired or unchanged, "read in spite of its checksum"

    fault = fuzz.fault(attempt, SECONDS)
    return fault and f"{said}: {fault}"


@pytest.mark.parametrize("block", range(fuzz.BLOCKS))
def test_an_altered_library_is_read_or_refused_in_one_line(block, sound, tmp_path):
    path = tmp_path / "altered.so"
    faults = fuzz.faults(lambda seed: case(seed, sound, path), block, COUNT)
    assert not faults, "\n".join(faults)


def test_the_sound_library_is_read(sound):
    read(sound.path, checked=True)
