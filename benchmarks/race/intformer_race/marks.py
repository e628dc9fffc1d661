"""The marks: each a figure of a race beside its bound.

A rival that failed cannot be beaten: where one did, a mark over its cell is open, not met.
"""

import operator
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass

from intformer_race.cells import AMX, BASE, IBERT, KEY, OURS, TORCH, VNNI, Cell

MEMORY = 1.3  # times the bytes of the int8 weights
FIRST = 150.0  # ms
_SENSES: Mapping[str, Callable] = {">=": operator.ge, ">": operator.gt, "<=": operator.le}


@dataclass(frozen=True)
class Mark:
    """A row of the table of marks.

    figure   None where it was not measured
    sense    of figure and bound: ">=", ">" or "<="
    unit     after both
    note     who was beaten or where the figure is from; why there is none
    open     something it speaks of was not measured or failed
    """

    what: str
    figure: float | None
    sense: str
    bound: float
    unit: str = "x"
    note: str = ""
    open: bool = False

    @property
    def verdict(self) -> str:
        """Return "met", "missed" or "open"."""
        if self.figure is None:
            return "open"
        if not _SENSES[self.sense](self.figure, self.bound):
            return "missed"
        return "open" if self.open else "met"

    def to_json(self) -> dict:
        """Return it as plain data."""
        return {**asdict(self), "verdict": self.verdict}

    def row(self) -> tuple[str, str, str]:
        """Return criterion, figure and goal, as rows of a table have them."""
        figure = self.note if self.figure is None else f"{self.figure:.3g}{self.unit}"
        verdict = {"met": "", "missed": ": **missed**", "open": ": open"}[self.verdict]
        return self.what, figure, f"{self.sense} {self.bound:g}{self.unit}{verdict}"


def median_of(cell: Mapping, name: str) -> float | None:
    """Return a contestant's median milliseconds in a cell; None where it failed or is absent."""
    return next((row.get("ms") for row in cell["rows"] if row["name"] == name), None)


def lead(cell: Mapping) -> tuple[float | None, str, list[str]]:
    """Return (fastest rival / ours, its name, rivals that failed)."""
    ours = median_of(cell, OURS)
    rivals = [row for row in cell["rows"] if row["role"] == "rival"]
    failed = [row["name"] for row in rivals if "ms" not in row]
    raced = [row for row in rivals if "ms" in row]
    if ours is None or not raced:
        return None, "", failed
    best = min(raced, key=operator.itemgetter("ms"))
    return best["ms"] / ours, best["name"], failed


def _lead_mark(what: str, cell: Mapping | None, bound: float) -> Mark:
    if cell is None:
        return Mark(what, None, ">=", bound, note="not raced")
    figure, name, failed = lead(cell)
    note = f"fastest rival: {name}" if name else "ours or every rival failed"
    return Mark(what, figure, ">=", bound, "x", _with_failed(note, failed), bool(failed))


def _with_failed(note: str, failed: Iterable[str]) -> str:
    names = ", ".join(dict.fromkeys(failed))
    return f"{note}; failed: {names}" if names else note


def _find(cells: list[Mapping], cell: Cell) -> Mapping | None:
    return next((one for one in cells if cell_of(one) == cell), None)


def cell_of(data: Mapping) -> Cell:
    """Return the Cell of a cell's results."""
    return Cell(*(data[key] for key in ("model", "batch", "seq", "threads", "isa")))


def _every(what: str, cells: list[Mapping], wanted: list[Cell], mean: float | None) -> list[Mark]:
    """Return the marks of a set of cells: ahead on each, and by `mean` in the geometric mean."""
    found = {cell: data for cell in wanted if (data := _find(cells, cell))}
    leads = {cell: lead(data) for cell, data in found.items()}
    ratios = {cell: one[0] for cell, one in leads.items() if one[0] is not None}
    if not ratios:
        return [Mark(f"{what}: least lead", None, ">", 1, note="not raced")]
    failed = [name for one in leads.values() for name in one[2]]
    partly = bool(failed) or len(ratios) < len(wanted)
    worst = min(ratios, key=ratios.__getitem__)
    count = f"{len(ratios)} of {len(wanted)} shapes"
    note = _with_failed(f"{worst}, {leads[worst][1]}; {count}", failed)
    marks = [Mark(f"{what}: least lead", ratios[worst], ">", 1, "x", note, partly)]
    if mean is not None:
        figure = statistics.geometric_mean(ratios.values())
        marks.append(Mark(f"{what}: geometric mean", figure, ">=", mean, "x", count, partly))
    return marks


def marks(results: Mapping, wanted: Mapping[str, list[Cell]]) -> list[Mark]:
    """Return every mark.

    wanted  ISA level -> the cells it speaks of
    """
    cells = results["cells"]
    found: list[Mark] = []
    for threads in (1, 2):
        cell = _find(cells, Cell(BASE, *KEY, threads, VNNI))
        name = f"VNNI, BERT-base 1x128, {threads} thread{'s' * (threads > 1)}"
        found.append(_lead_mark(f"{name}: lead", cell, 1.4))
        found += [_over_torch(name, cell), _of_peak(name, cell)]
    others = [cell for cell in wanted[VNNI] if (cell.model, cell.shape) != (BASE, KEY)]
    found += _every("VNNI, other shapes and models", cells, others, 1.2)
    found += _every("AMX, every shape", cells, list(wanted[AMX]), None)
    for shape in (KEY, (8, 128)):
        cell = _find(cells, Cell(BASE, *shape, 1, AMX))
        found.append(_lead_mark(f"AMX, BERT-base {shape[0]}x{shape[1]}: lead", cell, 1.3))
    found.append(_sentences([one for one in results.get("texts", []) if one["isa"] == VNNI]))
    found += _footprint(results.get("footprint"))
    found += _ours(results, cells)
    return found


def _sentences(ways: list[Mapping]) -> Mark:
    """Return the mark of the batch of sentences: over the fastest rival in its best way."""
    what, leads = "VNNI, 32 sentences of SST-2: lead", [(*lead(one), one["way"]) for one in ways]
    raced = [one for one in leads if one[0] is not None]
    if not raced:
        return Mark(what, None, ">=", 2, note="not raced")
    figure, name, _, way = min(raced)
    failed = [f"{rival}, {way}" for _, _, rivals, way in leads for rival in rivals]
    note = _with_failed(f"fastest rival: {name}, {way}", failed)
    return Mark(what, figure, ">=", 2, "x", note, bool(failed) or len(raced) < len(leads))


def _over_torch(name: str, cell: Mapping | None) -> Mark:
    ours, torch = (median_of(cell, one) if cell else None for one in (OURS, TORCH))
    figure = torch / ours if ours and torch else None
    return Mark(f"{name}: times PyTorch FP32", figure, ">=", 5)


def _of_peak(name: str, cell: Mapping | None) -> Mark:
    speeds = {row["role"]: row.get("gops") for row in cell["rows"]} if cell else {}
    ours = next((r.get("gops") for r in cell["rows"] if r["name"] == OURS), None) if cell else None
    peak = speeds.get("roof")
    figure = 100 * ours / peak if ours and peak else None
    note = f"{ours:.0f} of {peak:.0f} GOP/s" if figure else "not raced"
    return Mark(f"{name}: of the practical peak", figure, ">=", 65, " %", note)


def _footprint(data: Mapping | None) -> list[Mark]:
    if not data:
        return [Mark("memory and first run", None, "<=", MEMORY, note="not measured")]
    bytes_, weights = data["memory"]["library"], data["weights"]
    note = f"{bytes_ / 1e6:.1f} MB PSS over {weights / 1e6:.1f} MB of int8 weights"
    return [
        Mark("memory, BERT-base 1x128", bytes_ / weights, "<=", MEMORY, "x", note),
        Mark("load to the end of a first 1x16", data["first"]["total"], "<=", FIRST, " ms"),
    ]


def _ours(results: Mapping, cells: list[Mapping]) -> list[Mark]:
    verified = results.get("verified", {})
    raced = {row["library"] for cell in cells for row in cell["rows"] if "library" in row}
    bad = [name for name in raced if not all(c["ok"] for c in verified.get(name, [{"ok": False}]))]
    proof = Mark(
        "raced libraries not verified",
        float(len(bad)) if raced else None,
        "<=",
        0,
        "",
        f"{', '.join(sorted(bad))}" if bad else f"{len(raced)} verified in this run",
    )
    key = _find(cells, Cell(BASE, *KEY, 1, VNNI))
    ours, ibert = (median_of(key, name) if key else None for name in (OURS, IBERT))
    figure = ibert / ours if ours and ibert else None
    return [proof, Mark("VNNI, BERT-base 1x128: ibert over native", figure, "<=", 1.3)]
