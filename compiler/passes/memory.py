"""Static memory plan: which buffers share a slot of the arena.

Batch sizes are known at run time only, so a slot is sized in bytes per block of 8 rows, for each
kind of rows; the library multiplies by the block counts of a run (host.c, cuda_memory.c).
"""

from dataclasses import dataclass, field

import numpy as np

from intformer.errors import CompileError
from intformer.ir.constants import BLOCK
from intformer.ir.model import ROWS
from intformer.ir.plan import Buffer, Plan


@dataclass
class Slot:
    """Memory used by one buffer after another; holds the largest.

    bytes  per block of 8 rows, by kind of rows
    """

    bytes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(ROWS, 0))


def block_bytes(buffer: Buffer) -> int:
    """Return the bytes of one block: 8 rows of `width` numbers."""
    return BLOCK * buffer.width * np.dtype(buffer.dtype).itemsize


def assign_slots(plan: Plan) -> tuple[dict[str, int], list[Slot]]:
    """Return the slot number of every buffer, and the slots.

    A buffer occupies its slot from the step that first names it to the last that does; the output
    stays to the end. Buffers of one step never share. Among free slots the one that wastes or
    grows least is taken, of the same kind of rows where there is one.
    """
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for number, step in enumerate(plan.steps):
        for name in step.args:
            if name in plan.buffers:
                first.setdefault(name, number)
                last[name] = number
    if plan.output not in last:
        raise CompileError(f"no step writes the output buffer {plan.output!r}", where="plan")
    last[plan.output] = len(plan.steps)

    slots: list[Slot] = []
    free: list[int] = []
    chosen: dict[str, int] = {}
    for number, step in enumerate(plan.steps):
        for name in dict.fromkeys(step.args):
            if first.get(name) != number:
                continue
            rows, size = plan.buffers[name].rows, block_bytes(plan.buffers[name])

            def cost(index: int, rows=rows, size=size) -> tuple[bool, int]:
                have = slots[index].bytes[rows]
                return have == 0, abs(have - size)

            if free:
                chosen[name] = min(free, key=cost)
                free.remove(chosen[name])
            else:
                chosen[name] = len(slots)
                slots.append(Slot())
            slot = slots[chosen[name]]
            slot.bytes[rows] = max(slot.bytes[rows], size)
        for name in dict.fromkeys(step.args):
            if last.get(name) == number:
                free.append(chosen[name])
    return chosen, slots


def bytes_per_row(plan: Plan) -> dict[str, int]:
    """Return what one more row of a run takes of the arena, at most: kind of rows -> bytes."""
    _, slots = assign_slots(plan)
    return {rows: sum(slot.bytes[rows] for slot in slots) // BLOCK for rows in ROWS}
