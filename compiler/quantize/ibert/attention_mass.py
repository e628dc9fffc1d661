"""How much of its mass attention keeps: floor(256 p) drops every probability below 1/256."""

from itertools import pairwise

import numpy as np

from intformer.ir.graph import Graph
from intformer.relay_ops import attention_ibert
from intformer.relay_ops.attention import scores


class AttentionMass:
    """What every attention of a model kept, over batches.

    kept  layer -> share of the mass of each row and head, 0..1
    """

    def __init__(self, graph: Graph, tensors: dict[str, np.ndarray]):
        """Take the graph and the constants of its integer program."""
        self.nodes = {n.name.rpartition(".")[0]: n for n in graph.of_kind("attention")}
        self.tensors = tensors
        self.kept: dict[str, list[float]] = {layer: [] for layer in self.nodes}

    def see(self, values: dict[str, np.ndarray], cu_seqlens: np.ndarray) -> None:
        """Take the values of one batch, as IntModel.run returns them."""
        for layer, node in self.nodes.items():
            qkv, p = values[node.inputs[0]], self.tensors[f"{node.name}.p"]
            heads = node.attrs["heads"]
            for start, stop in pairwise(cu_seqlens.tolist()):
                for h in range(heads):
                    rows = slice(start, stop)
                    s, _ = scores(qkv, rows, h, heads, node.channels // heads)
                    exponentials = attention_ibert.numerators(s - s.max(1, keepdims=True), p)
                    shares = attention_ibert.probabilities(exponentials).sum(1) / 256
                    self.kept[layer] += shares.tolist()

    def least(self) -> dict[str, float]:
        """Return layer -> the smallest share."""
        return {layer: float(min(shares)) for layer, shares in self.kept.items()}

    def warnings(self) -> list[str]:
        """Return a line for every layer where rows keep less than half their mass."""
        found, least = [], self.least()
        for layer, shares in self.kept.items():
            poor = float(np.mean(np.asarray(shares) < 0.5))
            if poor:
                found.append(
                    f"{layer}: {poor:.2%} of the calibration rows' attention keeps less than half "
                    f"its mass (least {least[layer]:.2f}); floor(256 p) drops what is below 1/256"
                )
        return found
