"""The memory of a static library: what one run takes at most, and where every tensor lies then."""

from dataclasses import dataclass

from intformer.errors import CompileError
from intformer.ir.constants import BLOCK, READ_AHEAD
from intformer.ir.model import INPUTS, ROWS
from intformer.ir.plan import Plan
from intformer.passes.memory import assign_slots

NUMBER = 4  # bytes of an input's number


@dataclass(frozen=True)
class Limits:
    """What one run takes at most, by kind of rows."""

    token: int
    sequence: int
    position: int


def limits(
    plan: Plan,
    most: int,
    length: int,
    *,
    tokens: int | None,
    sequences: int | None,
    positions: int | None,
) -> Limits:
    """Return the limits that are asked for, or raise CompileError.

    most    rows of any kind that the kernels can count
    length  tokens of the longest sequence
    tokens, sequences, positions  None: one sequence, as long as may be, a position for each
    """
    if positions is not None and "positions" not in plan.inputs:
        raise CompileError("this model is not asked for positions", where="--max-positions")
    sequences = 1 if sequences is None else sequences
    tokens = length * sequences if tokens is None else tokens
    asked = sequences if positions is None else positions
    for name, count in (("tokens", tokens), ("sequences", sequences), ("positions", asked)):
        if not 1 <= count <= most:
            raise CompileError(f"{count} is not between 1 and {most}", where=f"--max-{name}")
    if sequences > tokens:
        raise CompileError(
            f"{sequences} sequences have more than {tokens} tokens", where="--max-tokens"
        )
    return Limits(tokens, sequences, asked if "positions" in plan.inputs else 0)


class Arena:
    """Where inputs, buffers and the memory that is lent to kernels lie.

    limits   see there
    align    of every tensor, and of the whole
    at       tensor -> its first byte
    scratch  first byte of the memory that is lent to one kernel after the other
    bytes    of all
    """

    def __init__(self, plan: Plan, limits: Limits, lent: int, align: int):
        """Lay it out for the largest run.

        lent  bytes that a kernel needs at most
        """
        self.limits, self.align = limits, align
        self.at: dict[str, int] = {}
        rows, end = vars(limits), 0
        for tensor, kind in INPUTS.items():
            self.at[tensor] = end
            end += aligned(NUMBER * (rows[kind] + (tensor == "cu_seqlens")), align)
        slot_of, slots = assign_slots(plan)
        starts = []
        for slot in slots:
            starts.append(end)
            end += aligned(max(slot.bytes[k] * -(-rows[k] // BLOCK) for k in ROWS), align)
        self.at |= {buffer: starts[slot] for buffer, slot in slot_of.items()}
        self.scratch = end
        # what lies behind the last row of a buffer may be read, and is never used
        ahead = READ_AHEAD * max(slot.bytes[k] for slot in slots for k in ROWS)
        self.bytes = end + aligned(max(lent, ahead), align)


def aligned(size: int, align: int) -> int:
    """Return the next multiple of `align`."""
    return -(-size // align) * align
