"""One thread runs one library, on the sequences of the requests that wait: first come, first run.

A run takes sequences in the order in which they came until the next one would exceed the budget of
tokens; nothing is padded, and no result depends on what runs beside it.
"""

import math
import threading
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from intformer.ir.heads import head_of
from intformer.runtime.edge import Packed
from intformer.runtime.edge.packed import together
from intformer.runtime.library import Library
from intformer.serve.faults import Fault
from intformer.serve.metrics import Metrics

Part = tuple["Job", int, int]  # sequences of a job, from and to
NEWEST = 0.1  # part of the pace that is the last run's, where all runs are of one length


@dataclass
class Job:
    """Sequences of one request.

    future    of the library's integers, int32 [rows, channels]; cancelled by who no longer waits
    deadline  of time.monotonic(), after which nobody waits
    next      the first sequence that has not run
    waiting   tokens that wait in the queue
    """

    packed: Packed
    deadline: float
    future: Future = field(default_factory=Future)
    queued: float = field(default_factory=time.monotonic)
    next: int = 0
    started: float | None = None
    outputs: list[np.ndarray] = field(default_factory=list)
    waiting: int = field(init=False)

    def __post_init__(self):
        """All of it waits."""
        self.waiting = int(self.packed.cu_seqlens[-1])

    @property
    def sequences(self) -> int:
        """How many there are."""
        return self.packed.cu_seqlens.size - 1

    def reach(self, tokens: int) -> int:
        """Return the sequence up to which `tokens` are enough."""
        offsets = self.packed.cu_seqlens
        most = offsets[self.next] + tokens
        return int(np.searchsorted(offsets, most, side="right")) - 1


class Engine:
    """The thread of a library, and the jobs that wait for it."""

    def __init__(
        self,
        library: Library,
        max_batch_tokens: int,
        metrics: Metrics,
        name: str,
        max_wait: float = math.inf,
    ):
        """Start the thread."""
        self.library, self.budget = library, max_batch_tokens
        self.metrics, self.name, self.max_wait = metrics, name, max_wait
        self._pace = 0.0  # seconds a token: of the last runs, each by its tokens
        self._mean = np.zeros(2)  # seconds and tokens of a run
        self._waiting = self._running = 0  # tokens
        self._rows = head_of(library.metadata).rows
        self._queue: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name=f"engine {name}", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether it takes jobs."""
        return self._thread.is_alive() and not self._closing

    @property
    def waiting(self) -> int:
        """Tokens that wait for a run."""
        return self._waiting

    @property
    def pressed(self) -> bool:
        """Whether what comes now would wait too long."""
        return (self._waiting + self._running) * self._pace > self.max_wait

    def check(self) -> None:
        """Raise Fault where what comes now would wait too long."""
        if self.pressed:
            raise Fault("Overloaded", "model is overloaded")

    def submit(self, packed: Packed, deadline: float) -> Job:
        """Queue sequences; raise Fault once the engine closes, and where they would wait long."""
        job = Job(packed, deadline)
        self.check()
        with self._changed:
            if not self.alive:
                raise Fault("Unhealthy", "the server is stopping")
            self._queue.append(job)
            self._waiting += job.waiting
            self.metrics.queued(self.name, len(self._queue))
            self._changed.notify()
        return job

    def close(self) -> None:
        """Finish what was taken, then end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while parts := self._next_parts():
            try:
                self._run(parts)
            except Exception as error:
                for job, _, _ in parts:
                    _fail(job, error)

    def _next_parts(self) -> list[Part]:
        """Wait for jobs; return the sequences of the next run, none where the engine is closed."""
        with self._changed:
            while True:
                if parts := self._taken():
                    return parts
                if self._closing:
                    return []
                self._changed.wait()

    def _taken(self) -> list[Part]:
        parts, room = [], self.budget
        while self._queue:
            job = self._queue[0]
            if _dropped(job):
                self._queue.popleft()
                self._waiting -= job.waiting
                continue
            start, stop = job.next, job.reach(room)
            if stop <= start:
                if parts:
                    break
                stop = start + 1  # longer than a run
            parts.append((job, start, stop))
            tokens = int(job.packed.cu_seqlens[stop] - job.packed.cu_seqlens[start])
            room, job.waiting = room - tokens, job.waiting - tokens
            self._waiting -= tokens
            job.next = stop
            if stop < job.sequences:
                break
            self._queue.popleft()
        self.metrics.queued(self.name, len(self._queue))
        return parts

    def _run(self, parts: list[Part]) -> None:
        inputs = [job.packed.part(start, stop) for job, start, stop in parts]
        self._running = tokens = sum(one["input_ids"].size for one in inputs)
        began = time.monotonic()
        for job, _, _ in parts:
            job.started = job.started or began
        try:
            output = self.library.run(**together(inputs))
        finally:
            self._running = 0
        seconds = time.monotonic() - began
        self._mean += NEWEST * ((seconds, tokens) - self._mean)
        self._pace = float(self._mean[0] / self._mean[1])
        self.metrics.ran(self.name, tokens, len(parts), seconds)
        counts = [self._row_count(one) for one in inputs]
        rows = np.split(output, np.cumsum(counts)[:-1])
        for (job, _, stop), some in zip(parts, rows, strict=True):
            job.outputs.append(some)
            if stop == job.sequences:
                _answer(job)

    def _row_count(self, inputs: dict[str, np.ndarray]) -> int:
        by_kind = {
            "token": inputs["input_ids"].size,
            "sequence": inputs["cu_seqlens"].size - 1,
            "position": inputs["positions"].size if "positions" in inputs else 0,
        }
        return by_kind[self._rows]


def _dropped(job: Job) -> bool:
    """Tell whether nobody waits for a job any more."""
    if not job.future.cancelled() and time.monotonic() > job.deadline:
        _fail(job, Fault("Timeout", "the request waited too long"))
    return job.future.done()


def _answer(job: Job) -> None:
    if not job.future.done() and job.future.set_running_or_notify_cancel():
        job.future.set_result(np.concatenate(job.outputs))


def _fail(job: Job, error: Exception) -> None:
    job.next = job.sequences  # what is left of it does not run
    if not job.future.done() and job.future.set_running_or_notify_cancel():
        job.future.set_exception(error)
