"""`make qat-results DATA=DIR`: the table of quantization-aware training, from MiniLM-L6.

    python benchmarks/qat_results DATA [--tasks sst2,...] [--seeds 0,1,2] [--kinds base,...]
                                  [--jobs N]

DATA/<task>/{train,dev}.tsv are GLUE files; token classification and question answering are on the
small data of small.py. A cell that is finished, in out/qat-results, is not
made again, and training resumes from its last checkpoint. Every run ends by writing
benchmarks/qat_results/results.json and printing the table of what is finished.
"""

import argparse
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from intformer.errors import IntformerError
from intformer_qat_results import cells, report, small

HERE = Path(__file__).parent
OUT = Path("out/qat-results")
RESULTS = HERE / "results.json"


def main() -> int:
    """Make what is missing; 0 where nothing failed."""
    top = argparse.ArgumentParser(prog="benchmarks/qat_results")
    top.add_argument("data", type=Path)
    top.add_argument("--tasks", default=",".join(cells.PLANS))
    top.add_argument("--seeds", default="0")
    top.add_argument("--kinds", default=",".join(cells.KINDS))
    top.add_argument("--jobs", type=int, default=2, help="units at a time, each with one thread")
    top.add_argument("--part", action="store_true", help="write no results: one unit of many")
    args = top.parse_args()
    if not args.data.is_dir():
        print(
            f"error: no data directory {str(args.data)!r} - DATA - make qat-results DATA=DIR",
            file=sys.stderr,
        )
        return 1
    for given, known in ((args.tasks, cells.PLANS), (args.kinds, cells.KINDS)):
        for name in given.split(","):
            if name not in known:
                print(f"error: {name!r} is not among {', '.join(known)}", file=sys.stderr)
                return 1
    units = [(task, seed) for seed in args.seeds.split(",") for task in args.tasks.split(",")]
    if args.part:
        failed = sum(unit(args, task, int(seed)) for task, seed in units)
    else:
        with ThreadPoolExecutor(args.jobs) as pool:
            failed = sum(pool.map(lambda one: child(args, *one), units))
    if not args.part:
        report.write(OUT, RESULTS)
        print("\n".join(report.table(RESULTS)))
    return 1 if failed else 0


def unit(args: argparse.Namespace, task: str, seed: int) -> int:
    """Make the cells of a unit; 1 where one failed."""
    try:
        if task in cells.SMALL:
            files = small.files(task, args.data, OUT / "data")
        else:
            files = tuple(args.data / task / f"{part}.tsv" for part in ("train", "dev"))
    except IntformerError as error:
        print(f"error: {task}: {error}", file=sys.stderr)
        return 1
    one = cells.Unit(task, seed, *files, OUT / task / str(seed))
    start = time.monotonic()

    def say(text: str) -> None:
        print(
            f"[{time.monotonic() - start:6.1f}s] {task}/{seed} {text}", file=sys.stderr, flush=True
        )

    for kind in args.kinds.split(","):
        if kind == "ibert" and task not in cells.IBERT_TASKS:
            continue
        try:
            cell = cells.run(one, kind, say)
        except IntformerError as error:
            print(f"error: {task}, seed {seed}, {kind}: {error}", file=sys.stderr)
            return 1
        shown = cell.get("metrics") or {"held out": cell["held_out"]}
        say(f"{kind}: " + ", ".join(f"{name} {value:.4f}" for name, value in shown.items()))
    return 0


def child(args: argparse.Namespace, task: str, seed: str) -> int:
    """Make a unit in a process of its own, with one thread: sums do not depend on --jobs."""
    command = [sys.executable, str(HERE), str(args.data), "--part", "--kinds", args.kinds]
    threads = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([*command, "--tasks", task, "--seeds", seed], env=threads).returncode


if __name__ == "__main__":
    sys.exit(main())
