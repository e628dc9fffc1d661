"""What calibration sees: the float run over text, edge by edge.

Text shows an activation's output only where the channel fired. A channel that fires on one token in
ten thousand would get a range that the next text exceeds, so the range of an activation also holds
what its input's mean and deviation say is still likely: SPREAD standard deviations either way.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from intformer.ir.float_run import activate, run
from intformer.ir.graph import Graph, Node, taken
from intformer.progress import progress

SAMPLE_ROWS = 512  # rows kept per edge, for percentile and MSE
SPREAD = 4.0  # standard deviations of an activation's input that its output's range holds
POINTS = 33  # at which an activation is evaluated within them


@dataclass(frozen=True, eq=False)
class Seen:
    """What one edge showed.

    peaks  float32 [batches, channels]: largest |x| of each batch, in the order of the text; not
           less than what is likely, see above
    rows   float32 [rows, channels]: a sample; empty for sums, whose peak is enough
    """

    peaks: np.ndarray
    rows: np.ndarray

    @classmethod
    def known(cls, peak: np.ndarray) -> "Seen":
        """Return an edge whose range is known and of which nothing was seen; peak [channels]."""
        return cls(peak[None], np.empty((0, len(peak)), np.float32))


class _Moments:
    """Mean and deviation of every channel of an edge, over all batches."""

    def __init__(self):
        self.count, self.sum, self.squares = 0, 0.0, 0.0

    def add(self, x: np.ndarray) -> None:
        """Count the rows of x, [rows, channels]."""
        wide = x.astype(np.float64)
        self.count += len(x)
        self.sum = self.sum + wide.sum(0)
        self.squares = self.squares + np.square(wide).sum(0)

    def likely(self, node: Node) -> np.ndarray:
        """Return the largest |act(x)| within SPREAD deviations of the mean, [channels].

        node  the act, which may read half of the edge
        """
        import torch

        mean = self.sum / self.count
        deviation = np.sqrt(np.maximum(self.squares / self.count - np.square(mean), 0))
        steps = np.linspace(-SPREAD, SPREAD, POINTS)[:, None]
        x = (mean + steps * deviation)[:, taken(node)]
        found = activate(torch.from_numpy(x), node.attrs["function"])
        return found.abs().amax(0).numpy().astype(np.float32)


def observe(graph: Graph, inputs: list[dict], unusual: Sequence[dict] = ()) -> dict[str, Seen]:
    """Run the float graph over all batches; return what every edge of Graph.ranged showed.

    inputs   batches of text as it will be, in its order
    unusual  batches whose peaks count, but which are too rare to decide anything else
    """
    peaks: dict[str, list] = {}
    rows: dict[str, list] = {}
    share = -(-SAMPLE_ROWS // len(inputs))
    rng = np.random.default_rng(0)
    ranged = graph.ranged()
    activations: dict[str, Node] = {node.inputs[0]: node for node in graph.of_kind("act")}
    moments = {name: _Moments() for name in activations}

    def tap(name: str, x) -> None:
        x = x.numpy()
        if name in moments:
            moments[name].add(x)
        if name in ranged:
            peaks.setdefault(name, []).append(np.abs(x).max(0))

    def sample(name: str, x) -> None:
        tap(name, x)
        if name in ranged and graph[name].kind != "add":
            taken = rng.permutation(len(x))[:share]
            rows.setdefault(name, []).append(x.numpy()[taken])

    for batch in progress(unusual, "calibrating: unusual text"):
        run(graph, batch, tap)
    for batch in progress(inputs, "calibrating"):
        run(graph, batch, sample)
    likely = {node.name: moments[name].likely(node) for name, node in activations.items()}
    return {
        name: Seen(
            np.maximum(np.stack(p), likely.get(name, 0.0)),
            np.concatenate(rows.get(name, [np.empty((0, p[0].size))])),
        )
        for name, p in peaks.items()
    }
