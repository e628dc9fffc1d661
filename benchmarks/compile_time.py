"""`make compile-time`: seconds from a checkpoint to a library, from a library to its first result.

    python -P benchmarks/compile_time.py [TARGET]

BERT-base with random weights: compiled with an empty object cache, then with other weights of the
same shapes, each time in a process of its own; what watches calibration text and judges scales by
it is shown apart. Then, in fresh processes with the file in the page cache: from intformer.load()
to the end of a first run of 16 tokens, and the memory after 128 tokens with every weight touched.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SHAPE = "bert-base"
OUT = Path("out/compile-time")
RUNS = 7
CALIBRATION = "calibration"  # reads text and judges scales by it: not counted


class Clock:
    """Adds up seconds by label, wall and processor (children included)."""

    def __init__(self):
        self.spent, self.label, self.before = {}, "import", self.now()

    def now(self) -> tuple[float, float]:
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return time.monotonic(), sum(u.ru_utime + u.ru_stime for u in used)

    def to(self, label: str) -> str:
        """Go on under another label; return the one so far."""
        now, before = self.now(), self.label
        wall, cpu = self.spent.get(before, (0.0, 0.0))
        self.spent[before] = wall + now[0] - self.before[0], cpu + now[1] - self.before[1]
        self.label, self.before = label, now
        return before

    def count(self, owner, name: str, label: str) -> None:
        """Count what a function does under a label."""
        function = getattr(owner, name)

        def measured(*args, **kwargs):
            before = self.to(label)
            try:
                return function(*args, **kwargs)
            finally:
                self.to(before)

        setattr(owner, name, measured)


def compile_once(source: str, output: str, target: str) -> dict:
    """Compile in this process; (wall, processor) seconds by phase."""
    clock = Clock()
    import intformer
    from intformer.frontend import calibrated, import_model
    from intformer.frontend.shapes import random_sequences

    clock.count(calibrated, "watch", CALIBRATION)
    clock.count(calibrated, "equalisation", CALIBRATION)
    clock.count(calibrated, "run", CALIBRATION)
    model = import_model(source, calibrate=random_sequences(SHAPE), method="minmax")
    intformer.compile(
        model,
        output,
        target=target,
        progress=lambda line: clock.to("kernels" if line.startswith("kernel ") else line),
    )
    clock.to("")
    return clock.spent


def first_run(path: str) -> dict:
    """Milliseconds of load and first run; then memory in bytes."""
    import numpy as np

    import intformer

    start, used = time.monotonic(), time.process_time()
    library = intformer.load(path)
    ids = np.arange(1000, 1128, dtype=np.int32)
    library.run(ids[:16], np.array([0, 16], np.int32))
    wall, cpu = (time.monotonic() - start) * 1e3, (time.process_time() - used) * 1e3
    library.run(ids, np.array([0, 128], np.int32))
    for name in library.packing:
        library.tensor(name).max()
    rollup = Path("/proc/self/smaps_rollup").read_text().split()
    pss = int(rollup[rollup.index("Pss:") + 1]) * 1024
    return {"wall": wall, "cpu": cpu, "pss": pss}


def child(*args: str, cache: str) -> dict:
    """Run one of the functions above in a fresh process."""
    result = subprocess.run(
        [sys.executable, "-P", __file__, *args],
        env={**os.environ, "INTFORMER_CACHE": cache},
        check=True,
        stdout=subprocess.PIPE,
    )
    return json.loads(result.stdout.splitlines()[-1])


def main(target: str) -> None:
    """Print the figures."""
    from safetensors import safe_open

    sys.path.insert(0, str(Path(__file__).parent / "records"))
    import intformer_records as records

    from intformer.frontend.shapes import random_model

    for seed in (0, 1):
        if not (OUT / str(seed)).exists():
            random_model(SHAPE, OUT / str(seed), seed=seed)
    rows: list[tuple[str, str]] = []
    with tempfile.TemporaryDirectory() as cache:
        for seed, what in enumerate(("empty object cache", "other weights")):
            found = child(
                "compile", str(OUT / str(seed)), str(OUT / f"{seed}.so"), target, cache=cache
            )
            apart = found.pop(CALIBRATION)
            wall, cpu = (sum(column) for column in zip(*found.values(), strict=True))
            rows.append((f"compile for `{target}`, {what}", f"{wall:.1f} s, processor {cpu:.1f} s"))
            for phase, (wall, cpu) in {**found, "calibration, not counted": apart}.items():
                print(f"  {wall:6.1f} {cpu:6.1f}  {phase}")
        runs = [child("first", str(OUT / "0.so"), cache=cache) for _ in range(RUNS)]
    with safe_open(OUT / "0" / "model.safetensors", "np") as file:
        shapes = [file.get_slice(key).get_shape() for key in file.keys()]
    weights = sum(rows * columns for rows, columns in (s for s in shapes if len(s) == 2))
    walls, cpus = ([run[key] for run in runs] for key in ("wall", "cpu"))
    pss = max(run["pss"] for run in runs)
    best = (
        f"{statistics.median(walls):.0f} ms, best {min(walls):.0f} ms, processor {min(cpus):.0f} ms"
    )
    rows.append(("load and first run, 1x16", best))
    memory = f"{pss / 1e6:.0f} MB, {pss / weights:.2f}x {weights / 1e6:.1f} MB of int8 weights"
    rows.append(("memory after 1x128 (PSS)", memory))
    for what, figure in rows:
        print(f"{what}: {figure}")
    records.write(
        "compile-time", "make compile-time", ("BERT-base, random weights", "measured"), rows
    )


if __name__ == "__main__":
    verb, *rest = sys.argv[1:] or [""]
    if verb == "compile":
        print(json.dumps(compile_once(*rest)))
    elif verb == "first":
        print(json.dumps(first_run(*rest)))
    else:
        from intformer.backends.targets import get
        from intformer.errors import IntformerError

        try:
            main(get(verb or "host").name)
        except IntformerError as error:
            sys.exit(f"error: {error}")
