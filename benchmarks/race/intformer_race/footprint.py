"""What a library costs where it runs: memory, and the time to a first answer.

Each figure is of a fresh process with numpy and intformer.runtime alone, the page cache warm:

    python -P benchmarks/race/intformer_race/footprint.py LIB memory|first

memory  one run of 1x128, then every page of every constant read: PSS (/proc/self/smaps_rollup) of
        the process less its PSS just before load(), so that the interpreter does not count
first   from load() to the end of a run of 1x16, and its parts: check (length and checksum), map
        (the rest of load), run
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

TRIES = 7
PAGE = 4096
VOCABULARY = 30522


def measure(library: Path) -> dict:
    """Return the figures of a library: bytes, and medians of milliseconds."""
    memory = _child(library, "memory")
    tries = [_child(library, "first") for _ in range(TRIES)]
    first = {part: statistics.median(one[part] for one in tries) for part in tries[0]}
    return {"memory": memory, "first": first, "tries": [one["total"] for one in tries]}


def _child(library: Path, what: str) -> dict:
    done = subprocess.run(
        [sys.executable, "-P", __file__, str(library), what],
        env={**os.environ, "INTFORMER_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def pss() -> int:
    """Return this process's proportional set size in bytes."""
    return _field(Path("/proc/self/smaps_rollup").read_text())


def pss_of(path: Path) -> int:
    """Return the PSS of the mappings of a file in bytes."""
    found, total = False, 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split(maxsplit=1)[0]
        if "-" in first and not first.endswith(":"):
            found = line.endswith(f"/{path.name}")
        elif found and line.startswith("Pss:"):
            total += 1024 * int(line.split()[1])
    return total


def _field(text: str) -> int:
    line = next(line for line in text.splitlines() if line.startswith("Pss:"))
    return 1024 * int(line.split()[1])


def inputs(tokens: int):
    """Return one sequence of ids from all over the vocabulary, and its offsets."""
    import numpy as np

    ids = np.random.default_rng(0).integers(1000, VOCABULARY, tokens, dtype=np.int32)
    return ids, np.array([0, tokens], np.int32)


def memory(path: Path) -> dict:
    """Return bytes after the first run, every page of its constants read."""
    from intformer import runtime

    batch, before = inputs(128), pss()
    library = runtime.load(path)
    library.run(*batch)
    run = pss()
    touched = 0
    for name in library.packing:
        tensor = library.tensor(name)
        touched += int(tensor.reshape(-1)[:: max(1, PAGE // tensor.itemsize)].astype(bool).sum())
    after = pss()
    assert touched, "constants of zeros alone"
    return {
        "library": after - before,
        "after the run alone": run - before,
        "mapped file": pss_of(path),
        "process": after,
        "interpreter": before,
    }


def timed(check: Callable, parts: dict[str, float]) -> Callable:
    """Return a function that adds its milliseconds to those of checking the file."""

    def measured(*args, **kwargs):
        start = time.perf_counter()
        try:
            return check(*args, **kwargs)
        finally:
            parts["check"] += 1e3 * (time.perf_counter() - start)

    return measured


def first(path: Path) -> dict:
    """Return milliseconds of the first answer and its parts."""
    from intformer import runtime
    from intformer.runtime import footer

    batch, parts = inputs(16), {"check": 0.0}
    for owner, name in ((footer, "check_but_data"), (runtime.Library, "_check_data")):
        setattr(owner, name, timed(getattr(owner, name), parts))
    start = time.perf_counter()
    library = runtime.load(path)
    loaded = time.perf_counter()
    library.run(*batch)
    end = time.perf_counter()
    return {
        "total": 1e3 * (end - start),
        "check": parts["check"],
        "map": 1e3 * (loaded - start) - parts["check"],
        "run": 1e3 * (end - loaded),
    }


if __name__ == "__main__":
    print(json.dumps({"memory": memory, "first": first}[sys.argv[2]](Path(sys.argv[1]))))
