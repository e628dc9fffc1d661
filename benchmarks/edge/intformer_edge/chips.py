"""Cycles by LLVM's models of chips: llvm-mca 19 or newer."""

import re
import subprocess

from intformer_edge.pieces import TRIPLES, Profile

TURNS = 100
COVERED = 0.995  # of the instructions go through the model; the rest is taken for as fast as these
JUMP = re.compile(r"(?P<name>b|bl|b\.\w+|cbn?z|tbn?z|j\w+|call\w*)\s+(?P<rest>.*,)?\s*\S+$")


def cycles(machine: int, chip: str, pieces: list[list[str]]) -> list[float]:
    """Return the cycles of a turn of each piece of code, run over and over.

    All data is in the first-level cache and every jump is foreseen.
    """
    text = "".join(
        "\n".join([f"# LLVM-MCA-BEGIN {i}", *map(_anywhere, lines), f"# LLVM-MCA-END {i}\n"])
        for i, lines in enumerate(pieces)
    )
    command = ["llvm-mca-19", f"-mtriple={TRIPLES[machine]}", f"-mcpu={chip}"]
    command += [f"-iterations={TURNS}", "--skip-unsupported-instructions=any"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=True)
    found = [int(n) / TURNS for n in re.findall(r"Total Cycles:\s+(\d+)", done.stdout)]
    if len(found) != len(pieces):
        raise ValueError(f"llvm-mca read {len(found)} of {len(pieces)} pieces: {done.stderr[:200]}")
    return found


def total(profile: Profile, chip: str) -> float:
    """Return the cycles of all that a profile counted."""
    some, covered = [], 0
    for piece in profile.code:  # the most executed first
        if covered > COVERED * profile.executed:
            break
        some.append(piece)
        covered += piece.executed
    each = cycles(profile.machine, chip, [profile.code[piece] for piece in some])
    spent = sum(piece.runs * turn for piece, turn in zip(some, each, strict=True))
    return spent * profile.executed / covered


def share(chip: str, lines: list[str], product: str) -> float:
    """Return how near a loop comes to products that wait for nothing, on the same model."""
    count = sum(line.split()[0] == product for line in lines)
    alone = [f"{product} v{8 + i % 16}.4s, v0.16b, v1.16b" for i in range(count)]
    peak, spent = cycles(183, chip, [alone, lines])
    return peak / spent


def _anywhere(line: str) -> str:
    """Let a jump have no distance: the model does not look where it goes."""
    jump = JUMP.fullmatch(line)
    return f"{jump['name']} {jump['rest'] or ''} ." if jump else line
