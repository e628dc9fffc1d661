"""Where the time of a library goes, step by step, beside what the machine could do at best.

The roof of a step is the longer of two times: its multiply-adds at the measured rate of the int8
unit, and its bytes at the measured rates of reading - constants from where a whole pass over all
constants of the model finds them, activations from the second-level cache. Threads multiply both.
"""

import ctypes
import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from intformer import scratch
from intformer.backends import targets
from intformer.errors import CompileError
from intformer.ir.model import IntModel
from intformer.link.build import compiler, compiler_files_in
from intformer.proof.inputs import given
from intformer.relay_ops import OPS
from intformer.runtime import Library

TRIES = 20
READING = Path(__file__).with_name("read_peak.c")
CACHED = 1 << 20  # bytes that lie in the second-level cache


@dataclass
class OpTime:
    """One step of the program, or all calls of one kernel, in one run of the batch.

    name        of the kernel; for one step, of its first output as well
    share       of the whole run
    operations  multiply-adds of matrix products, counted twice; 0 where there are none
    bytes       constants and activations read, outputs written
    gops        operations per second and 1e9; None without any
    roof        the least time over the time; None where the peaks cannot be measured
    bound       what decides the least time: "compute" or "memory"
    """

    name: str
    calls: int
    milliseconds: float
    share: float
    operations: int
    bytes: int
    gops: float | None = None
    roof: float | None = None
    bound: str | None = None


@dataclass(frozen=True)
class Peaks:
    """Rates of one core: multiply-adds of its int8 unit, bytes of constants and of activations."""

    macs: float
    constants: float
    activations: float


@dataclass(frozen=True)
class Work:
    """What one step does: multiply-adds, bytes of constants and of activations."""

    macs: int
    constants: int
    activations: int


def op_times(
    library: Library, batch: dict, threads: int, *, runs: int = 20, per_op: bool = False
) -> list[OpTime]:
    """Return the time of each kernel, slowest first, from time stamps between the steps.

    batch   one batch, as IntModel.run takes it
    per_op  every step by itself, in order
    """
    steps, taken = library.plan["steps"], given(library, batch)
    spent = np.zeros((runs, len(steps)))
    for run in range(runs):
        stamp = [time.perf_counter()]

        def observer(step: int, _name: str, _data, run=run, stamp=stamp) -> None:
            now = time.perf_counter()
            spent[run, step] += now - stamp[0]
            stamp[0] = time.perf_counter()

        library.run(**taken, observer=observer)
    seconds = np.median(spent, axis=0)
    done = work(library, batch)
    peaks = measured_peaks(library)
    found: dict[str, OpTime] = {}
    least: dict[str, list[float]] = {}
    for step, took, part in zip(steps, seconds.tolist(), done, strict=True):
        name = step["kernel"]
        name = f"{name} -> {step['outputs'][0]}" if per_op else name
        op = found.setdefault(name, OpTime(name, 0, 0.0, 0.0, 0, 0))
        op.calls += 1
        op.milliseconds += 1e3 * took
        op.operations += 2 * part.macs
        op.bytes += part.constants + part.activations
        if peaks:
            times = least.setdefault(name, [0.0, 0.0])
            moving = part.constants / peaks.constants + part.activations / peaks.activations
            times[0] += 1e3 * part.macs / peaks.macs / threads
            times[1] += 1e3 * moving / threads
    for name, op in found.items():
        op.share = op.milliseconds / (1e3 * seconds.sum())
        op.gops = 1e-6 * op.operations / op.milliseconds if op.operations else None
        if peaks:
            compute, memory = least[name]
            op.roof = max(compute, memory) / op.milliseconds
            op.bound = "compute" if compute > memory else "memory"
    ops = list(found.values())
    return ops if per_op else sorted(ops, key=lambda op: -op.milliseconds)


def work(library: Library, batch: dict[str, np.ndarray]) -> list[Work]:
    """Return what every step of a library does with a batch."""
    model = IntModel.from_json(library.graph(), {}, {})
    constants, buffers = library.json("tensors.json"), library.plan["buffers"]
    rows = {
        "token": len(batch["input_ids"]),
        "sequence": len(batch["cu_seqlens"]) - 1,
        "position": len(batch.get("positions", ())),
    }
    products = macs(model, constants, library.plan["steps"], batch, rows)
    makers = {name: node.op for node in model.nodes for name in node.outputs}
    found = []
    for step in library.plan["steps"]:
        op, fixed, moving = makers[step["outputs"][0]], 0, 0
        for name in step["args"]:
            if name in buffers:
                b = buffers[name]
                count = rows[b["rows"]]
                if op == "take_rows":  # reads the rows that it writes
                    count = rows[buffers[step["outputs"][0]]["rows"]]
                moving += count * b["width"] * np.dtype(b["dtype"]).itemsize
            elif name in constants:
                shape = constants[name]["shape"]
                count = min(shape[0], rows["token"]) if op == "embed" else shape[0]
                size = np.dtype(constants[name]["dtype"]).itemsize
                fixed += count * int(np.prod(shape[1:])) * size
            else:
                moving += 4 * len(batch[name])
        found.append(Work(sum(products.get(name, 0) for name in step["outputs"]), fixed, moving))
    return found


def macs(
    model: IntModel,
    constants: dict[str, dict],
    steps: list[dict],
    batch: dict[str, np.ndarray],
    rows: dict[str, int],
) -> dict[str, int]:
    """Return the multiply-adds of every matrix product, by the observed buffer that ends it.

    constants  name -> {"shape": ...}
    rows       "token", "sequence", "position" -> how many of them

    A fused kernel shows only its last value, so the work of a value that is not shown counts for
    the values made from it.
    """
    shown = {name for step in steps for name in step["outputs"]}
    lengths = np.diff(batch["cu_seqlens"]).astype(np.int64)
    pending: dict[str, int] = {}
    found: dict[str, int] = {}
    for node in model.nodes:
        work = sum(pending.pop(name, 0) for name in node.inputs)
        out = node.outputs[0]
        if count := OPS[node.op].work:
            shapes = {
                i: constants[name]["shape"]
                for i, name in enumerate(node.inputs)
                if name in constants
            }
            work += count(node.attrs, rows[model.values[out].rows], lengths, shapes)
        if work:
            (found if out in shown else pending)[out] = work
    return found


def measured_peaks(library: Library) -> Peaks | None:
    """Measure the peaks of one core for a library; None without a meter for its int8 unit.

    A library that does not use the fastest unit of this CPU then shows what the CPU could do.
    Nothing is measured for a library that runs on a device.
    """
    if library.on_device:
        return None
    backend = targets.of_machine(library.image.machine, str(library.path))
    unit = backend.peak_unit(library.variants.get(library.variant, []))
    meter, read = peak_meter(unit) if unit else None, read_meter()
    speed = meter(TRIES) if meter else 0.0  # 0 where the kernel refuses the unit
    if not speed or read is None:
        return None
    constants = sum(
        int(np.prod(about["shape"])) * np.dtype(about["dtype"]).itemsize
        for about in library.json("tensors.json").values()
    )
    return Peaks(speed, read(constants, TRIES), read(CACHED, TRIES))


def peak_meter(unit: str) -> Callable[[int], float] | None:
    """Return measure(tries) -> multiply-adds per second of one core, best of as many slices.

    unit  a key of Backend.peak_meters of this machine; None where the CPU lacks it, and without a
          C compiler that knows it
    """
    backend = targets.host()
    if not backend or unit not in backend.peak_meters():
        return None
    feature, source = backend.peak_meters()[unit]
    return None if backend.missing([feature]) else _meter(source, ctypes.c_int)


def read_meter() -> Callable[[int, int], float] | None:
    """Return measure(bytes, tries) -> bytes per second that one core reads of so large a buffer.

    None without a C compiler
    """
    return _meter(READING, ctypes.c_int64, ctypes.c_int)


def _meter(source: Path, *arguments):
    """Return the function of a C file that measures, None where it does not compile."""
    with scratch.folder() as folder:
        built = os.path.join(folder, "peak.so")
        try:
            subprocess.run(
                [*compiler(), "-O2", "-shared", "-fPIC", str(source), "-o", built],
                env=compiler_files_in(folder),
                check=True,
            )
        except (CompileError, OSError, subprocess.CalledProcessError):
            return None
        measure = getattr(ctypes.CDLL(built), f"intformer_{source.stem}")
    measure.argtypes, measure.restype = list(arguments), ctypes.c_double
    return measure
