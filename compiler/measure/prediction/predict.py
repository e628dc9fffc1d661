"""Predicts how long a compiled library would take on a GPU that is not at hand.

Every launch of the plan is taken for itself: the instructions of its warps (trace.py) go through a
model of a multiprocessor (multiprocessor.py), its bytes through the rates of the caches and memory
of chips.py; the slowest of the three is its time. Unless the report says that it was checked, no
figure was compared with a GPU.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property

import numpy as np

from intformer.backends.cuda import sass
from intformer.backends.cuda.code import capability
from intformer.errors import IntformerError
from intformer.ir.plan import grid_size
from intformer.measure.prediction import chips
from intformer.measure.prediction.chips import Chip
from intformer.measure.prediction.multiprocessor import GLOBAL, PARTS, WARP, clocks, macs, moved
from intformer.measure.prediction.trace import Loop, loops, unroll
from intformer.runtime import Library

GRID = tuple((batch, tokens) for tokens in (128, 256) for batch in (1, 2, 4, 8))
CHECKED: frozenset[str] = frozenset()  # chips whose predictions were compared with measured times
TRIPS = 8  # a loop is simulated this often at most, and its time scaled
SLOWEST = 0.3  # of the boost clock, below which no power cap is looked for
ASSUMPTIONS = (
    "weights come from memory in every run where all of them exceed the second-level cache, and so "
    "do the buffers of a step where they exceed it; other loads come from that cache",
    "a launch takes the longest of three: instructions on the busiest multiprocessor, bytes from "
    "memory, bytes from the second-level cache; they overlap without loss",
    "blocks run in whole waves; first-level cache hits, bank conflicts and misses of the "
    "instruction cache are not modelled",
    "rare branches count as if always run; loops over keys run as often as the longest sequence "
    "needs, and all sequences are equally long",
    "where a power cap is modelled: picojoules per instruction are estimates, voltage falls in "
    "proportion to the clock down to 60 %",
    "no time for the copies of inputs and logits between host and GPU",
)
# milliseconds that others published, by chip and (layers, hidden): (batch, tokens) -> ms
PUBLISHED = {
    ("t4", 12, 768): {
        "TensorRT INT8": {
            (1, 128): 1.69,
            (2, 128): 1.82,
            (4, 128): 2.63,
            (8, 128): 4.66,
            (1, 384): 2.52,
        },
        "FasterTransformer FP32": {(1, 128): 6.11, (8, 128): 42.88},
    },
    ("t4", 24, 1024): {
        "TensorRT INT8": {
            (1, 128): 3.65,
            (2, 128): 4.98,
            (4, 128): 8.57,
            (8, 128): 14.56,
            (1, 384): 7.29,
        },
    },
}


@dataclass(frozen=True)
class Launched:
    """One kernel launch of a run, as predicted.

    kernel    name
    function  the version that runs
    blocks    of threads
    resident  blocks that one multiprocessor holds at a time
    clocks    until the busiest multiprocessor is through
    macs      int8 multiplications and additions on tensor cores
    warps     instructions of all warps but those on tensor cores
    dram      bytes from and to memory
    cache     bytes from and to the second-level cache, at most
    """

    kernel: str
    function: str
    blocks: int
    resident: int
    clocks: float
    macs: int
    warps: int
    dram: int
    cache: int

    def parts(self, chip: Chip, ghz: float) -> dict[str, float]:
        """Return the microseconds of each of the three that could bind."""
        return {
            "instructions": self.clocks / ghz / 1e3,
            "memory": self.dram / (chip.dram * chip.dram_share) / 1e3,
            "cache": self.cache / (chip.l2_rate * ghz / chip.ghz) / 1e3,
        }

    def time(self, chip: Chip, ghz: float) -> float:
        """Return microseconds, without the gap to the next launch."""
        return max(self.parts(chip, ghz).values())

    def energy(self, chip: Chip, ghz: float) -> float:
        """Return microjoules, idle power aside; voltage falls with the clock, down to 0.6."""
        cost = chip.energy
        core = self.macs * cost.mac + self.warps * WARP * cost.instruction
        return (core * max(0.6, ghz / chip.ghz) ** 2 + self.dram * cost.dram) / 1e6


@dataclass
class KernelTime:
    """All launches of one kernel version in a run: their number, and one launch in microseconds."""

    kernel: str
    calls: int
    microseconds: float
    blocks: int
    resident: int
    binds: str
    instructions: float
    memory: float
    cache: float


@dataclass
class ShapeTime:
    """One shape: milliseconds of a run, at the clock that the power cap leaves.

    watts      that runs back to back would draw, None where the chip's energy is not known
    gaps       milliseconds between launches
    kernels    in the order of the program
    published  milliseconds that others reported for this shape
    """

    batch: int
    tokens: int
    milliseconds: float
    ghz: float
    watts: float | None
    gaps: float
    kernels: list[KernelTime]
    published: dict[str, float] = field(default_factory=dict)


@dataclass
class Prediction:
    """What a library is predicted to take on a chip."""

    library: str
    chip: str
    title: str
    ghz: float
    watts: float
    checked: bool
    shapes: list[ShapeTime]
    assumptions: tuple[str, ...] = ASSUMPTIONS

    def to_json(self) -> dict:
        """Return everything as plain data."""
        return asdict(self)


def predict(
    library: Library,
    name: str,
    shapes: Sequence[tuple[int, int]] = GRID,
    *,
    ghz: float | None = None,
    watts: float | None = None,
    progress: Callable[[str], None] = lambda what: None,
) -> Prediction:
    """Predict a library on the chip called `name`.

    shapes  (sequences, tokens in each)
    ghz     highest clock, default the boost clock
    watts   power cap, default the chip's; it binds where the chip's energy is known
    """
    chip = chips.get(name)
    ghz, watts = ghz or chip.ghz, watts or chip.watts
    model = Model(library, chip)
    found = []
    meta = library.metadata
    for batch, tokens in shapes:
        if tokens > meta["max_length"]:
            raise IntformerError(
                f"{tokens} tokens in a sequence; the limit is {meta['max_length']}",
                where="--shapes",
            )
        progress(f"predicting {batch} x {tokens} on {chip.title}")
        found.append(shape_time(model.run(batch, tokens), chip, ghz, watts, batch, tokens))
        others = PUBLISHED.get((name, meta.get("layers"), meta.get("hidden")), {})
        found[-1].published = {
            who: figures[batch, tokens]
            for who, figures in others.items()
            if (batch, tokens) in figures
        }
    return Prediction(str(library.path), name, chip.title, ghz, watts, name in CHECKED, found)


def shape_time(
    launches: list[Launched], chip: Chip, ghz: float, watts: float, batch: int, tokens: int
) -> ShapeTime:
    """Add up the launches of a run, at the highest clock that the power cap allows."""

    def total(clock: float) -> float:
        return sum(one.time(chip, clock) + chip.gap for one in launches)

    def power(clock: float) -> float:
        spent = sum(one.energy(chip, clock) for one in launches)
        return chip.energy.idle + spent / total(clock)

    if chip.energy and power(ghz) > watts:
        low, high = SLOWEST * chip.ghz, ghz
        for _ in range(30):
            middle = (low + high) / 2
            low, high = (low, middle) if power(middle) > watts else (middle, high)
        ghz = low
    calls = Counter(launches)
    kernels = []
    for one, count in calls.items():
        parts = one.parts(chip, ghz)
        binds = max(parts, key=parts.get)
        kernels.append(
            KernelTime(
                one.function, count, one.time(chip, ghz), one.blocks, one.resident, binds, **parts
            )
        )
    gaps = len(launches) * chip.gap / 1e3
    drawn = power(ghz) if chip.energy else None
    return ShapeTime(batch, tokens, total(ghz) / 1e3, ghz, drawn, gaps, kernels)


class Model:
    """A library on a chip: its plan, and the machine code of one variant."""

    def __init__(self, library: Library, chip: Chip):
        """Read the variant that fits the chip best; IntformerError where none does."""
        self.library, self.chip = library, chip
        arches = {v["name"]: v["arch"] for v in library.metadata["variants"] if v.get("arch")}
        fitting = [
            name
            for name, arch in arches.items()
            if capability(arch)[0] == chip.capability[0] and capability(arch) <= chip.capability
        ]
        if not fitting:
            what = ", ".join(arches.values()) or "CPUs"
            major, minor = chip.capability
            raise IntformerError(
                f"it is for {what}; code for sm_{major}{minor} or a little older is needed",
                where=str(library.path),
                hint="compile it for that GPU",
            )
        variant = max(fitting, key=lambda name: capability(arches[name]))
        self.functions = sass.disassemble(library.section(f"cuda/{variant}.cubin")).functions
        self.plan = library.plan
        self._simulated: dict[tuple, float] = {}

    @cached_property
    def weights(self) -> int:
        """Bytes of all constants."""
        return sum(self.touched(name, None) for name in self.library.packing)

    def touched(self, name: str, rows: int | None) -> int:
        """Return the bytes of a constant that a step reads, 0 for what is none.

        rows  of the run, each of which needs one row of a table at most; None: all of it is read
        """
        about = self.library.packing.get(name)
        if not about:
            return 0
        *outer, last = about["shape"]
        count = math.prod(outer) if rows is None else min(rows, math.prod(outer))
        return count * last * np.dtype(about["dtype"]).itemsize

    def run(self, batch: int, tokens: int) -> list[Launched]:
        """Return the launches of a run of `batch` sequences of `tokens` tokens each."""
        counts = {"token": batch * tokens, "sequence": batch, "position": 0, "longest": tokens}
        steps = [self.launch(step, counts) for step in self.plan["steps"]]
        return [step for step in steps if step.blocks]

    def launch(self, step: Mapping, counts: Mapping[str, int]) -> Launched:
        """Return what one step of the plan takes."""
        versions = self.plan["launches"][step["kernel"]]
        version = next(v for v in versions if v["limit"] is None or counts[v["rows"]] <= v["limit"])
        function = self.functions[version["function"]]
        blocks, threads = math.prod(grid_size(version["grid"], counts)), version["threads"]
        resident = self.resident(function, threads)
        if not blocks:
            return Launched(step["kernel"], function.name, 0, resident, 0, 0, 0, 0, 0)
        bodies = {
            loop: self.trips(loop, function, step, version, counts) for loop in loops(function)
        }
        executed = unroll(function, bodies.__getitem__)
        warps = blocks * -(-threads // WARP)
        loaded = sum(moved(i) * WARP for i in executed if i.name in GLOBAL) * warps
        products = sum(map(macs, executed))
        rows = None if products else counts["token"]
        constants = sum(self.touched(arg, rows) for arg in step["args"])
        active = sum(self.buffer_bytes(arg, counts) for arg in step["args"])
        cold = self.weights > self.chip.l2
        dram = (constants if cold else 0) + (active if active > self.chip.l2 else 0)
        dram = min(dram, loaded)
        others = sum(not macs(i) for i in executed)
        return Launched(
            step["kernel"],
            function.name,
            blocks,
            resident,
            self.clocks(function, bodies, blocks, threads, resident, cold and constants > 0),
            products * warps,
            others * warps,
            dram,
            loaded,
        )

    def resident(self, function: sass.Function, threads: int) -> int:
        """Return how many blocks of a kernel a multiprocessor holds."""
        registers, shared, most, blocks = self.chip.room
        per_warp = -(-max(function.registers, 16) * WARP // 256) * 256
        room = [blocks, most // threads, registers // (per_warp * -(-threads // WARP))]
        if function.shared:
            room.append(shared // function.shared)
        return max(1, min(room))

    def buffer_bytes(self, name: str, counts: Mapping[str, int]) -> int:
        """Return the bytes of a buffer that a run uses, 0 for what is none."""
        buffer = self.plan["buffers"].get(name)
        if not buffer:
            return 0
        return counts[buffer["rows"]] * buffer["width"] * np.dtype(buffer["dtype"]).itemsize

    def trips(
        self,
        loop: Loop,
        function: sass.Function,
        step: Mapping,
        version: Mapping,
        counts: Mapping[str, int],
    ) -> int:
        """Return how often a loop runs.

        The loop of a matrix product has what the tile of a block needs, less what is outside of the
        loop: its counter may run in any way. A loop without a constant bound goes over the tokens
        of a sequence. The first product of attention, rows of a block x keys x channels of a head,
        tells how many a trip takes.
        """
        inside = self._products(function, loop)
        if inside and (weights := self._weights(step)):
            columns, depth = weights
            rows = next(divisor for of, divisor, _ in version["grid"] if of == version["rows"])
            across = columns // math.prod(factor for _, _, factor in version["grid"])
            tile = rows * across * (-(-depth // 32) * 32) * WARP // version["threads"]
            outside = sum(map(macs, function.instructions)) - inside
            return max(1, -(-(tile - outside) // inside))
        if loop.trips is not None:
            return max(1, loop.trips)
        body = [self._products(function, one) for one in loops(function) if one.trips is None]
        products = [amount for amount in body if amount]
        if not products:
            return counts["longest"]
        rows = next((divisor for of, divisor, _ in version["grid"] if of == "longest"), 1)
        heads = math.prod(factor for _, _, factor in version["grid"])
        channels = self.plan["buffers"][step["outputs"][0]]["width"] // heads
        keys = min(products) * version["threads"] // WARP // (rows * channels)
        return -(-counts["longest"] // max(1, keys))

    def _products(self, function: sass.Function, loop: Loop) -> int:
        """Return the multiplications and additions in one trip of a loop."""
        return sum(map(macs, function.instructions[loop.first : loop.last + 1]))

    def _weights(self, step: Mapping) -> tuple[int, int] | None:
        """Return columns and depth of a step's matrix product, None where it is none."""
        about = (self.library.packing.get(name) for name in step["args"])
        found = (a["shape"] for a in about if a and (a["packing"] or {}).get("kind") == "rows")
        return next(map(tuple, found), None)

    def clocks(
        self,
        function: sass.Function,
        bodies: Mapping[Loop, int],
        blocks: int,
        threads: int,
        resident: int,
        memory: bool,
    ) -> float:
        """Return the clocks of the busiest multiprocessor: whole waves, then what is left."""
        share = -(-blocks // self.chip.sms)
        waves, left = divmod(share, resident)
        found = waves * self.simulated(function, bodies, resident, threads, memory) if waves else 0
        return found + (self.simulated(function, bodies, left, threads, memory) if left else 0)

    def simulated(
        self,
        function: sass.Function,
        bodies: Mapping[Loop, int],
        blocks: int,
        threads: int,
        memory: bool,
    ) -> float:
        """Return the clocks of some blocks that start together on one multiprocessor."""
        key = function.name, tuple(bodies.values()), blocks, threads, memory
        if key not in self._simulated:
            longest = max(bodies.values(), default=0)
            caps = (longest,)
            if longest > TRIPS and len({trips for trips in bodies.values() if trips > TRIPS}) == 1:
                caps = (TRIPS // 2, TRIPS)
            times = [self._part(function, bodies, blocks, threads, memory, cap) for cap in caps]
            if len(times) == 2:  # every further trip takes as long as those between the two
                times.append(times[1] + (longest - TRIPS) * (times[1] - times[0]) / (TRIPS // 2))
            self._simulated[key] = times[-1]
        return self._simulated[key]

    def _part(self, function, bodies, blocks: int, threads: int, memory: bool, cap: int) -> float:
        """Simulate the warps that one of the parts of the multiprocessor gets."""
        executed = unroll(function, lambda loop: min(cap, bodies[loop]))
        warps = -(-threads // WARP)
        each = max(1, warps // PARTS)  # of a block, on one part
        mine = blocks * each if warps >= PARTS else -(-blocks * warps // PARTS)
        return clocks([executed] * mine, [i // each for i in range(mine)], self.chip, memory)
