"""What a sentence-transformers directory puts behind the token embeddings of an ONNX file."""

from intformer.frontend.head_stages import POOLED, check_reads
from intformer.frontend.onnx.build import Builder
from intformer.ir.graph import SEQUENCES, Linear, Norm


def pooled(builder: Builder, edge: str, pooling: str) -> str:
    """One row per sequence (float_run.pooled)."""
    channels, parts = builder.channels(edge), []
    for kind, attrs in map(POOLED.get, pooling.split("+")):
        parts.append(builder.add(kind, (edge, SEQUENCES), channels, attrs=dict(attrs)))
    if len(parts) == 1:
        return parts[0]
    return builder.add("concat", tuple(parts), len(parts) * channels)


def stage(
    builder: Builder, edge: str, weights: Linear | Norm, function: str | None, where: str
) -> str:
    """A linear layer, with an activation where one is named; or a LayerNorm."""
    channels = builder.channels(edge)
    check_reads(weights, channels, where)
    if isinstance(weights, Norm):
        return builder.add("norm", (edge,), channels, params=weights)
    edge = builder.linear(edge, weights, weights.keys)
    if function is None:
        return edge
    return builder.add("act", (edge,), len(weights.bias), attrs={"function": function})
