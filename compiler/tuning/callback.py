"""Progress of a search, a line after every batch."""

import time

import numpy as np
from tvm.ir.utils import derived_object
from tvm.s_tir.meta_schedule.measure_callback import PyMeasureCallback

from intformer.tuning.measure import TIMED_OUT, WRONG
from intformer.tuning.records import FAILED
from intformer.tuning.search import key
from intformer.tuning.workload import decided

OTHER = "other"


def kind(error: str) -> str:
    """Return what sort of failure a message is about."""
    return next((name for name in (WRONG, TIMED_OUT) if error.startswith(name)), OTHER)


@derived_object
class Progress(PyMeasureCallback):
    """Counts and tells: best so far, trials and time left, candidates that failed or timed out.

    job    has tasks, seconds (task -> decisions -> seconds), failures and progress
    total  trials of this run
    """

    def __init__(self, job, total: int):
        """Start the clock."""
        super().__init__()
        self.job, self.total, self.trials = job, total, 0
        self.start = time.monotonic()

    def apply(self, task_scheduler, task_id, measure_candidates, builder_results, runner_results):
        """Take note of one batch."""
        task = self.job.tasks[task_id]
        seconds = self.job.seconds[task.form.text, task.rows]
        for given, result in zip(measure_candidates, runner_results, strict=True):
            times = [float(x) for x in result.run_secs] if result.run_secs else [10 * FAILED]
            seconds[key(decided(given.sch))] = float(np.mean(times))
            if result.error_msg:
                self.job.failures[kind(str(result.error_msg))] += 1
        self.trials += len(runner_results)
        self.job.progress(self.line(task, seconds))

    def line(self, task, seconds) -> str:
        """Return the state in one line."""
        left = max(0, self.total - self.trials)
        minutes = (time.monotonic() - self.start) / self.trials * left / 60
        best = min(seconds.values())
        default = seconds.get(key(task.default), best)
        found = "none works yet"
        if best < FAILED:
            gain = f", {default / best:.2f}x the default" if default < FAILED else ""
            found = f"best {best * 1e3:.3f} ms{gain}"
        failed = {name: self.job.failures[name] for name in (WRONG, TIMED_OUT, OTHER)}
        return (
            f"{task.title}: {found}; {left} trials, {minutes:.0f} min left; "
            f"failed: {failed[OTHER]}, timed out: {failed[TIMED_OUT]}, wrong: {failed[WRONG]}"
        )
