"""One tuning job: search, then a race of the best candidates, then the logs.

    OUT/measured/TARGET   every candidate ever measured, and the races: what a run resumes from
    OUT/TARGET            pruned: what took part in the races, and where it was measured

The search may misjudge by noise and knows each candidate at few row counts. So the best of every
row count are measured again in turns, at all of them, and only those figures are kept.
"""

import json
import logging
import os
import shutil
import statistics
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType

from intformer import scratch as scratch_folder
from intformer.backends import targets
from intformer.errors import IntformerError
from intformer.ir.model import IntModel
from intformer.passes.form import Decisions, Form
from intformer.tuning import records
from intformer.tuning.records import FAILED, FILES, PROVENANCE, Key, version_for
from intformer.tuning.tasks import Task, model_of, models_of_shape, tasks

BATCH = 8  # candidates of one task that are built and measured together
FINALISTS, MOST_FINALISTS = 2, 8  # of each row count, of all
RACES = "races.json"
TOKENS = (1, 16, 64, 128, 384, 1024, 4096)  # token counts to tune for


@dataclass(frozen=True)
class Line:
    """One task when tuning is done: seconds by the default rule and by what compiling chooses.

    kernel  for people: title of the form
    calls   in one run of the model (of two layers, for a shape)
    """

    kernel: str
    rows: int
    calls: int
    default: float
    chosen: float
    decisions: Decisions

    @property
    def ratio(self) -> float:
        """Return how many times as fast the choice is."""
        return self.default / self.chosen


@dataclass
class Report:
    """What a job did.

    logs      folder for `compile --tuning-logs`
    trials    candidates measured, of earlier runs too
    failures  of this run, by kind: "wrong result", "timed out", "other"
    """

    logs: str
    target: str
    trials: int
    failures: dict[str, int]
    lines: list[Line] = field(default_factory=list)


def tune(
    source: str | Path | IntModel | None = None,
    *,
    shape: str | None = None,
    target: str = "host",
    trials: int,
    out: str | Path,
    tokens: Sequence[int] = TOKENS,
    rpc: str | None = None,
    rpc_key: str | None = None,
    via: str | None = None,
    timeout: float = 60,
    jobs: int | None = None,
    threads: int = 1,
    seed: int = 0,
    command: str = "intformer.tune",
    progress: Callable[[str], None] = lambda line: None,
    build: Callable | None = None,
) -> Report:
    """Tune the kernels of a checkpoint or of a well-known shape; resume an interrupted run.

    source, shape  model directory, ONNX file or IntModel; or a key of frontend.shapes.SHAPES
    target         a key of TARGETS, or "host"; for a GPU there must be one here, or behind RPC
    trials         candidates to measure in all, those of earlier runs into `out` included
    out            folder of the logs
    tokens         token counts to tune for
    rpc, rpc_key   HOST:PORT of a TVM RPC tracker and key of its machines, to measure there
    via            a command that runs programs on a board, to measure there: "ssh HOST", or words
                   before a program; on one thread
    timeout        seconds to build one candidate, and to measure one
    jobs           processes that build (default: one per CPU)
    threads        of the measured kernels
    seed           of the search
    command        what to write into the provenance
    progress       called with a line of text after every batch
    build          in place of build.build, for tests
    """
    _check_packages()
    from intformer.tuning import ways
    from intformer.tuning.build import Builder

    spec = _one_chip(target)
    if (source is None) == (shape is None):
        raise IntformerError("tuning needs a model, or a shape", hint="SRC, or --shape NAME")
    remote = _elsewhere(rpc, rpc_key, via, threads, progress)
    way = ways.way_for(spec.backend, remote)
    machine = way.ready(spec, remote, timeout)
    if isinstance(source, IntModel):
        models = [source]
    else:
        progress(f"reading the kernels of {shape or source}")
        models = models_of_shape(shape) if shape else [model_of(source)]
    every = tasks(models, spec, tokens)
    job = _Job(Path(out), spec.name, every, progress)
    jobs = jobs or len(os.sched_getaffinity(0))
    with scratch_folder.folder() as scratch:
        objects = job.measured / "objects"
        builder = Builder(spec.name, objects, jobs, timeout, build or way.build)
        runner = _runner(job, Path(scratch), threads, timeout, remote, way)
        try:
            job.search(builder, runner, trials, seed)
            job.race(builder, runner)
        except Exception:
            if runner.fault:
                raise runner.fault from None
            raise
    job.write(
        {
            "tvm": _tvm_version(),
            "cpu": ways.machine(remote),
            "cores": len(os.sched_getaffinity(0)) if not remote else None,
            **machine,
            "threads": threads,
            "date": datetime.now(UTC).date().isoformat(),
            "command": command,
            "kernels": len({task.form for task in every}),
            "trials": job.done(),
        }
    )
    return job.report()


def _elsewhere(rpc, rpc_key, via, threads: int, progress: Callable):
    """Return the machine that measures, None: this one (arguments: tune)."""
    from intformer.tuning.board import Board
    from intformer.tuning.remote import Remote

    if via is not None:
        if rpc or threads != 1:
            raise IntformerError(
                "a board is measured on one thread, without RPC",
                where="--via",
                hint="leave --rpc and --threads out",
            )
        return Board.parse(via)
    if not rpc:
        return None
    remote = Remote.parse(rpc, rpc_key)
    progress(f"asking {rpc} for a machine with key {rpc_key!r}")
    return remote


def _one_chip(target: str) -> targets.TargetSpec:
    """Return the target; IntformerError where it has no kernels of its own."""
    spec = targets.get(target)
    if spec.variants:
        raise IntformerError(
            f"target {spec.name} has no kernels of its own",
            where="--target",
            hint="tune one of " + ", ".join(spec.variants),
        )
    return spec


class _Job:
    """The state of a tuning job on disk."""

    def __init__(self, out: Path, target: str, every: list[Task], progress: Callable):
        self.target, self.tasks, self.progress = target, every, progress
        self.logs, self.measured = out / target, out / "measured" / target
        (self.measured / "objects").mkdir(parents=True, exist_ok=True)
        for name in FILES:
            path = self.measured / name
            if not path.exists() and (self.logs / name).exists():
                shutil.copyfile(self.logs / name, path)  # go on from pruned logs
            path.touch()
            _drop_cut_line(path)
        self.by_identity = {task.identity: task for task in every}
        self.failures: Counter = Counter()
        self.measured_now = False
        self.seconds = self._load()
        self.races: dict[str, dict] = {}
        races = self.measured / RACES
        if races.exists():
            self.races = json.loads(races.read_text())

    def _load(self) -> dict[tuple[str, int], dict[Key, float]]:
        found: dict = defaultdict(dict)
        for record in records.read_database(self.measured):
            row = found[record.form, record.rows]
            row[record.decisions] = min(record.seconds, row.get(record.decisions, float("inf")))
        return found

    def done(self) -> int:
        """Return how many candidates of the tasks were measured."""
        return sum(len(self.seconds[task.form.text, task.rows]) for task in self.tasks)

    def search(self, builder, runner, trials: int, seed: int) -> None:
        """Measure candidates until there are `trials` of them."""
        from tvm.s_tir import meta_schedule
        from tvm.target import Target

        from intformer.tuning.callback import Progress
        from intformer.tuning.search import Search, cost_model
        from intformer.tuning.workload import workload

        left = trials - self.done()
        if left <= 0:
            return
        self.measured_now = True
        logger = logging.getLogger("tvm.s_tir.meta_schedule")
        logger.setLevel(logging.ERROR)
        spec = targets.get(self.target)
        with _without_stock_intrinsics():
            contexts = [
                meta_schedule.TuneContext(
                    workload(task.form, task.rows),
                    target=Target(dict(spec.tvm)),
                    space_generator=meta_schedule.space_generator.ScheduleFn(
                        lambda sch: [sch], sch_rules=[], postprocs=[], mutator_probs={}
                    ),
                    search_strategy=Search(
                        task.space,
                        task.default,
                        self.seconds[task.form.text, task.rows],
                        seed + number,
                    ),
                    task_name=task.identity,
                    rand_state=seed + number + 1,
                    num_threads=1,
                    logger=logger,
                )
                for number, task in enumerate(self.tasks)
            ]
        database = records.open_database(self.measured)
        told = Progress(self, left)
        meta_schedule.tune.tune_tasks(
            tasks=contexts,
            task_weights=[float(task.kernel.calls) for task in self.tasks],
            work_dir=str(self.measured),
            max_trials_global=left,
            num_trials_per_iter=min(BATCH, max(1, left // len(contexts))),
            builder=builder,
            runner=runner,
            database=database,
            cost_model=cost_model(seed),
            measure_callbacks=[
                told,
                meta_schedule.measure_callback.AddToDatabase(),
                meta_schedule.measure_callback.UpdateCostModel(),
            ],
            task_scheduler=meta_schedule.task_scheduler.RoundRobin(),
        )
        self.seconds = self._load()

    def forms(self) -> dict[Form, list[Task]]:
        """Return the tasks of every kernel."""
        found: dict[Form, list[Task]] = defaultdict(list)
        for task in self.tasks:
            found[task.form].append(task)
        return found

    def race(self, builder, runner) -> None:
        """Measure the best candidates of every kernel in turns, at all its row counts."""
        forms = self.forms()
        for number, (form, rows) in enumerate(forms.items(), 1):
            finalists = self._finalists(rows)
            entry = self.races.get(form.text)
            wanted = {str(task.rows) for task in rows}
            known = entry and entry["finalists"] == [dict(key) for key in finalists]
            if known and wanted <= set(entry["seconds"]):
                continue
            self.progress(
                f"race {number} of {len(forms)}: {form.title}, {len(finalists)} candidates at "
                f"{len(rows)} row counts"
            )
            self.measured_now = True
            built = builder.libraries([(form, 0, dict(key)) for key in finalists])
            paths = [artifact.partition("#")[0] if artifact else None for artifact, _ in built]
            seconds = dict(entry["seconds"]) if known else {}
            for task in rows:
                seconds[str(task.rows)] = self._raced(runner, paths, task)
            self.races[form.text] = {
                "finalists": [dict(key) for key in finalists],
                "seconds": seconds,
            }
            new = self.measured / f".{RACES}"
            new.write_text(json.dumps(self.races))
            new.replace(self.measured / RACES)

    def _raced(self, runner, paths: list[str | None], task: Task) -> list[float]:
        """Return the seconds of finalists, the default first; FAILED for what does not run.

        A candidate's are the default's median times the median ratio within the turns.
        """
        good = [i for i, path in enumerate(paths) if path]
        times = runner.race([paths[i] for i in good], task.identity)
        if times is None:  # one of them fails here: leave it out
            good = [i for i in good if runner.measure(paths[i], task.identity)[0]]
            times = runner.race([paths[i] for i in good], task.identity) or [[] for _ in good]
        found = [FAILED] * len(paths)
        for i, taken in zip(good, times, strict=True):
            if taken:
                ratios = [a / b for a, b in zip(taken, times[0], strict=True)]
                found[i] = statistics.median(times[0]) * statistics.median(ratios)
        return found

    def _finalists(self, rows: list[Task]) -> list[Key]:
        """Return the default rule, then the best of every row count, then their second best, ..."""
        found = dict.fromkeys(tuple(sorted(task.default.items())) for task in rows)
        ranked = []
        for task in rows:
            measured = self.seconds[task.form.text, task.rows]
            good = [key for key in measured if measured[key] < FAILED]
            ranked.append(sorted(good, key=measured.get)[:FINALISTS])
        for place in range(FINALISTS):
            found |= dict.fromkeys(keys[place] for keys in ranked if place < len(keys))
        return list(found)[:MOST_FINALISTS]

    def write(self, run: dict) -> None:
        """Write the pruned logs: the races of this job, and what other jobs left there."""
        from tvm.s_tir import meta_schedule
        from tvm.s_tir.meta_schedule.database import TuningRecord
        from tvm.target import Target

        from intformer.tuning.workload import candidate, workload

        new = self.logs.with_name(f".{self.target}.new")
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        database = meta_schedule.database.JSONDatabase(*(str(new / name) for name in FILES))
        forms = self.forms()
        mine = {form.text for form in forms}
        if all((self.logs / name).exists() for name in FILES):
            for record in records.open_database(self.logs).get_all_tuning_records():
                if records.form_of(record) not in mine:
                    work = database.commit_workload(record.workload.mod)
                    database.commit_tuning_record(
                        TuningRecord(record.trace, work, record.run_secs, record.target, [])
                    )
        target = Target(dict(targets.get(self.target).tvm))
        for form, rows in forms.items():
            entry = self.races[form.text]
            for task in rows:
                work = database.commit_workload(workload(form, task.rows))
                for decisions, seconds in zip(
                    entry["finalists"], entry["seconds"][str(task.rows)], strict=True
                ):
                    if seconds < FAILED:
                        sch = candidate(work.mod, task.space, decisions)
                        database.commit_tuning_record(
                            TuningRecord(sch.trace, work, [seconds], target, [])
                        )
        runs = []
        if (self.logs / PROVENANCE).exists():
            runs = json.loads((self.logs / PROVENANCE).read_text())["runs"]
        if self.measured_now:
            runs = [known for known in runs if known["command"] != run["command"]] + [run]
        text = json.dumps({"target": self.target, "runs": runs}, indent=1)
        (new / PROVENANCE).write_text(text + "\n")
        shutil.rmtree(self.logs, ignore_errors=True)
        new.rename(self.logs)

    def report(self) -> Report:
        """Return what compiling will choose, and its gain over the default rule."""
        logs = records.read(self.logs.parent, self.target)
        report = Report(str(self.logs.parent), self.target, self.done(), dict(self.failures))
        for form, rows in self.forms().items():
            space, known = rows[0].space, logs.known(form, rows[0].space)
            chosen = logs.choose(form, space, rows[0].rule)
            for task in rows:
                default = tuple(sorted(task.default.items()))
                if chosen is None or default not in known[task.blocks]:
                    continue
                picked = version_for(chosen, task.blocks)
                seconds = known[task.blocks]
                report.lines.append(
                    Line(
                        form.title,
                        task.rows,
                        task.kernel.calls,
                        seconds[default],
                        seconds[tuple(sorted(picked.items()))],
                        picked,
                    )
                )
        return report


def _runner(job: _Job, scratch: Path, threads: int, timeout: float, remote, way):
    from intformer.tuning.runner import Runner

    def case(identity: str) -> Path:
        path = scratch / f"{identity}.npz"
        if not path.exists():
            task = job.by_identity[identity]
            task.kernels.case(task.kernel, task.rows).save(path)
        return path

    return Runner(case, threads, timeout, remote, way)


@contextmanager
def _without_stock_intrinsics():
    """Let TuneContext not import TVM's own tensor intrinsics: no use here, and minutes to parse."""
    name = "tvm.s_tir.tensor_intrin"
    if name in sys.modules:
        yield
        return
    sys.modules[name] = ModuleType(name)
    try:
        yield
    finally:
        del sys.modules[name]


def _drop_cut_line(path: Path) -> None:
    """Cut off what a killed run wrote of its last line."""
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        with path.open("r+b") as file:
            file.truncate(whole)


def _tvm_version() -> str:
    import tvm

    return tvm.__version__


def _check_packages() -> None:
    """Import what MetaSchedule needs and does not ask for: its own errors come late."""
    import cloudpickle  # noqa: F401
    import psutil  # noqa: F401
    import xgboost  # noqa: F401
