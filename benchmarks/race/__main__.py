"""`make bench`: our compiled libraries against other runtimes, interleaved, with the marks.

    python benchmarks/race [--data DATA] [--quick] [--models ..] [--shapes ..] [--threads ..]
                           [--isa ..] [--long]

Writes out/bench/report.md, results.json and race.png, and tables to out/records; the marks are
printed. A mark that is missed does not change the exit code. The first run makes and converts the
models.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "records"))

import intformer_records as records

from intformer.errors import IntformerError
from intformer_race import cells, footprint, libraries, machine, report
from intformer_race.marks import marks
from intformer_race.meet import Meeting

OUT = Path("out/bench")
QUICK = ((1, 128), (1, 16))
FUNCTIONS = ("dense_gelu", "attention", "layernorm")  # in the kernels' names


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    top = argparse.ArgumentParser(
        prog="python benchmarks/race", description=__doc__.splitlines()[0]
    )
    top.add_argument("--models", type=words, help=f"of {', '.join(cells.MODELS)}")
    top.add_argument("--shapes", type=words, help="BATCHxTOKENS, such as 1x128,8x128")
    top.add_argument("--threads", type=words, help="of every contestant, such as 1,2")
    top.add_argument("--isa", type=words, help="vnni, amx (default: what this CPU has)")
    top.add_argument("--contestants", type=words, default=[], help="everywhere (default: report)")
    top.add_argument("--add", action="append", default=[], metavar="NAME=COMMAND", help="one more")
    top.add_argument("--rounds", type=int, default=5)
    top.add_argument("--turn", type=float, default=0.5, help="seconds of a turn")
    top.add_argument("--data", help="directory with sst2/dev.tsv: also a batch of its sentences")
    top.add_argument("--quick", action="store_true", help="BERT-base 1x128 and 1x16 alone")
    top.add_argument("--long", action="store_true", help="2048 and 8192 tokens alone")
    top.add_argument("--only-report", action="store_true", help="write the last report again")
    top.add_argument("--out", type=Path, default=OUT)
    return top.parse_args()


def words(text: str) -> list[str]:
    """Split at commas."""
    return [word for word in text.split(",") if word]


def wanted(args: argparse.Namespace, isas: list[str]) -> list[cells.Cell]:
    """Return the cells asked for: the default ones, less what the options leave out."""
    shapes = [parsed(text) for text in args.shapes] if args.shapes else None
    if args.quick:
        shapes = shapes or list(QUICK)
        args.models = args.models or [cells.BASE]
    known = cells.LONG_MODELS if args.long else cells.MODELS
    if unknown := set(args.models or ()) - set(known):
        raise IntformerError(
            f"model {sorted(unknown)[0]!r} is unknown", where="--models", hint=f"of {[*known]}"
        )
    found = cells.long_cells(isas) if args.long else cells.default_cells(isas)
    if args.threads:  # each of them everywhere
        numbers = [int(text) for text in args.threads]
        found = [replace(cell, threads=n) for cell in found if cell.threads == 1 for n in numbers]
    if shapes:
        raced = dict.fromkeys(replace(cell, batch=1, seq=1) for cell in found)
        known = set(found)
        asked = [replace(cell, batch=b, seq=s) for cell in raced for b, s in shapes]
        found = [c for c in asked if args.threads or c in known or c.threads == 1]
    return [cell for cell in found if not args.models or cell.model in args.models]


def parsed(shape: str) -> tuple[int, int]:
    """Return the numbers of BATCHxTOKENS."""
    batch, _, tokens = shape.partition("x")
    if not (batch.isdecimal() and tokens.isdecimal() and 1 <= int(tokens) <= 8192):
        raise IntformerError(f"shape {shape!r}", where="--shapes", hint="such as 1x128")
    return int(batch), int(tokens)


def levels(args: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Return the ISA levels to race at, and why others are left out."""
    skipped = {isa: why for isa in args.isa or cells.TARGETS if (why := libraries.missing(isa))}
    isas = [isa for isa in args.isa or cells.TARGETS if isa not in skipped]
    return isas, [f"{isa} level: {why}" for isa, why in skipped.items()]


def run(
    args: argparse.Namespace, say: Callable[[str], None], step: Callable[[], None], total
) -> dict:
    """Race, and keep what is there after every cell."""
    isas, skipped = levels(args)
    asked = wanted(args, isas)
    available = len(os.sched_getaffinity(0))
    skipped += [f"{cell}: {available} CPUs here" for cell in asked if cell.threads > available]
    asked = [cell for cell in asked if cell.threads <= available]
    added = dict(one.split("=", 1) for one in args.add)
    libs = libraries.Libraries(args.out, say)
    os.environ["RACE_CACHE"] = str((args.out / "rivals").absolute())
    meeting = Meeting(args.out, libs, args.rounds, args.turn, say, args.contestants, added)
    results: dict = {
        "command": machine.command(),
        "machine": machine.machine(),
        "versions": machine.versions(),
        "settings": {"rounds": args.rounds, "turn": args.turn},
        "skipped": skipped,
        **{"cells": [], "texts": [], "verified": {}},
    }
    start = time.monotonic()

    def keep() -> None:
        results["minutes"] = (time.monotonic() - start) / 60
        partial = args.out / "results.json.partial"
        partial.write_text(json.dumps(results, indent=1))
        partial.replace(args.out / "results.json")
        step()

    total(len(asked) + len(isas) * bool(args.data) + 2)
    for cell in asked:
        results["cells"].append(meeting.cell(cell))
        keep()
    if args.data:
        for isa in isas:
            results["texts"].extend(meeting.sentences(isa, Path(args.data), cells.BASE))
            keep()
    raced = {
        row["library"]: Path(libs.folder, f"{row['library']}.so")
        for cell in (*results["cells"], *results["texts"])
        for row in cell["rows"]
        if "library" in row
    }
    base = {name: path for name, path in raced.items() if name.startswith(f"{cells.BASE}-")}
    if base:
        say("memory and first run")
        name, path = next(iter(base.items()))
        weights = libraries.weight_bytes(libs.source(cells.BASE))
        results["footprint"] = {"library": name, "weights": weights, **footprint.measure(path)}
        at_vnni = {n: p for n, p in base.items() if n.endswith(cells.TARGETS[cells.VNNI])}
        results["functions"] = libraries.kernel_times(at_vnni, FUNCTIONS)
    keep()
    for name, path in raced.items():
        say(f"verifying {name}")
        results["verified"][name] = libraries.verified(path)
    keep()
    return results


def main() -> int:
    """Race, then report."""
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    try:
        if args.only_report:
            results = json.loads((args.out / "results.json").read_text())
        else:
            results = watched(args)
    except (IntformerError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    found = marks(results, {isa: cells.default_cells([isa]) for isa in cells.TARGETS})
    results["marks"] = [mark.to_json() for mark in found]
    (args.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (args.out / "report.md").write_text(report.markdown(results, found))
    report.plot(results, args.out / "race.png")
    for isa in dict.fromkeys(cell["isa"] for cell in results["cells"]):
        name = f"speed-{isa}-long" if args.long else f"speed-{isa}"
        records.write(name, results["command"], *report.speed(results, isa))
    if not args.long:  # of which no goal speaks
        columns, rows = ("criterion", "measured", "goal"), [mark.row() for mark in found]
        records.write("speed-goals", results["command"], columns, rows)
    for mark in found:
        figure = "" if mark.figure is None else f"{mark.figure:.3g}{mark.unit}"
        print(f"{mark.verdict:7}{mark.what}: {figure} ({mark.sense} {mark.bound:g}) {mark.note}")
    print(f"{args.out}/report.md, results.json, race.png")
    return 0


def watched(args: argparse.Namespace) -> dict:
    """Run with progress on stderr: a bar for a person, a line a step elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (
        BarColumn(20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)
        start = time.monotonic()

        def say(what: str) -> None:
            bar.update(task, description=what)
            if not console.is_terminal and "round" not in what:
                print(f"[{time.monotonic() - start:6.0f} s] {what}", file=sys.stderr, flush=True)

        return run(args, say, lambda: bar.advance(task), lambda n: bar.update(task, total=n))


if __name__ == "__main__":
    sys.exit(main())
