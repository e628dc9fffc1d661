"""Measures the artifacts of `build.Builder`, one at a time: two would disturb each other."""

from collections.abc import Callable
from pathlib import Path

from tvm.ir.utils import derived_object
from tvm.s_tir.meta_schedule.runner import (
    PyRunner,
    PyRunnerFuture,
    RunnerFuture,
    RunnerInput,
    RunnerResult,
)
from tvm.support.popen_pool import PopenWorker

from intformer.errors import IntformerError
from intformer.tuning.board import Board
from intformer.tuning.build import SYMBOL, last_line
from intformer.tuning.measure import TIMED_OUT, WRONG
from intformer.tuning.remote import Remote, connect
from intformer.tuning.ways import Way

NOT_RUN = "not run"
ROUNDS = 3  # of a race on a remote machine


@derived_object
class _Done(PyRunnerFuture):
    """A result that is there already."""

    def __init__(self, outcome: RunnerResult):
        """Hold a result."""
        super().__init__()
        self.outcome = outcome

    def done(self) -> bool:
        """Yes."""
        return True

    def result(self) -> RunnerResult:
        """Return it."""
        return self.outcome


@derived_object
class Runner(PyRunner):
    """Runs kernels in a process of its own.

    case     task identity -> file of its inputs
    threads  of the kernels
    timeout  seconds for one candidate
    remote   where to measure; None: here
    way      how kernels of the target are measured
    fault    what ended the job: an error that goes through TVM loses its type
    """

    def __init__(
        self,
        case: Callable[[str], Path],
        threads: int,
        timeout: float,
        remote: Remote | Board | None,
        way: Way,
    ):
        """Start no process yet."""
        super().__init__()
        self.case, self.threads, self.timeout, self.remote = case, threads, timeout, remote
        self.way = way
        self.worker = PopenWorker()  # starts anew after it was killed
        self.fault: IntformerError | None = None

    def run(self, runner_inputs: list[RunnerInput]) -> list[RunnerFuture]:
        """Measure a batch. It is done on return, so nothing is built meanwhile."""
        futures = []
        for given in runner_inputs:
            library, _, identity = str(given.artifact_path).partition("#")
            futures.append(_Done(RunnerResult(*self.measure(library, identity))))
        return futures

    def measure(self, library: str, identity: str) -> tuple[list[float] | None, str | None]:
        """Return (seconds, None) or (None, error)."""
        about = library, str(self.case(identity)), SYMBOL, self.threads
        if not self.remote:
            return self._outcome(self.way.here, *about)
        seconds, error = self._there(*about)
        if error and error.startswith(NOT_RUN):  # a lost connection is no fault of the candidate
            seconds, error = self._there(*about)
        return seconds, error

    def _there(self, *about) -> tuple[list[float] | None, str | None]:
        self._connect()
        return self._outcome(self.way.there, *about, self.remote, self.timeout)

    def _connect(self) -> None:
        """Have a session: waiting for a machine that others use is not the candidate's time."""
        others = 4 * self.timeout + 60  # two sessions, and what is around them
        try:
            self._call(connect, self.remote, self.timeout, limit=others)
        except TimeoutError:
            self._end(f"the machine with key {self.remote.key!r} was not free in {others:g} s")
        except Exception as error:
            self._end(last_line(error))

    def race(self, libraries: list[str], identity: str) -> list[list[float]] | None:
        """Return the seconds of each library in every turn; None where one of them fails."""
        if not self.remote:
            return self._outcome(
                self.way.in_turns, libraries, str(self.case(identity)), SYMBOL, self.threads
            )[0]
        rounds = [
            [self.measure(library, identity)[0] for library in libraries] for _ in range(ROUNDS)
        ]
        if not all(all(times) for times in rounds):
            return None
        return [[min(times) for times in of_one] for of_one in zip(*rounds, strict=True)]

    def _outcome(self, function: Callable, *arguments):
        try:
            return self._call(function, *arguments, limit=self.timeout), None
        except TimeoutError:
            return None, f"{TIMED_OUT}: not measured within {self.timeout:g} s"
        except IntformerError as error:
            self._end(last_line(error))
        except Exception as error:  # a crash of the process too is the candidate's failure
            text = last_line(error)
            for known in (WRONG, TIMED_OUT):
                if (at := text.find(known)) >= 0:
                    return None, text[at:]
            # the session was lost, or a kernel faulted: a device's driver then serves this process
            # no more
            self.worker.kill()
            return None, f"{NOT_RUN}: {text}"

    def _call(self, function: Callable, *arguments, limit: float):
        self.worker.send(function, arguments, timeout=limit)
        return self.worker.recv()

    def _end(self, line: str) -> None:
        """End the job with the last line of what a process said."""
        self.fault = IntformerError(
            line.removeprefix(f"{IntformerError.__module__}.IntformerError: ")
        )
        raise self.fault
