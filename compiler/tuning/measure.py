"""Kernel -> seconds, in a process that may be killed, here or on a machine behind RPC.

The outputs are compared with the references first: a wrong result has no speed. Constants are taken
in turn from copies that exceed the second-level cache, since a model's next layer has others. On
one thread, time is that thread's own: what it waits for other processes does not count.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from intformer.backends.targets import CPUS
from intformer.tuning.remote import Remote

WRONG = "wrong result"
TIMED_OUT = "timed out"
COLD_BYTES = 16 << 20  # copies of constants: beyond the second-level cache of any core
SMALL_BYTES = 32 << 10  # constants that stay in the first-level cache anyway
BATCHES, KEPT = 8, 3  # timed batches of calls, and how many of the fastest count
BATCH_SECONDS = 0.02
TURNS, TURN_SECONDS = 15, 0.004  # of a race between kernels
REMOTE_CALLS = 10
THREAD_POOL = "runtime.config_threadpool"  # (1: the big cores, threads)


@dataclass
class Case:
    """Arguments of a kernel call and what it must write.

    arguments  in order, results too (filled with a pattern)
    expected   index of a result -> its first rows, [rows, width]
    constants  indices of what another layer has other numbers for
    counts     int32 [4] for kernels that are launched: tokens, sequences, positions, tokens of
               the longest
    """

    arguments: list[np.ndarray]
    expected: dict[int, np.ndarray]
    constants: list[int]
    counts: np.ndarray

    def save(self, path: Path) -> None:
        """Write it to a file."""
        arrays = {f"argument.{i}": array for i, array in enumerate(self.arguments)}
        arrays |= {f"expected.{i}": array for i, array in self.expected.items()}
        constants = np.array(self.constants, np.int64)
        np.savez(path, constants=constants, counts=self.counts, **arrays)

    @classmethod
    def load(cls, path: str | Path) -> "Case":
        """Read it back."""
        with np.load(path) as file:
            count = sum(name.startswith("argument.") for name in file.files)
            arguments = [file[f"argument.{i}"] for i in range(count)]
            expected = {
                int(name.partition(".")[2]): file[name]
                for name in file.files
                if name.startswith("expected.")
            }
            return cls(arguments, expected, file["constants"].tolist(), file["counts"])

    def check(self, outputs: dict[int, np.ndarray]) -> None:
        """Raise ValueError unless the results are the expected ones."""
        for index, want in self.expected.items():
            rows = outputs[index].reshape(-1, want.shape[1])[: len(want)]
            if not np.array_equal(rows, want):
                row, column = np.argwhere(rows != want)[0]
                raise ValueError(
                    f"{WRONG}: argument {index} row {row} column {column} is "
                    f"{rows[row, column]}, the reference says {want[row, column]}"
                )


_loaded: dict[str, Case] = {}  # of the last case, in the measuring process


def cached_case(path: str) -> Case:
    """Return the case of a file, which is read again only after another one."""
    if path not in _loaded:
        _loaded.clear()
        _loaded[path] = Case.load(path)
    return _loaded[path]


def here(library: str, path: str, symbol: str, threads: int) -> list[float]:
    """Check a kernel on this machine and return the seconds of its fastest batches."""
    _prepare(threads)
    case = cached_case(path)
    copies = _copies(case)
    kernel, clock = _checked(library, symbol, case, copies[0]), _clock(threads)
    stopwatch = _Stopwatch(kernel, copies, BATCH_SECONDS, clock)
    return sorted(stopwatch.batch() for _ in range(BATCHES))[:KEPT]


def in_turns(libraries: list[str], path: str, symbol: str, threads: int) -> list[list[float]]:
    """Check kernels on this machine and return the seconds of each in every turn.

    The kernels take short turns one after the other, so that a machine that becomes slower does so
    for all of them, and the ratios within a turn hold.
    """
    _prepare(threads)
    case = cached_case(path)
    copies = _copies(case)
    clock = _clock(threads)
    stopwatches = [
        _Stopwatch(_checked(library, symbol, case, copies[0]), copies, TURN_SECONDS, clock)
        for library in libraries
    ]
    turns = [[stopwatch.batch() for stopwatch in stopwatches] for _ in range(TURNS)]
    return [list(times) for times in zip(*turns, strict=True)]


def _clock(threads: int) -> Callable[[], float]:
    return time.thread_time if threads == 1 else time.perf_counter


def _prepare(threads: int) -> None:
    from tvm import get_global_func

    allowed = os.sched_getaffinity(0)
    get_global_func(THREAD_POOL)(1, threads)
    os.sched_setaffinity(0, allowed)  # it has bound this thread to one core, maybe a busy one
    for backend in CPUS:
        backend.prepare_thread()


def _copies(case: Case) -> list[list]:
    """Return the arguments, several times where a layer's constants would not stay in a cache."""
    from tvm.runtime import tensor

    arrays = [tensor(array) for array in case.arguments]
    copies = [arrays]
    size = sum(case.arguments[i].nbytes for i in case.constants)
    if size > SMALL_BYTES:
        for _ in range(min(64, -(-COLD_BYTES // size)) - 1):
            other = {i: tensor(case.arguments[i]) for i in case.constants}
            copies.append([other.get(i, array) for i, array in enumerate(arrays)])
    return copies


def _checked(library: str, symbol: str, case: Case, arrays: list):
    """Load a kernel, run it once, compare; return it."""
    from tvm.runtime import load_module

    kernel = load_module(library)[symbol]
    kernel(*arrays)
    case.check({index: arrays[index].numpy() for index in case.expected})
    return kernel


class _Stopwatch:
    """Times batches of calls of a kernel that take about `seconds` each."""

    def __init__(self, kernel, copies: list[list], seconds: float, clock: Callable[[], float]):
        """Run once through all copies, to know how long a call takes."""
        self.kernel, self.copies, self.clock, self.at = kernel, copies, clock, 0
        start = clock()
        for arguments in copies:
            kernel(*arguments)
        each = (clock() - start) / len(copies)
        self.calls = max(1, round(seconds / max(each, 1e-9)))

    def batch(self) -> float:
        """Return the seconds of a call, over one batch; goes on with the next copies."""
        batch = [self.copies[(self.at + i) % len(self.copies)] for i in range(self.calls)]
        self.at += self.calls
        start = self.clock()
        for arguments in batch:
            self.kernel(*arguments)
        return (self.clock() - start) / self.calls


def there(
    library: str, path: str, symbol: str, threads: int, remote: Remote, timeout: float
) -> list[float]:
    """Check a kernel on a remote machine and return the seconds of its fastest calls.

    Caches are flushed before each call, but for the first argument: the activations.
    """
    from tvm.runtime import tensor

    case = cached_case(path)
    session = remote.session(timeout)
    session.get_function(THREAD_POOL)(1, threads)
    name = Path(library).name
    session.upload(library, name)
    try:
        module, device = session.load_module(name), session.cpu(0)
        arrays = [tensor(array, device) for array in case.arguments]
        module[symbol](*arrays)
        case.check({index: arrays[index].numpy() for index in case.expected})
        flush = "cache_flush_cpu_non_first_arg" if case.constants else ""
        timed = module.time_evaluator(
            symbol, device, number=1, repeat=REMOTE_CALLS, f_preproc=flush
        )
        return sorted(timed(*arrays).results)[:KEPT]
    finally:
        session.remove(name)
