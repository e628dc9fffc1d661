"""Tuning records: reading a database, choosing the versions of a kernel from it, provenance.

A folder of logs holds one folder per target: a MetaSchedule JSON database (two files) and
`provenance.json`. What is compiled depends on these files alone.
"""

import json
import math
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

from intformer.backends.backend import TargetSpec, Versions
from intformer.errors import CompileError
from intformer.ir.constants import BLOCK
from intformer.passes.form import Decisions, Form

PACKAGED = "packaged"  # the logs that come with intformer
NONE = "none"
FILES = ("database_workload.json", "database_tuning_record.json")
PROVENANCE = "provenance.json"
FAILED = 1e9  # seconds; MetaSchedule writes 1e10 for a candidate that failed
MOST_VERSIONS = 2  # of one kernel: code generation takes as many times as long
WORTH = 1.03  # a version, or leaving the default rule, must be so many times as fast somewhere

Key = tuple[tuple[str, int], ...]  # decisions, hashable


@dataclass(frozen=True)
class Record:
    """One measured candidate: form and rows of the task, decisions, mean seconds."""

    form: str
    rows: int
    decisions: Key
    seconds: float


@dataclass
class Logs:
    """The records for one target.

    name      what to call them in a report
    seconds   form -> row blocks -> decisions -> seconds
    notes     warnings about where the records come from
    """

    name: str = NONE
    seconds: dict[str, dict[int, dict[Key, float]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def choose(self, form: Form, space: dict[str, list[int]], rule: Versions) -> Versions | None:
        """Return the versions of a kernel, ascending in row blocks; None without a record.

        space  what may be decided today
        rule   what is compiled without records
        """
        known = self.known(form, space)
        return versions(known, rule) if known else None

    def known(self, form: Form, space: dict[str, list[int]]) -> dict[int, dict[Key, float]]:
        """Return row blocks -> decisions -> seconds of the candidates measured everywhere."""
        table = {}
        for blocks, row in self.seconds.get(form.text, {}).items():
            table[blocks] = today = {}
            for key, seconds in row.items():
                key = as_of_today(key, space)
                if key is not None:
                    today[key] = min(seconds, today.get(key, FAILED))
        everywhere = set.intersection(*map(set, table.values())) if table else set()
        if not everywhere:
            return {}
        return {b: {k: row[k] for k in sorted(everywhere)} for b, row in sorted(table.items())}


def as_of_today(key: Key, space: dict[str, list[int]]) -> Key | None:
    """Return a record's decisions in terms of a space; None where a value is no candidate any more.

    What the record does not decide takes its default, what is no longer decided is dropped.
    """
    found = {name: dict(key).get(name, values[0]) for name, values in space.items()}
    if any(value not in space[name] for name, value in found.items()):
        return None
    return tuple(sorted(found.items()))


class Choice:
    """Chooses the versions of kernels for one chip, and remembers which had records."""

    def __init__(self, logs: Logs, chip: TargetSpec):
        """Choose from these logs."""
        self.logs, self.chip = logs, chip
        self.tuned: dict[Form, Versions] = {}

    def __call__(self, form: Form) -> Versions:
        """Return the versions of a kernel: the default rule without records."""
        if form.text not in self.logs.seconds:
            return [(None, {})]
        space = form.space(self.chip)
        found = self.logs.choose(form, space, written_down(form, self.chip))
        if found is None:
            return [(None, {})]
        self.tuned[form] = found
        return found

    def report(self, forms: dict[str, Form]) -> dict:
        """Return what `inspect` shows, JSON-able; forms by kernel name.

        versions  of the tuned kernels: [up to how many row blocks (null: the rest), decisions]
        """
        return {
            "logs": self.logs.name,
            "tuned": sum(form in self.tuned for form in forms.values()),
            "kernels": len(forms),
            "versions": {
                name: self.tuned[form] for name, form in forms.items() if form in self.tuned
            },
        }


def written_down(form: Form, chip: TargetSpec) -> Versions:
    """Return the default rule for a kernel, every decision of it."""
    first = {name: values[0] for name, values in form.space(chip).items()}
    rule = form.rule(chip)
    return [(limit, first | decisions) for limit, decisions in rule]


def version_for(versions: Versions, blocks: int) -> Decisions:
    """Return the decisions that a kernel takes at so many row blocks."""
    return next(d for limit, d in versions if limit is None or blocks <= limit)


def versions(known: dict[int, dict[Key, float]], rule: Versions) -> Versions:
    """Return the fewest versions that no other choice beats by more than WORTH.

    known  row blocks -> decisions -> seconds, the same decisions everywhere
    rule   the written-down one, preferred where nothing is gained
    """
    blocks = sorted(known)
    default = [tuple(sorted(version_for(rule, b).items())) for b in blocks]
    chosen = default
    candidates = sorted(known[blocks[0]], key=lambda key: (key not in default, key))
    started = set(default) <= set(candidates)
    for count in range(1, min(max(MOST_VERSIONS, len(rule)), len(blocks)) + 1):
        best = min(
            (_cheapest(known, blocks, cuts, candidates) for cuts in _cuts(len(blocks), count)),
            key=lambda found: found[0],
        )[1]
        if not started or _better(known, blocks, chosen, best):
            chosen, started = best, True
    if chosen is default:
        return rule
    limits = [
        (math.isqrt(blocks[i] * blocks[i + 1]), dict(chosen[i]))
        for i in range(len(blocks) - 1)
        if chosen[i] != chosen[i + 1]
    ]
    return [*limits, (None, dict(chosen[-1]))]


def _cuts(length: int, count: int) -> list[tuple[int, ...]]:
    """Return every way to cut a list into `count` pieces, as the ends of the pieces."""
    return [(*ends, length) for ends in combinations(range(1, length), count - 1)]


def _cheapest(known, blocks: list[int], cuts, candidates) -> tuple[float, list[Key]]:
    """Return (sum of log seconds, decisions per row count), each piece with its best candidate."""
    total, chosen, start = 0.0, [], 0
    for stop in cuts:
        piece = blocks[start:stop]
        costs = {k: sum(math.log(known[b][k]) for b in piece) for k in candidates}
        best = min(candidates, key=costs.get)
        total += costs[best]
        chosen += [best] * len(piece)
        start = stop
    return total, chosen


def _better(known, blocks: list[int], before: list[Key], after: list[Key]) -> bool:
    """Tell whether `after` is worth leaving `before`: by its best gain, and slower in no sum."""
    gains = [known[b][x] / known[b][y] for b, x, y in zip(blocks, before, after, strict=True)]
    return max(gains) > WORTH and math.prod(gains) > 1 - 1e-9  # rounded


# ---- files ----


def packaged() -> Path:
    """Return the folder of the logs that come with intformer."""
    from intformer import tuning_logs

    return Path(tuning_logs.__file__).parent


def read(logs: str | Path, target: str) -> Logs:
    """Return the records for a target.

    logs  PACKAGED (which may lack the target), NONE, or a folder that `intformer tune` wrote
    """
    if logs == NONE:
        return Logs()
    folder = (packaged() if logs == PACKAGED else Path(logs)) / target
    if logs == PACKAGED and not folder.exists():
        return Logs()
    found = Logs(name=PACKAGED if logs == PACKAGED else str(logs))
    for record in read_database(folder):
        blocks = -(-record.rows // BLOCK)
        if record.seconds < FAILED:
            by_key = found.seconds.setdefault(record.form, {}).setdefault(blocks, {})
            by_key[record.decisions] = min(record.seconds, by_key.get(record.decisions, FAILED))
    found.notes = check_provenance(folder)
    return found


def open_database(folder: Path):
    """Open a MetaSchedule database that must be there."""
    from tvm.s_tir import meta_schedule

    for name in FILES:
        if not (folder / name).is_file():
            raise CompileError(
                "no tuning logs",
                where=str(folder / name),
                hint="a folder that `intformer tune` wrote, or none",
            )
    try:
        return meta_schedule.database.JSONDatabase(
            *(str(folder / name) for name in FILES), allow_missing=False
        )
    except Exception as error:  # TVM raises many types, with a page of text
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise CompileError(f"tuning logs cannot be read: {lines[-1]}", where=str(folder)) from error


def read_database(folder: Path) -> list[Record]:
    """Return every record of a database folder."""
    from tvm.s_tir import Schedule

    from intformer.tuning.workload import decided, meant

    records = []
    for record in open_database(folder).get_all_tuning_records():
        form, rows = meant(record.workload.mod)
        sch = Schedule(record.workload.mod)
        record.trace.apply_to_schedule(sch, remove_postproc=False)
        seconds = [float(x) for x in record.run_secs]
        key = tuple(sorted(decided(sch).items()))
        records.append(Record(form.text, rows, key, sum(seconds) / len(seconds)))
    return records


def check_provenance(folder: Path) -> list[str]:
    """Return what makes the records of a folder less trustworthy; they are only about speed."""
    import tvm

    path = folder / PROVENANCE
    try:
        runs = json.loads(path.read_text())["runs"]
        versions_seen = sorted({run["tvm"] for run in runs} - {tvm.__version__})
    except (OSError, ValueError, KeyError, TypeError):
        return [f"tuning logs without provenance: {path.name} cannot be read"]
    return [f"tuning logs of TVM {version}, this is {tvm.__version__}" for version in versions_seen]


def form_of(record) -> str:
    """Return the form of a MetaSchedule record, as its canonical JSON."""
    from intformer.tuning.workload import meant

    return meant(record.workload.mod)[0].text
