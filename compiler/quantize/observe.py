"""What calibration sees: the float run over text, edge by edge."""

from dataclasses import dataclass

import numpy as np

from intformer.ir.float_run import run
from intformer.ir.graph import Graph
from intformer.progress import progress

SAMPLE_ROWS = 512  # rows kept per edge, for percentile and MSE


@dataclass(frozen=True, eq=False)
class Seen:
    """What one edge showed.

    peaks  float32 [batches, channels]: largest |x| of each batch, in the order of the text
    rows   float32 [rows, channels]: a sample; empty for sums, whose peak is enough
    """

    peaks: np.ndarray
    rows: np.ndarray

    @classmethod
    def known(cls, peak: np.ndarray) -> "Seen":
        """Return an edge whose range is known and of which nothing was seen; peak [channels]."""
        return cls(peak[None], np.empty((0, len(peak)), np.float32))


def observe(graph: Graph, inputs: list[dict]) -> dict[str, Seen]:
    """Run the float graph over all batches; return what every edge of Graph.ranged showed."""
    peaks: dict[str, list] = {}
    rows: dict[str, list] = {}
    share = -(-SAMPLE_ROWS // len(inputs))
    rng = np.random.default_rng(0)
    ranged = graph.ranged()

    def tap(name: str, x) -> None:
        if name not in ranged:
            return
        x = x.numpy()
        peaks.setdefault(name, []).append(np.abs(x).max(0))
        if graph[name].kind != "add":
            taken = rng.permutation(len(x))[:share]
            rows.setdefault(name, []).append(x[taken])

    for batch in progress(inputs, "calibrating"):
        run(graph, batch, tap)
    return {
        name: Seen(np.stack(p), np.concatenate(rows.get(name, [np.empty((0, p[0].size))])))
        for name, p in peaks.items()
    }
