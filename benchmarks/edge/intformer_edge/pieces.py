"""Straight pieces of code and how often they ran: what count.c writes, with the instructions."""

import bisect
import re
import subprocess
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

TRIPLES = {183: "aarch64", 243: "riscv64", 62: "x86_64"}  # ELF machine -> LLVM's name
KINDS = {183: "+all", 243: "+m,+a,+f,+d,+c,+v"}  # of instructions, where LLVM must be told
STOPS = {183: "404f2fd4", 243: "0290" * 8, 62: "f4" * 16}  # brk, ebreak, hlt: end a piece
KNOWN = 0.99  # of the instructions at least are read
SYMBOL = re.compile(r"([0-9a-f]+) [tT] (\S+)")
SEGMENT = re.compile(r"LOAD +(0x\w+) (0x\w+) \S+ (0x\w+)")


@dataclass(frozen=True)
class Piece:
    """Code without a jump inside.

    at     offset in its file
    bytes  of code
    """

    at: int
    bytes: int
    instructions: int
    runs: int

    @property
    def executed(self) -> int:
        """Instructions, all runs together."""
        return self.instructions * self.runs


class Profile:
    """What a program executed between its marks.

    counts  file of count.c
    path    the file that is looked at: a library; what other files execute is in `elsewhere`
    """

    def __init__(self, counts: Path, path: Path, machine: int):
        """Read the counts."""
        path = path.resolve()  # as the system knows it
        self.path, self.machine = path, machine
        lines = [line.split() for line in counts.read_text().splitlines()]
        maps = [_mapping(words) for words in lines if "-" in words[0]]
        self.pieces, self.elsewhere = [], 0
        for at, size, instructions, runs in (
            map(int, words) for words in lines if len(words) == 4 and "-" not in words[0]
        ):
            piece = Piece(at, size, instructions, runs)
            places = (at - a + o for a, b, o, file in maps if a <= at < b and file == path)
            offset = next(places, None)
            if offset is None:
                self.elsewhere += piece.executed
            else:
                self.pieces.append(Piece(offset, size, instructions, runs))
        self.pieces.sort(key=lambda piece: -piece.executed)

    @property
    def executed(self) -> int:
        """All instructions."""
        return sum(piece.executed for piece in self.pieces) + self.elsewhere

    @cached_property
    def code(self) -> dict[Piece, list[str]]:
        """The instructions of each piece, as LLVM's assembler writes them.

        A piece is left out where LLVM reads other instructions than the emulator, which on x86
        tells a few at the ends of pages in parts.
        """
        data = self.path.read_bytes()
        words = []
        for piece in self.pieces:
            code = data[piece.at : piece.at + piece.bytes] + bytes.fromhex(STOPS[self.machine])
            words.append(" ".join(f"0x{byte:02x}" for byte in code))
        command = ["llvm-mc-19", f"--triple={TRIPLES[self.machine]}", "--disassemble"]
        command += [f"--mattr={KINDS[self.machine]}"] if self.machine in KINDS else []
        done = subprocess.run(command, input="\n".join(words), capture_output=True, text=True)
        found = [[]]
        for line in (line.strip().replace("\t", " ") for line in done.stdout.splitlines()):
            if line.partition(" ")[0] in ("hlt", "ebreak", "c.ebreak", "brk"):
                found += [[]] if found[-1] else []
            elif line and not line.startswith("."):
                found[-1].append(line)
        read = {
            piece: lines
            for piece, lines in zip(self.pieces, found[:-1], strict=True)
            if len(lines) == piece.instructions
        }
        if sum(piece.executed for piece in read) < KNOWN * (self.executed - self.elsewhere):
            raise ValueError(f"{self.path}: code was not read: {done.stderr[:200]}")
        return read

    def mnemonics(self) -> Counter:
        """Return how often each instruction ran."""
        found = Counter()
        for piece, lines in self.code.items():
            for line in lines:
                found[line.split()[0]] += piece.runs
        return found

    def owners(self) -> dict[Piece, str]:
        """Return the kernel, or function of the runtime, that each piece belongs to."""
        said = subprocess.run(
            ["llvm-nm-19", "-n", self.path], capture_output=True, text=True, check=True
        ).stdout
        known = [(int(m[1], 16), m[2]) for m in map(SYMBOL.match, said.splitlines()) if m]
        known = [(at, name) for at, name in known if not name.startswith(("__tvm_set", ".L"))]
        places, names = [at for at, _ in known], [_kernel(name) for _, name in known]
        segments = self._segments()
        return {
            piece: names[bisect.bisect(places, _address(segments, piece.at)) - 1]
            for piece in self.pieces
        }

    def _segments(self) -> list[tuple[int, int, int]]:
        said = subprocess.run(
            ["llvm-readelf-19", "-lW", self.path], capture_output=True, text=True, check=True
        ).stdout
        found = (SEGMENT.search(line) for line in said.splitlines())
        return [tuple(int(x, 16) for x in m.groups()) for m in found if m]


def _mapping(words: list[str]) -> tuple[int, int, int, Path]:
    """Read a line of /proc/self/maps: from, to, offset in the file, file."""
    start, end = (int(number, 16) for number in words[0].split("-"))
    return start, end, int(words[2], 16), Path(words[5] if len(words) > 5 else "-")


def _address(segments, at: int) -> int:
    """Return the address of an offset of the file."""
    return next(address + at - o for o, address, size in segments if o <= at < o + size)


def _kernel(name: str) -> str:
    """Return a kernel's name without what makes it a symbol."""
    return re.sub(r"_\d+__\w+$|__\w+_compute_$", "", name.removeprefix("__tvm_ffi_"))
