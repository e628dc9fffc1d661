"""I-BERT (arXiv 2101.01321): RoBERTa, with the keys of the ranges that training recorded.

The graph is that of the float model. A node names the QuantActs behind it, in the order in which
they run: what recipe ibert takes its scales from.
"""

from dataclasses import replace

from intformer.frontend.builder import TYPES, Builder
from intformer.frontend.families.post_ln import BERT_LAYER
from intformer.frontend.families.roberta import ROBERTA


def encoder(g: Builder) -> str:
    """Embeddings and layers."""
    g.table(TYPES)  # always there, even with a single row
    x = g.recorded(g.embed(), "embeddings.embeddings_act1")
    x = g.norm("embed.norm", x, "embeddings.LayerNorm")
    x = g.recorded(x, "embeddings.output_activation")
    for at in g.layers(g.numbered("encoder.layer")):
        x = feed_forward(at, attend(at, x))
    return x


def attend(at: Builder, x: str) -> str:
    """Attention, added to its input and normalised."""
    keys, own = BERT_LAYER, "attention.self"
    qkv = at.linear("qkv", x, keys.query, keys.key, keys.value, outputs=at.hidden)
    qkv = at.recorded(qkv, *(f"{own}.{part}_activation" for part in ("query", "key", "value")))
    context = at.attention("context", qkv)
    at.recorded(context, f"{own}.softmax.act", f"{own}.output_activation")
    y = at.linear("out", context, keys.out, outputs=at.hidden)
    y = at.recorded(at.add("sum1", y, x), "attention.output.ln_input_act")
    y = at.norm("norm1", y, keys.norm1)
    return at.recorded(y, "attention.output.output_activation", "pre_intermediate_act")


def feed_forward(at: Builder, x: str) -> str:
    """Two linear layers with GELU between them, added to their input and normalised."""
    y = at.act("act", at.linear("ffn1", x, BERT_LAYER.ffn1))
    at.recorded(y, "intermediate.output_activation", "pre_output_act")
    y = at.linear("ffn2", y, BERT_LAYER.ffn2, outputs=at.hidden)
    y = at.recorded(at.add("sum2", y, x), "output.ln_input_act")
    return at.recorded(at.norm("norm2", y, BERT_LAYER.norm2), "output.output_activation")


IBERT = replace(ROBERTA, encoder=encoder, prefix="ibert.", fold=False)
