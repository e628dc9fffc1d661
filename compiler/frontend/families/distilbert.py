"""DistilBERT (arXiv 1910.01108): BERT without token types and pooler, under other names."""

from intformer.frontend.builder import Builder
from intformer.frontend.families import post_ln
from intformer.frontend.families.post_ln import LayerKeys
from intformer.frontend.family import DropoutKeys, Family
from intformer.ir.heads import QUESTION_ANSWERING, SEQUENCE_CLASSIFICATION

LAYER = LayerKeys(
    query="attention.q_lin",
    key="attention.k_lin",
    value="attention.v_lin",
    out="attention.out_lin",
    norm1="sa_layer_norm",
    ffn1="ffn.lin1",
    ffn2="ffn.lin2",
    norm2="output_layer_norm",
)


def encoder(g: Builder) -> str:
    """Embeddings and layers."""
    x = g.norm("embed.norm", g.embed(types=False), "embeddings.LayerNorm")
    for at in g.layers(g.numbered("transformer.layer")):
        x = post_ln.layer(at, x, LAYER)
    return x


def classify(g: Builder, x: str) -> str:
    """A dense layer of the first token, then the classifier."""
    return g.dense(g.dense(g.first(x), "pre_classifier", "relu"), "classifier")


def words(g: Builder, x: str) -> str:
    """A logit of every word of the vocabulary."""
    x = g.dense(x, "vocab_transform", g.activation, "vocab_layer_norm")
    return g.decoder(x, "vocab_projector")


DISTILBERT = Family(
    encoder,
    post_ln.heads_of(classify, words),
    prefix="distilbert.",
    config_keys={
        "hidden": "dim",
        "heads": "n_heads",
        "layers": "n_layers",
        "activation": "activation",
        "ffn": "hidden_dim",
        "eps": None,  # transformers reads none
    },
    dropout=DropoutKeys(
        hidden="dropout",
        attention="attention_dropout",
        heads={
            SEQUENCE_CLASSIFICATION: ("seq_classif_dropout", 0.2),
            QUESTION_ANSWERING: ("qa_dropout", 0.1),
        },
        context=False,
    ),
)
