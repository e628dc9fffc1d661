"""ALBERT (arXiv 1909.11942): narrow embeddings, and layers that share their weights."""

from intformer.frontend.builder import MAX_LAYERS, Builder
from intformer.frontend.families import post_ln
from intformer.frontend.families.post_ln import LayerKeys
from intformer.frontend.family import DropoutKeys, Family
from intformer.ir.heads import SEQUENCE_CLASSIFICATION, TOKEN_CLASSIFICATION

LAYER = LayerKeys(
    query="attention.query",
    key="attention.key",
    value="attention.value",
    out="attention.dense",
    norm1="attention.LayerNorm",
    ffn1="ffn",
    ffn2="ffn_output",
    norm2="full_layer_layer_norm",
)


def encoder(g: Builder) -> str:
    """Embeddings, their projection and layers."""
    x = g.norm("embed.norm", g.embed(), "embeddings.LayerNorm")
    x = g.linear("embed.projection", x, "encoder.embedding_hidden_mapping_in", outputs=g.hidden)
    for at in g.layers(paths(g)):
        x = post_ln.layer(at, x, LAYER)
    return x


def paths(g: Builder) -> list[str]:
    """Return the path of every repetition; groups of layers are shared along the depth."""
    layers = g.checkpoint.setting("num_hidden_layers", int, least=1, most=MAX_LAYERS)
    groups = g.checkpoint.setting("num_hidden_groups", int, 1, least=1, most=layers)
    inner = g.checkpoint.setting("inner_group_num", int, 1, least=1, most=MAX_LAYERS // layers)
    stem = "encoder.albert_layer_groups"
    return [
        f"{stem}.{int(i / (layers / groups))}.albert_layers.{j}"
        for i in range(layers)
        for j in range(inner)
    ]


def classify(g: Builder, x: str) -> str:
    """The pooler of the first token, then the classifier."""
    return g.dense(g.dense(g.first(x), f"{g.prefix}pooler", "tanh"), "classifier")


def words(g: Builder, x: str) -> str:
    """A logit of every word of the vocabulary."""
    x = g.dense(x, "predictions.dense", g.activation, "predictions.LayerNorm")
    return g.decoder(x, "predictions.decoder")


ALBERT = Family(
    encoder,
    post_ln.heads_of(classify, words),
    prefix="albert.",
    act="gelu_new",
    dropout=DropoutKeys(
        default=0.0,
        heads=dict.fromkeys(
            (SEQUENCE_CLASSIFICATION, TOKEN_CLASSIFICATION), ("classifier_dropout_prob", 0.1)
        ),
    ),
)
