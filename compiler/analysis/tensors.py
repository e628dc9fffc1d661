"""Float and integer values of the same tensors, batch by batch: energies, ranges, histograms.

Three kinds of error, all against the FP32 value of the tensor:

grid   the FP32 value rounded and clamped to the integers it is stored in: what the choice of the
       scale alone costs
made   what one step makes: every tensor that the step reads is the FP32 one, rounded to its own
       grid; so this holds the rounding of operands, of weights, the integer function and the grid
total  what the integer program has here, errors of all steps before included
"""

from dataclasses import dataclass

import numpy as np

from intformer.analysis.watched import OUTPUT, Watched, watched
from intformer.ir.float_run import run
from intformer.ir.graph import Graph
from intformer.ir.model import IntModel
from intformer.progress import progress

BINS = 96
REACH = 1.5  # of the histogram, in limits of the grid; what is beyond counts in the last bin
SMALLEST = 1e-300  # stands for no noise at all


def to_db(signal: float, noise: float) -> float | None:
    """Return 10 log10(signal / noise); None where there is no noise."""
    return 10 * float(np.log10(max(signal, SMALLEST) / noise)) if noise > 0 else None


@dataclass(frozen=True, eq=False)
class Grid:
    """Integers low..high at one scale per channel [C]; None: no clamp."""

    scale: np.ndarray
    low: int | None
    high: int | None

    def round(self, x: np.ndarray) -> np.ndarray:
        """Return the nearest integers of real values [rows, C], as float64."""
        return np.clip(np.rint(x / self.scale), self.low, self.high)

    def beyond(self, x: np.ndarray) -> np.ndarray:
        """Return where real values [rows, C] are clamped by more than rounding moves them."""
        if self.high is None:
            return np.zeros(x.shape, bool)
        steps = x / self.scale
        return (steps > self.high + 0.5) | (steps < self.low - 0.5)


class Tally:
    """What one watched tensor showed over all batches.

    signal, grid, made, total  energies (sums of squares): FP32 values, and the three errors
    squares    sum of squares of the values in LSB
    clip       the part of `grid` that values beyond the range make
    clipped    how many these are, of `count`
    peaks      float64 [C]: largest |x| of each channel
    least, most  of the FP32 values
    counts     int64 [BINS] of x / (scale * limit), -REACH..REACH; the limit is the grid's, or the
               largest value of the first batch where nothing clamps
    """

    def __init__(self, watch: Watched, model: IntModel):
        """Start at nothing."""
        self.watch, self.value = watch, model.values[watch.value]
        self.grid_of = Grid(watch.scale(model), watch.low, watch.high)
        channels = len(self.grid_of.scale)
        self.signal = self.grid = self.made = self.total = self.clip = self.squares = 0.0
        self.clipped = self.count = 0
        self.peaks = np.zeros(channels)
        self.least, self.most = np.inf, -np.inf
        self.limit = float(watch.high or 0)
        self.counts = np.zeros(BINS, np.int64)

    def add(self, x: np.ndarray, total: np.ndarray, made: np.ndarray) -> None:
        """Count one batch: FP32 [rows, C], integers of the program, integers of the step alone."""
        x, scale = x.astype(np.float64), self.grid_of.scale
        error = np.square(self.grid_of.round(x) * scale - x)
        beyond = self.grid_of.beyond(x)
        self.signal += float(np.square(x).sum())
        self.squares += float(np.square(x / scale).sum())
        self.grid += float(error.sum())
        self.clip += float(error[beyond].sum())
        self.clipped += int(beyond.sum())
        self.count += x.size
        self.made += float(np.square(made * scale - x).sum())
        self.total += float(np.square(total * scale - x).sum())
        self.peaks = np.maximum(self.peaks, np.abs(x).max(0, initial=0))
        self.least, self.most = min(self.least, float(x.min())), max(self.most, float(x.max()))
        self.limit = self.limit or float(np.abs(x / scale).max()) or 1.0
        at = np.clip(x / (scale * self.limit) / REACH, -1, 1)
        self.counts += np.histogram(at, BINS, (-1, 1))[0]


class Batch:
    """One batch through the float graph and twice through the integer reference.

    real   float32 output of the graph [rows, C]
    got    int32 output of the integer program
    """

    def __init__(self, graph: Graph, model: IntModel, watches: list[Watched], inputs):
        """Run everything."""
        self.taps: dict[str, np.ndarray] = {}
        self.real = run(graph, inputs, lambda name, x: self._keep(name, x.numpy()))
        self.taps[OUTPUT] = self.real
        wanted = {watch.value for watch in watches}
        self.total = {n: v for n, v in model.run(inputs).items() if n in wanted}
        self.got = self.total[model.output]
        self.made: dict[str, np.ndarray] = {}
        parts: dict[str, list[Watched]] = {}
        for watch in watches:
            parts.setdefault(watch.value, []).append(watch)

        def replace(name: str, made: np.ndarray) -> np.ndarray | None:
            if name not in parts:
                return None
            self.made[name] = made
            exact = np.empty_like(made)
            for watch in parts[name]:
                grid = Grid(watch.scale(model), watch.low, watch.high)
                x = self.taps[watch.tap][:, watch.columns].astype(np.float64)
                exact[:, watch.columns] = grid.round(x)
            return exact

        model.run(inputs, replace)

    def _keep(self, name: str, x: np.ndarray) -> None:
        self.taps[name] = x


def compare(graph: Graph, model: IntModel, inputs: list[dict]):
    """Return (a Tally for every watched value, real outputs, integer outputs), batches joined."""
    watches = watched(graph, model)
    tallies = [Tally(watch, model) for watch in watches]
    real, got = [], []
    for one in progress(inputs, "comparing tensor by tensor"):
        batch = Batch(graph, model, watches, one)
        real.append(batch.real)
        got.append(batch.got)
        for tally in tallies:
            watch = tally.watch
            parts = (batch.taps[watch.tap], batch.total[watch.value], batch.made[watch.value])
            tally.add(*(part[:, watch.columns] for part in parts))
    return tallies, np.concatenate(real), np.concatenate(got)
