"""Runs contestants: each a process, turn by turn, all but one of them stopped.

Contestants of one cell are built first and then take short turns in round robin, so that a machine
that drifts drifts for all. Who is not on turn is stopped (SIGSTOP): thread pools that spin after
work take nothing from another's turn. A contestant that fails is a result, not the end.
"""

import ctypes
import json
import os
import selectors
import signal
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from intformer_race.sandbox import VNNI_ENVIRONMENT, deny_amx

TURNS = 3  # at least, however long one run takes
BUILD_SECONDS = 1800.0  # until a contestant must be ready; the first time it builds its models
TURN_SECONDS = 300.0  # beyond what a turn was given
RESERVE = 1536 << 20  # bytes: who takes the machine's memory below this is out
PACKAGES = Path(__file__).parents[1]  # holds intformer_race, which contestants import, alone
LOOK = 0.5  # seconds between looks at the memory
_PR_SET_PDEATHSIG = 1


class Failure(Exception):
    """A contestant died, hung, or said what is not in the protocol."""


def available_memory() -> int:
    """Return the bytes that can be had without taking them from anybody."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(1024 * int(one.split()[1]) for one in lines if one.startswith("MemAvailable:"))


class Entrant:
    """A contestant's process in one cell.

    milliseconds  of every run, in order
    medians       of every turn
    cpu           CPU milliseconds of a run, one figure a turn
    error         why it is out; empty while it is in
    """

    def __init__(self, name: str, command: Sequence[str], spec: Mapping, log: Path):
        """Start it, on the CPUs in spec["cpus"] and at the ISA level in spec["isa"]."""
        self.name, self.error, self.info = name, "", {}
        self.milliseconds: list[float] = []
        self.medians: list[float] = []
        self.cpu: list[float] = []
        self._log, self._rest = log, b""
        threads = str(spec["threads"])
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        paths = [str(PACKAGES), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment["PYTHONPATH"] = os.pathsep.join(paths)
        capped = spec["isa"] == "vnni"

        def prepare() -> None:
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # also when it is stopped
            os.sched_setaffinity(0, spec["cpus"])
            Path("/proc/self/oom_score_adj").write_text("1000")  # it goes before anything else does
            if capped:
                deny_amx()

        self._process = None
        try:
            with open(log, "wb") as errors:
                self._process = subprocess.Popen(
                    [*command, json.dumps(dict(spec))],
                    env=environment | (VNNI_ENVIRONMENT if capped else {}),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    preexec_fn=prepare,
                    process_group=0,  # with whatever it starts
                )
        except (OSError, subprocess.SubprocessError) as error:
            self.error = f"cannot be started: {error}"

    @property
    def spent(self) -> float:
        """Seconds in counted runs so far."""
        return sum(self.milliseconds) / 1e3

    def get_ready(self, seconds: float) -> None:
        """Wait until it is built and warm, and stop it."""

        def ready() -> None:
            self.info = dict(self._read(seconds)["info"])

        self._attempt(ready)

    def turn(self, seconds: float, patience: float = TURN_SECONDS) -> None:
        """Let it run for about so many seconds; `patience` seconds later it is out."""

        def take() -> None:
            os.killpg(self._process.pid, signal.SIGCONT)
            self._process.stdin.write(f"{seconds}\n".encode())
            self._process.stdin.flush()
            answer = self._read(seconds + patience)
            runs = [float(ms) for ms in answer["ms"]]
            if not runs or not all(0 < ms < float("inf") for ms in runs):
                raise Failure(f"timed {answer['ms']!r:.60}")
            self.milliseconds += runs
            self.medians.append(statistics.median(runs))
            self.cpu.append(float(answer["cpu_ms"]))

        self._attempt(take)

    def close(self) -> None:
        """End it and all that it started."""
        if self._process is None:
            return
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()

    def _attempt(self, step: Callable[[], None]) -> None:
        if self.error:
            return
        try:
            step()
            os.killpg(self._process.pid, signal.SIGSTOP)
        except (Failure, OSError, ValueError, KeyError, TypeError) as error:
            self.error = f"{error}" if isinstance(error, Failure) else self._why(repr(error))
            self.close()

    def _read(self, seconds: float) -> dict:
        """Return its next line; raise Failure where none comes in time."""
        end, out = time.monotonic() + seconds, self._process.stdout.fileno()
        with selectors.DefaultSelector() as waiting:
            waiting.register(out, selectors.EVENT_READ)
            while b"\n" not in self._rest:
                if available_memory() < RESERVE:
                    raise Failure(f"stopped: less than {RESERVE >> 20} MiB of memory was left")
                left = end - time.monotonic()
                if not waiting.select(max(0.0, min(left, LOOK))):
                    if left > LOOK:
                        continue
                    raise Failure(f"no answer in {seconds:g} s")
                got = os.read(out, 1 << 16)
                if not got:
                    raise Failure(self._why(f"exit {self._process.wait()}"))
                self._rest += got
        line, _, self._rest = self._rest.partition(b"\n")
        return json.loads(line)

    def _why(self, fault: str) -> str:
        last = self._log.read_text(errors="replace").strip().splitlines()[-1:]
        return ": ".join([fault, *(line[:160] for line in last)])


def race(
    entrants: Sequence[Entrant],
    rounds: int,
    turn: float,
    *,
    build: float = BUILD_SECONDS,
    patience: float = TURN_SECONDS,
    say: Callable[[str], None] = lambda what: None,
) -> None:
    """Race them: about rounds * turn seconds of runs each, in turns, at least TURNS of them.

    They must have been started one after the other, see `start`: those ready are stopped.
    """
    for number in range(max(rounds, TURNS)):
        say(f"round {number + 1}")
        for entrant in entrants:
            due = number < TURNS or entrant.spent < rounds * turn
            if due and not entrant.error:
                entrant.turn(turn, patience)
    for entrant in entrants:
        entrant.close()
