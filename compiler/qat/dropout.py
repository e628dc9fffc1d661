"""Where a family drops what while it trains, by the keys of its config.json."""

from intformer.errors import CheckpointError
from intformer.frontend.checkpoint import Checkpoint
from intformer.frontend.encoder import family_of
from intformer.ir.graph import Graph
from intformer.qat.simulate import Dropout


def dropout_of(checkpoint: Checkpoint, graph: Graph) -> Dropout:
    """Return transformers' dropout for this model."""
    keys = family_of(checkpoint).dropout

    def probability(key: str, default: float) -> float:
        return checkpoint.setting(key, float, default, least=0)

    for key in keys.others:
        if value := probability(key, 0.0):
            raise CheckpointError(
                f"config key {key!r} = {value} is not supported in training",
                where=str(checkpoint.path / "config.json"),
                hint="set it to 0",
            )
    hidden = probability(keys.hidden, keys.default)
    of_attention = keys.default if keys.attention_default is None else keys.attention_default
    attention = probability(keys.attention, of_attention)
    if graph.head in keys.heads:
        key, default = keys.heads[graph.head]
        last = probability(key, hidden if default is None else default)
    elif graph.head.answers_questions:
        last = 0.0
    else:
        last = probability("classifier_dropout", hidden)
    first = last if keys.stages else 0.0
    if keys.pooler:
        first = probability(keys.pooler, 0.0)
    stages = sum(1 for node in graph.of_kind("linear") if node.name.startswith("head"))
    every = (*([first] * (stages - 1)), last) if stages else ()
    return Dropout(hidden, attention, keys.context, every, keys.gate)
