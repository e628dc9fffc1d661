"""What a warp executes: the instructions of a kernel in order, with its loops as often as they run.

Control flow is read from the code: a branch backwards closes a loop, a branch forwards that is
always taken is followed, any other is not taken (so rare paths are counted as if always run). How
often a loop runs is read from the comparison that ends it where that has a constant; where not, the
caller says.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from intformer.backends.cuda.sass import Function, Instruction


@dataclass(frozen=True)
class Loop:
    """A loop of a kernel: instructions first..last, the branch back included.

    trips  how often it runs, None where no constant says it
    """

    first: int
    last: int
    trips: int | None

    def holds(self, other: "Loop") -> bool:
        """Tell whether another loop lies in this one."""
        return self is not other and self.first <= other.first and other.last <= self.last


def path(function: Function) -> list[int]:
    """Return the instructions that a warp meets once from start to end, without going back."""
    met, at = [], 0
    seen = set()
    while at < len(function.instructions) and at not in seen:
        seen.add(at)
        met.append(at)
        here = function.instructions[at]
        target = _target(function, here)
        if here.name == "EXIT" and not here.guard:
            break
        at = target if target is not None and not here.guard and target > at else at + 1
    return met


def loops(function: Function) -> list[Loop]:
    """Return the loops on the path, inner ones before those around them."""
    met = set(path(function))
    found = []
    for last in sorted(met):
        target = _target(function, function.instructions[last])
        if target is not None and target < last:
            found.append(Loop(target, last, _trips(function.instructions[target : last + 1])))
    return sorted(found, key=lambda loop: loop.last - loop.first)


def unroll(function: Function, trips: Callable[[Loop], int]) -> list[Instruction]:
    """Return the instructions as a warp executes them.

    trips  (loop) -> how often it runs
    """
    every, order = loops(function), path(function)

    def expand(first: int, last: int, around: Loop | None) -> list[int]:
        result, skip = [], -1
        for at in order:
            if not first <= at <= last or at <= skip:
                continue
            inner = [lo for lo in every if lo.first == at and (not around or around.holds(lo))]
            if not inner:
                result.append(at)
                continue
            outermost = inner[-1]
            result += trips(outermost) * expand(outermost.first, outermost.last, outermost)
            skip = outermost.last
        return result

    return [function.instructions[at] for at in expand(0, len(function.instructions), None)]


def _target(function: Function, instruction: Instruction) -> int | None:
    """Return where a branch goes, None for what is no branch."""
    if instruction.name != "BRA":
        return None
    return function.labels.get(instruction.operands.split(",")[-1].strip())


def _trips(body: list[Instruction]) -> int | None:
    """Return how often a loop runs that counts up from 0 to a constant, else None."""
    guard = body[-1].guard.lstrip("!")
    for instruction in reversed(body[:-1]):
        first, *rest = [part.strip() for part in instruction.operands.split(",")]
        if first != guard:
            continue
        if instruction.name == "PLOP3":  # copies a uniform predicate
            guard = next((p.lstrip("!") for p in rest if re.fullmatch(r"!?UP\d", p)), "")
            continue
        if not instruction.name.endswith("ISETP") or len(rest) < 3:
            return None
        counter, bound = rest[1].removesuffix(".reuse"), rest[2]
        if not re.fullmatch(r"-?0x[0-9a-f]+", bound):
            return None
        step = _step(body, counter)
        return -(-int(bound, 16) // step) if step else None
    return None


def _step(body: list[Instruction], counter: str) -> int:
    """Return what a loop adds to its counter, 0 where that is no constant."""
    for instruction in body:
        parts = [p.strip().removesuffix(".reuse") for p in instruction.operands.split(",")]
        if instruction.name in ("IADD3", "UIADD3", "VIADD", "IADD") and parts[0] == counter:
            constants = [p for p in parts[1:] if re.fullmatch(r"-?0x[0-9a-f]+", p)]
            if counter in parts[1:] and len(constants) == 1:
                return int(constants[0], 16)
    return 0
