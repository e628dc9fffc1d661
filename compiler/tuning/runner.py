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
from tvm.support.popen_pool import PopenPoolExecutor

from intformer.errors import IntformerError
from intformer.tuning import gpu as on_gpu
from intformer.tuning import measure as on_cpu
from intformer.tuning.build import SYMBOL, last_line
from intformer.tuning.measure import TIMED_OUT, WRONG
from intformer.tuning.remote import Remote

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
    gpu      measure on the GPU
    """

    def __init__(
        self,
        case: Callable[[str], Path],
        threads: int,
        timeout: float,
        remote: Remote | None,
        gpu: bool = False,
    ):
        """Start no process yet."""
        super().__init__()
        self.case, self.threads, self.timeout, self.remote = case, threads, timeout, remote
        self.way = on_gpu if gpu else on_cpu
        self.pool = self._new_pool()

    def _new_pool(self) -> PopenPoolExecutor:
        return PopenPoolExecutor(max_workers=1, timeout=self.timeout)

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
        if self.remote:
            return self._outcome(self.way.there, *about, self.remote, self.timeout)
        return self._outcome(self.way.here, *about)

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
            return self.pool.submit(function, *arguments).result(), None
        except TimeoutError:
            return None, f"{TIMED_OUT}: not measured within {self.timeout:g} s"
        except IntformerError:
            raise
        except Exception as error:  # a crash of the process too is the candidate's failure
            text = last_line(error)
            at = text.find(WRONG)
            if at >= 0:
                return None, text[at:]
            if self.way is on_gpu:
                # after a fault of a kernel the driver serves a process no more, here or behind RPC
                self.pool.shutdown()
                self.pool = self._new_pool()
            return None, f"not run: {text}"
