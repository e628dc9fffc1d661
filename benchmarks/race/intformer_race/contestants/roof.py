"""The practical peak of a core's int8 unit, on registers alone.

It takes turns like the others, so that the share of it that a model reaches was measured under the
same clocks and neighbours.
"""

import os
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

from intformer.measure.roofline import peak_meter
from intformer_race.contestants import protocol

MACS = 1e9  # that count as one run

spec = protocol.spec
meter = peak_meter(spec["mode"])
if meter is None or not meter(1):
    sys.exit(f"no {spec['mode']} unit here, or no C compiler that knows it")
cpus: SimpleQueue = SimpleQueue()
for cpu in sorted(os.sched_getaffinity(0))[: spec["threads"]]:
    cpus.put(cpu)
# one thread on each CPU
pool = ThreadPoolExecutor(cpus.qsize(), initializer=lambda: os.sched_setaffinity(0, {cpus.get()}))


def turn(seconds: float) -> dict:
    """Measure all cores at once, again and again."""
    spent, end = [], time.perf_counter() + seconds
    while not spent or time.perf_counter() < end:
        speed = sum(pool.map(meter, [1] * spec["threads"]))
        spent.append(1e3 * MACS / speed)
    return {"ms": spent, "cpu_ms": statistics.median(spent) * spec["threads"]}


protocol.answer({"ready": True, "info": {"macs": MACS}})
for line in sys.stdin:
    protocol.answer(turn(float(line)))
