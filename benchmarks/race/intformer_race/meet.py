"""One cell of the race, from processes to rows."""

import json
import os
import shlex
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from intformer_race import texts
from intformer_race.cells import (
    AMX,
    CONTESTANTS,
    IBERT,
    OURS,
    TEXT_CONTESTANTS,
    TEXT_CONTESTANTS_AMX,
    TORCH,
    VOCABULARY,
    Cell,
    Contestant,
    contestants,
)
from intformer_race.driver import BUILD_SECONDS, Entrant, race
from intformer_race.libraries import Libraries

PROGRAMS = "intformer_race.contestants"  # a package, so that no program's name hides a package's


@dataclass
class Meeting:
    """What every cell of a run has in common.

    folder   for logs, rivals' models and reference logits
    added    name -> command of contestants given on the command line
    """

    folder: Path
    libraries: Libraries
    rounds: int
    turn: float
    say: Callable[[str], None]
    asked: Sequence[str] = ()
    added: Mapping[str, str] = field(default_factory=dict)

    def cell(self, cell: Cell) -> dict:
        """Race a cell; return it with a row per contestant."""
        entries = [(one, one.name, {}) for one in contestants(cell, self.asked)]
        entries += [
            (Contestant(name, "", "", "added"), name, {"command": command})
            for name, command in self.added.items()
        ]
        rows = self._race(cell, entries)
        reference = self._reference(cell)
        for row in rows:
            row.setdefault("macs", cell.macs)
            if "ms" in row:
                row["gops"] = 2e-6 * row["macs"] / row["ms"]
            logits = row.pop("logits", None)
            if logits and reference and row["name"] != IBERT:  # which is another model
                pairs = list(zip(logits, reference, strict=False))
                row["gap"] = max(abs(a - b) for a, b in pairs)
                row["largest"] = max(abs(b) for _, b in pairs)
        return {**asdict(cell), "rows": rows, "load": os.getloadavg()[0]}

    def sentences(self, isa: str, data: Path, model: str) -> list[dict]:
        """Race one batch of real sentences against each way that rivals can run it; a cell a way.

        Ours is in each of them. All ways at once would be too many processes for the memory.
        """
        path = self.folder / "sentences.json"
        lengths = texts.write_sentences(data, path)
        cell = Cell(model, len(lengths), max(lengths), 1, isa)
        names = TEXT_CONTESTANTS + (TEXT_CONTESTANTS_AMX if isa == AMX else ())
        names = [name for name in names if not self.asked or name in self.asked]
        found = []
        for way, groups in texts.ways(lengths).items():
            given = {"texts": str(path.absolute())}
            entries = [(CONTESTANTS[OURS], OURS, given)]
            given = given | {"groups": groups}
            entries += [(CONTESTANTS[name], name, given) for name in names]
            rows = self._race(cell, entries)
            for row in rows:
                row.pop("logits", None)
            about = {"way": way, "sentences": len(lengths), "tokens": sum(lengths)}
            found.append({**asdict(cell), **about, "rows": rows, "load": os.getloadavg()[0]})
        return found

    def _race(self, cell: Cell, entries: list[tuple[Contestant, str, dict]]) -> list[dict]:
        entrants, rows = [], []
        try:
            for one, name, extra in entries:
                self.say(f"{cell}: preparing {name}")
                row = {"name": name, "computes": one.computes, "role": one.role}
                if one.role == "ours":
                    library = self.libraries.library(one, cell.model, cell.isa)
                    extra = extra | {"library": str(library.absolute())}
                    row["library"] = library.stem
                entrant = self._start(cell, one, name, extra)
                entrants.append(entrant)
                rows.append(row)
            race(entrants, self.rounds, self.turn, say=lambda what: self.say(f"{cell}: {what}"))
        finally:
            for entrant in entrants:
                entrant.close()
        for row, entrant in zip(rows, entrants, strict=True):
            row |= result(entrant)
        return rows

    def _start(self, cell: Cell, one: Contestant, name: str, extra: dict) -> Entrant:
        extra = dict(extra)
        command = shlex.split(extra.pop("command", "")) or [
            *(sys.executable, "-P", "-m"),
            f"{PROGRAMS}.{one.program}",
        ]
        spec = {
            **{"peer": name, "mode": one.mode, "model": cell.model, **cell.size},
            **{"vocab": VOCABULARY, "batch": cell.batch, "seq": cell.seq},
            **{"threads": cell.threads, "isa": cell.isa},
            "cpus": sorted(os.sched_getaffinity(0))[: cell.threads],
            "source": str(self.libraries.source(cell.model).absolute()),
            **extra,
        }
        logs = self.folder / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        entrant = Entrant(name, command, spec, logs / f"{name.replace(' ', '-')}.log")
        entrant.get_ready(BUILD_SECONDS)
        return entrant

    def _reference(self, cell: Cell) -> list[float]:
        """Return PyTorch FP32's logits for the inputs of a cell."""
        path = self.folder / "logits" / f"{cell.model}-{cell.batch}x{cell.seq}.json"
        if not path.exists():
            self.say(f"{cell}: logits of PyTorch FP32")
            entrant = self._start(cell, CONTESTANTS[TORCH], "reference", {})
            entrant.close()
            if entrant.error:
                return []
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(entrant.info["logits"]))
        return json.loads(path.read_text())


def result(entrant: Entrant) -> dict:
    """Return what a race found about a contestant: medians, or the error."""
    info = dict(entrant.info)
    logits, macs = info.pop("logits", None), info.pop("macs", None)
    found: dict = {"info": info} | ({"macs": macs} if macs else {})
    if entrant.error:
        return found | {"error": entrant.error}
    spent = sorted(entrant.milliseconds)
    return found | {
        "ms": statistics.median(spent),
        "p10": spent[len(spent) // 10],
        "p90": spent[len(spent) * 9 // 10],
        "best": spent[0],
        "runs": len(spent),
        "turns": entrant.medians,
        "cpu_ms": statistics.median(entrant.cpu),
        **({"logits": logits} if logits else {}),
    }
