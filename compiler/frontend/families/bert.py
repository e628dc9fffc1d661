"""BERT (arXiv 1810.04805); transformers' BertModel."""

from intformer.frontend.builder import Builder
from intformer.frontend.families import post_ln
from intformer.frontend.families.post_ln import BERT_LAYER
from intformer.frontend.family import Family


def encoder(g: Builder) -> str:
    """Embeddings and layers."""
    x = g.norm("embed.norm", g.embed(), "embeddings.LayerNorm")
    for at in g.layers(g.numbered("encoder.layer")):
        x = post_ln.layer(at, x, BERT_LAYER)
    return x


def classify(g: Builder, x: str) -> str:
    """The pooler of the first token, then the classifier."""
    return g.dense(g.dense(g.first(x), f"{g.prefix}pooler.dense", "tanh"), "classifier")


def words(g: Builder, x: str) -> str:
    """A logit of every word of the vocabulary."""
    at = "cls.predictions.transform"
    x = g.dense(x, f"{at}.dense", g.activation, f"{at}.LayerNorm")
    return g.decoder(x, "cls.predictions.decoder")


BERT = Family(
    encoder,
    post_ln.heads_of(classify, words),
    prefix="bert.",
)
