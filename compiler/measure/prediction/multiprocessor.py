"""How many clocks warps take on one of the four parts of a multiprocessor (SM).

A part issues one instruction of one warp a clock. A warp issues in order, and waits until what the
instruction reads is there; an instruction keeps its pipe busy as long as 32 threads take on the
lanes there are. Shared memory and its pipe belong to the whole SM: each part has a quarter of their
rate. Not modelled: bank conflicts, register banks, the instruction cache.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from intformer.backends.cuda.sass import Instruction
from intformer.measure.prediction.chips import Chip

PARTS = 4
WARP = 32
SLOW_LANES = 16  # of an SM: bit counts, conversions
SHUFFLE_LANES = 32
BARRIER, OTHER = 20, 25  # clocks of a barrier; of special registers and constants
# multiplications and additions of one IMMA, by its shape
IMMA_MACS = {"8816": 8 * 8 * 16, "16816": 16 * 8 * 16, "16832": 16 * 8 * 32}
SLOW = frozenset({"POPC", "FLO", "BREV", "I2I", "I2IP"})
MULTIPLY = frozenset({"IMAD", "IMUL", "IDP"})
SHARED = frozenset({"LDS", "STS", "LDSM", "STSM", "ATOMS"})
GLOBAL = frozenset({"LDG", "STG", "LD", "ST", "RED", "ATOM", "ATOMG", "LDL", "STL", "LDGSTS"})
STORES = frozenset({"STG", "ST", "STS", "STSM", "STL", "RED"})
NO_RESULT = STORES | {
    "BAR",
    "BRA",
    "EXIT",
    "BSYNC",
    "WARPSYNC",
    "NOP",
    "DEPBAR",
    "MEMBAR",
    "LDGSTS",
}
_REGISTER = re.compile(r"\b(UR|UP|R|P)(\d+)(\.64)?")


@dataclass(frozen=True)
class Work:
    """What an instruction needs of the part.

    pipe     what it keeps busy
    busy     for how many clocks
    latency  clocks until its result is there
    reads    registers, by name
    writes   registers
    barrier  waits for the other warps of its block
    """

    pipe: str
    busy: float
    latency: int
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    barrier: bool = False


def macs(instruction: Instruction) -> int:
    """Return the multiplications and additions of an IMMA, 0 of others."""
    if instruction.name != "IMMA":
        return 0
    return IMMA_MACS[instruction.opcode.split(".")[1]]


def moved(instruction: Instruction) -> int:
    """Return the bytes that a memory instruction moves for one thread."""
    parts = instruction.opcode.split(".")
    if instruction.name in ("LDSM", "STSM"):  # 8 x 8 halves: four bytes of each thread a matrix
        return 4 * int(parts[-1] if parts[-1] in ("2", "4") else 1)
    widths = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}
    return next((widths[part] for part in parts if part in widths), 4)


@cache
def work(instruction: Instruction, chip: Chip, memory: bool) -> Work:
    """Return what an instruction needs.

    memory  global loads come from memory, not from the second-level cache
    """
    name, latency, per_part = instruction.name, chip.latency, chip.lanes / PARTS
    reads, writes = registers(instruction)
    pipe, busy, wait = "alu", WARP / per_part, latency.alu
    if name == "IMMA":
        pipe, busy, wait = "matrix", macs(instruction) / (chip.macs / PARTS), latency.matrix
    elif name in MULTIPLY:
        long = "WIDE" in instruction.opcode or ".HI" in instruction.opcode
        pipe, busy, wait = "multiply", WARP / per_part * (1 + long), latency.imad
    elif name in SHARED or name in GLOBAL:
        pipe, busy = "memory", max(1.0, moved(instruction) * WARP / (chip.shared / PARTS))
        wait = latency.shared
        if name in GLOBAL:
            wait = latency.memory if memory else latency.cache
    elif name == "SHFL":
        pipe, busy, wait = "memory", WARP / (SHUFFLE_LANES / PARTS), latency.shuffle
    elif name in SLOW:
        pipe, busy, wait = "slow", WARP / (SLOW_LANES / PARTS), OTHER
    elif name.startswith(("S2", "LDC", "ULDC", "R2UR", "VOTE", "MATCH", "REDUX")):
        pipe, busy, wait = "other", 2.0, OTHER
    elif name.startswith("U") or name in NO_RESULT:
        pipe, busy, wait = "other", 1.0, latency.alu
    return Work(pipe, busy, wait, reads, writes, name == "BAR")


def registers(instruction: Instruction) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the registers that an instruction reads, and those it writes."""
    parts = [part.strip() for part in instruction.operands.split(",")]
    reads = [instruction.guard.lstrip("!")] if instruction.guard else []
    writes: list[str] = []
    opcode, name = instruction.opcode, instruction.name
    count = 1  # 32-bit registers of the result
    if name == "IMMA":
        count = 2 if ".8816" in opcode else 4
    elif name == "LDSM":
        count = moved(instruction) // 4
    elif ".128" in opcode:
        count = 4
    elif ".64" in opcode or "WIDE" in opcode or name == "CS2R":
        count = 2
    for number, part in enumerate(parts):
        found = [(kind, int(index), bool(pair)) for kind, index, pair in _REGISTER.findall(part)]
        if number == 0 and name not in NO_RESULT:
            writes += [
                f"{kind}{i}" for kind, index, _ in found for i in range(index, index + count)
            ]
        elif number == 1 and re.fullmatch(r"U?P\d", part) and name not in NO_RESULT:
            writes.append(part)  # carry, or the second result of a comparison
        else:
            for kind, index, pair in found:
                reads.append(f"{kind}{index}")
                reads += [f"{kind}{index + 1}"] if pair else []
    return tuple(reads), tuple(writes)


def clocks(warps: Sequence[Sequence[Instruction]], blocks: Sequence[int], chip: Chip, memory: bool):
    """Return the clocks until the last of some warps on one part is through.

    warps   what each executes
    blocks  the block of each: those of one block wait for each other at barriers
    memory  global loads come from memory, not from the second-level cache
    """
    needs = [[work(i, chip, memory) for i in warp] for warp in warps]
    at = [0] * len(needs)
    free: dict[str, float] = {}  # pipe -> when it is
    ready: list[dict[str, float]] = [{} for _ in needs]  # register -> when its value is there
    start = [0.0] * len(needs)  # no warp issues before
    issue, end = 0.0, 0.0
    waiting: dict[int, list[int]] = {}
    alive = set(range(len(needs)))
    held: set[int] = set()
    while alive:
        best, when = -1, math.inf
        for warp in alive - held:
            need = needs[warp][at[warp]]
            time = max(start[warp], issue, free.get(need.pipe, 0.0))
            for register in need.reads:
                time = max(time, ready[warp].get(register, 0.0))
            if time < when or (time == when and start[warp] < start[best]):
                best, when = warp, time  # of several, the one that waits longest
        need = needs[best][at[best]]
        issue = when + 1
        start[best] = when + 1
        free[need.pipe] = when + need.busy
        for register in need.writes:
            ready[best][register] = when + max(need.latency, need.busy)
        end = max(end, when + need.busy)
        at[best] += 1
        if at[best] == len(needs[best]):
            alive.discard(best)
            end = max(end, issue)
        if need.barrier:
            held.add(best)
            waiting.setdefault(blocks[best], []).append(best)
        for block, there in list(waiting.items()):
            mates = [w for w in alive if blocks[w] == block]
            if all(w in there for w in mates):
                for w in there:
                    held.discard(w)
                    start[w] = max(start[w], when + BARRIER)
                del waiting[block]
    return end
