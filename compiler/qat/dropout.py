"""Where a family drops what while it trains, by the keys of its config.json."""

from intformer.frontend.checkpoint import Checkpoint
from intformer.frontend.encoder import family_of
from intformer.ir.graph import Graph
from intformer.qat.simulate import Dropout

HEAD_KEYS = {  # family -> key of each head's own probability, where it has one
    "albert": {"sequence-classification": "classifier_dropout_prob"},
    "distilbert": {
        "sequence-classification": "seq_classif_dropout",
        "question-answering": "qa_dropout",
    },
}


def dropout_of(checkpoint: Checkpoint, graph: Graph) -> Dropout:
    """Return transformers' dropout for this model."""
    family = checkpoint.config["model_type"]

    def probability(key: str, default: float) -> float:
        return checkpoint.setting(key, float, default, least=0)

    if family == "distilbert":
        hidden, attention = probability("dropout", 0.1), probability("attention_dropout", 0.1)
    else:
        default = 0.0 if family == "albert" else 0.1
        hidden = probability("hidden_dropout_prob", default)
        attention = probability("attention_probs_dropout_prob", default)
    own = HEAD_KEYS.get(family, {}).get(graph.head)
    if own:
        last = probability(own, {"seq_classif_dropout": 0.2}.get(own, 0.1))
    elif graph.head == "question-answering":
        last = 0.0
    else:
        last = probability("classifier_dropout", hidden)
    first = last if family_of(checkpoint).drops_all_stages else 0.0
    stages = sum(1 for node in graph.of_kind("linear") if node.name.startswith("head"))
    every = (*([first] * (stages - 1)), last) if stages else ()
    return Dropout(hidden, attention, family != "distilbert", every)
