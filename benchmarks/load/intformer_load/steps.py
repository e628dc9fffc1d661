"""What is measured: capacity, waiting times below it, an overload, and hours of mixed load."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from intformer_load.generator import Volley, closed_loop, each, open_loop
from intformer_load.servers import resident

SHARES = (0.5, 0.8, 1.0)  # of capacity
CLIENTS = 64  # at a time, to find the capacity
OVERLOAD = 5  # times the capacity


@dataclass(frozen=True)
class Curve:
    """A server under load.

    capacity  answers a second, with CLIENTS waiting
    volleys   at SHARES of it
    """

    capacity: float
    volleys: Sequence[Volley]


def curve(base: str, bodies: Sequence[dict], seconds: float) -> Curve:
    """Measure what a server can do, and waiting times at shares of it."""
    warm(base, bodies, seconds)
    capacity = closed_loop(base, bodies, CLIENTS, seconds).rate
    volleys = [open_loop(base, bodies, share * capacity, seconds) for share in SHARES]
    return Curve(capacity, volleys)


def warm(base: str, bodies: Sequence[dict], seconds: float) -> None:
    """Let a server run a little, which then knows its pace."""
    closed_loop(base, bodies, CLIENTS // 8, seconds / 4)


def overload(base: str, bodies: Sequence[dict], capacity: float, seconds: float) -> Volley:
    """Offer several times what can be answered."""
    return open_loop(base, bodies, OVERLOAD * capacity, seconds)


@dataclass(frozen=True)
class Soak:
    """A long load.

    wrong   answers that differ from that to the request alone
    failed  requests that were not answered
    memory  resident MB of the server, by minute
    """

    answers: int
    wrong: int
    failed: int
    memory: Sequence[float]


def soak(
    base: str, pid: int, bodies: Sequence[dict], rate: float, minutes: float, part: float = 60
) -> Soak:
    """Compare every answer of a mixed load with the answer to the request alone, to the last bit.

    part  seconds between two looks at the memory
    """
    alone = {shot.body: shot.answer for shot in each(base, bodies).shots}
    answers = wrong = failed = 0
    memory, end, number = [resident(pid)], time.monotonic() + 60 * minutes, 0
    while time.monotonic() < end:
        volley = open_loop(base, bodies, rate, min(part, 60 * minutes), seed=number)
        answers += len(volley.answered)
        failed += len(volley.shots) - len(volley.answered)
        wrong += sum(shot.answer != alone[shot.body] for shot in volley.answered)
        memory.append(resident(pid))
        number += 1
    return Soak(answers, wrong, failed, memory)
