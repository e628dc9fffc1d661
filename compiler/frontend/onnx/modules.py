"""What a sentence-transformers directory puts behind the token embeddings of an ONNX file."""

from intformer.errors import CheckpointError
from intformer.frontend.builder import SEQUENCES
from intformer.frontend.onnx.build import Builder
from intformer.ir.graph import Linear, Norm


def pooled(builder: Builder, edge: str, pooling: str) -> str:
    """One row per sequence (float_run.pooled)."""
    parts = [_part(builder, edge, mode) for mode in pooling.split("+")]
    if len(parts) == 1:
        return parts[0]
    return builder.add("concat", tuple(parts), len(parts) * builder.channels(edge))


def _part(builder: Builder, edge: str, mode: str) -> str:
    inputs, channels = (edge, SEQUENCES), builder.channels(edge)
    if mode in ("first", "last"):
        attrs = {"rows": "sequence", **({"last": True} if mode == "last" else {})}
        return builder.add("take", inputs, channels, attrs=attrs)
    if mode == "max":
        return builder.add("max", inputs, channels)
    attrs = {} if mode == "mean" else {"form": mode}
    return builder.add("mean", inputs, channels, attrs=attrs)


def stage(
    builder: Builder, edge: str, weights: Linear | Norm, function: str | None, where: str
) -> str:
    """A linear layer, with an activation where one is named; or a LayerNorm."""
    inputs = weights.weight.shape[-1]
    if inputs != builder.channels(edge):
        key = weights.key if isinstance(weights, Norm) else weights.keys[0]
        raise CheckpointError(
            f"{key} reads {inputs} channels, the embedding has {builder.channels(edge)}",
            where=where,
        )
    if isinstance(weights, Norm):
        return builder.add("norm", (edge,), inputs, params=weights)
    edge = builder.linear(edge, weights, weights.keys)
    if function is None:
        return edge
    return builder.add("act", (edge,), len(weights.bias), attrs={"function": function})
