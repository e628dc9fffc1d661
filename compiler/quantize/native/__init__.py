"""Recipe native: a float graph plus observed ranges becomes an IntModel.

`scales` decides the scale of every edge, `rules` has one rule per kind of node.
"""

from intformer.errors import CheckpointError
from intformer.ir.graph import Graph
from intformer.ir.model import IntModel
from intformer.quantize.native.rules import emit
from intformer.quantize.native.scales import GRAINS, Scales
from intformer.quantize.observe import Seen


def lower(
    graph: Graph,
    seen: dict[str, Seen],
    factors: dict,
    method: str,
    origin: str,
    rounded: dict[str, tuple] | None = None,
    weights: str = "channel",
) -> IntModel:
    """Return the IntModel (meta holds only what the numbers decide; the caller adds the rest).

    seen     what calibration saw of every edge of Graph.ranged
    factors  of equalisation: weight stem -> [K]
    method   one of methods.METHODS
    origin   where the ranges in `seen` come from, as Value.origin says it
    rounded  what one method leaves for the next: weight stem -> (factors, scale of each row,
             integers)
    weights  "channel": a scale per weight and word row; "tensor": one per weight and word table
    """
    if weights not in GRAINS:
        raise CheckpointError(
            f"weights = {weights!r} is not known", hint="one of " + ", ".join(GRAINS)
        )
    scales = Scales(graph, seen, factors, method)
    return emit(scales, origin, {} if rounded is None else rounded, weights)
